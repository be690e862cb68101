"""Checks of what a user hands to `PruningWrapper`, before anything is touched."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping

from torch import nn

from sj_prune._checks import check_fraction
from sj_prune.masks.keys import instead
from sj_prune.masks.scopes import Scope
from sj_prune.masks.structure import Structure
from sj_prune.methods.plan import Plan
from sj_prune.network.coupling import Coupling, Group
from sj_prune.network.layers import Layer, prunable_layers, weighted_layers

logger = logging.getLogger("sj_prune")


def select_layers(
    net: nn.Module, skip: Iterable[str], structure: Structure
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Return the prunable layers of `net` less `skip`, by name, and layer -> why others stay.

    What a structure says of channels is known when a forward has shown them.

    Raises:
        TypeError: if `skip` is a string.
        ValueError: for a name without a prunable layer, and if nothing is left to prune.
    """
    if isinstance(skip, str) or not isinstance(skip, Iterable):
        hint = f": write skip=({skip!r},)" if isinstance(skip, str) else ""
        raise TypeError(f"Expected skip to be a sequence of names but got {skip!r}{hint}")
    layers, every = prunable_layers(net), weighted_layers(net)
    skipped = set()
    for name in skip:
        below = [layer for layer in every if layer == name or layer.startswith(f"{name}.")]
        if not below:
            close = difflib.get_close_matches(str(name), layers, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"Expected skip to name prunable layers or modules that hold some, among "
                f"{list(layers)}, but got {name!r}{hint}"
            )
        skipped.update(below)
    chosen = {name: layer for name, layer in layers.items() if name not in skipped}
    dense = {} if structure.needs_forward else _staying(chosen, structure)
    chosen = {name: layer for name, layer in chosen.items() if name not in dense}
    computed = _computed({n: m for n, m in every.items() if n not in {*layers, *skipped}})
    if not chosen:
        listed = "".join(f"; {name}: {reason}" for name, reason in dense.items())
        raise ValueError(
            "Expected at least one convolution or linear layer to prune but the network has none"
            f"{' outside skip' if skipped else ''}{f'; {computed}' if computed else ''}{listed}"
        )
    if computed:
        logger.warning("%s", computed)
    return chosen, dense


def _staying(layers: dict[str, Layer], structure: Structure) -> dict[str, str]:
    reasons = {name: structure.stays([layer]) for name, layer in layers.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _computed(layers: Mapping[str, Layer]) -> str:
    """Say of layers whose weights are no parameters that no mask can hold them."""
    if not layers:
        return ""
    listed = ", ".join(f"{name} ({instead(m, 'weight')})" for name, m in layers.items())
    return (
        f"layers whose weights are computed anew at every forward stay dense, and are not in "
        f"sparsity(): {listed}; take that off before wrapping to prune them "
        "(torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, "
        "remove_spectral_norm, prune.remove), or name them in skip"
    )


class SettingsError(ValueError):
    """Raised for settings that do not fit the network, whatever its forward does."""


def check_names(masks: Iterable[str]) -> None:
    """Refuse a layer or norm whose mask has the name that `sparsity` gives to all of them.

    Raises:
        SettingsError: if there is one.
    """
    if "total" in masks:
        raise SettingsError(
            "Expected no pruned layer or norm of the name 'total', which stands for all layers in "
            "sparsity(), but there is one: rename it or name it in skip"
        )


def check_sparsity(plan: Plan, scopes: Iterable[Scope], sparsity: float) -> None:
    """Refuse a sparsity that is no fraction or would empty a layer.

    Args:
        plan: whose allocation it is.
        scopes: layers, or groups of channels.
        sparsity: to reach.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is out of reach; the message states the reachable maximum.
    """
    check_fraction("sparsity", sparsity)
    start = getattr(plan.start, "sparsity", None)
    sparsity = sparsity if start is None else max(sparsity, start)
    sizes, floors = zip(*((scope.size, scope.floor) for scope in scopes), strict=True)
    total, least = sum(sizes), plan.allocation.least(sizes, floors)
    if not plan.emergent and round((1.0 - sparsity) * total) < least:
        unit, layer = plan.structure.unit, plan.structure.scope
        raise SettingsError(
            f"Expected a sparsity of at most {1 - least / total:.6g}, which leaves the {least} "
            f"{unit} that {plan.allocation} needs (none of the {len(sizes)} {layer} is emptied), "
            f"but got {sparsity}"
        )


def select_groups(
    plan: Plan, coupling: Coupling, net: nn.Module, feeds_neurons: Callable[[str], bool]
) -> tuple[list[Group], dict[str, str]]:
    """Return the groups of channels that a plan prunes, and layer -> why others stay.

    Args:
        plan: the plan.
        coupling: of the network.
        net: the network.
        feeds_neurons: tells whether neurons that record score a layer.

    Raises:
        SettingsError: if none is left.
    """
    groups, dense = [], dict(coupling.frozen)
    for group in coupling.groups:
        reason = plan.structure.stays([net.get_submodule(name) for name in group.producers])
        reason = reason or _without_score(plan, coupling, group, feeds_neurons)
        if reason is None:
            groups.append(group)
        else:
            dense.update(dict.fromkeys(group.producers, reason))
    if not groups:
        listed = "; ".join(f"{name}: {reason}" for name, reason in dense.items())
        raise SettingsError(f"Expected channels to prune but all layers stay dense: {listed}")
    return groups, dense


def _without_score(
    plan: Plan, coupling: Coupling, group: Group, feeds_neurons: Callable[[str], bool]
) -> str | None:
    """Return why a group has nothing to be dropped by, or None."""
    if plan.needs_norm and not any(name in coupling.norms for name in group.producers):
        return f"{plan.name} scores gamma, and no norm follows"
    if plan.scores_neurons and not any(map(feeds_neurons, group.producers)):
        return f"{plan.name} scores neurons, and none that records follows"
    return None
