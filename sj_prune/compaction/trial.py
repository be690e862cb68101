"""Try what the tracing of channels claims: take a channel out of every group and compare."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.compaction.build import copied, shrink
from sj_prune.compaction.forward import ForwardError, Result, differ, doubled, evaluate, finite
from sj_prune.compaction.slices import Cut, silence
from sj_prune.network.coupling import Coupling, Group, couple
from sj_prune.network.layers import is_weighted
from sj_prune.network.norms import is_channel_norm

logger = logging.getLogger("sj_prune")

_CHANGES = "removing one of its channels changes the output"


def couple_checked(
    net: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    skip: Collection[str] = (),
    seed: int = 0,
) -> Coupling:
    """Return the groups of coupled channels of a network that can really be taken out.

    `couple` cannot see a width that a forward reads or has written down (``reshape(T, N, 64, -1)``,
    a division by ``x.shape[2]``). So one unit of every group is silenced on a copy with random
    norms, taken out of a second copy, and a dense signal is sent through both in float64. Groups
    whose removal fails or changes the output are found by bisection and frozen with the reason.

    Args:
        net: any network; it comes back exactly as it was.
        args: positional inputs of one forward.
        kwargs: keyword inputs.
        skip: names of layers whose channels are to stay.
        seed: of the choice of units.

    Returns:
        What `couple` returns, less the groups that failed. If the network cannot be copied or does
        not run in float64 it is `couple`'s answer as it is, and a warning is logged.
    """
    coupling = couple(net, args, kwargs, skip=skip)
    groups = [group for group in coupling.groups if group.units > 1]
    if not groups:
        return coupling
    try:
        trial = _Trial(net, groups, args, kwargs or {}, seed)
    except Exception as error:  # whatever a copy or a forward of the user's raises
        logger.warning(
            "Coupled channels could not be tried out, and are taken as traced: %s: %s",
            type(error).__name__,
            error,
        )
        return coupling
    frozen = trial.culprits(groups)
    return _without(coupling, frozen) if frozen else coupling


def _without(coupling: Coupling, frozen: Mapping[str, str]) -> Coupling:
    reasons = dict(coupling.frozen)
    for group in coupling.groups:
        if group.name in frozen:
            reasons.update(
                {name: reasons.get(name, frozen[group.name]) for name in group.producers}
            )
            logger.info("%s stays as it is: %s", group.name, frozen[group.name])
    kept = tuple(group for group in coupling.groups if group.name not in frozen)
    return replace(coupling, groups=kept, frozen=reasons)


class _Trial:
    """One unit of every group silenced on a copy, and what comes out of it."""

    def __init__(
        self,
        net: nn.Module,
        groups: Sequence[Group],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        seed: int,
    ) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        self.args, self.kwargs = doubled(args), doubled(dict(kwargs))
        self.masked = copied(net).double().eval()
        _randomize(self.masked, generator)
        self.chosen = {}
        for group in groups:
            units = torch.zeros(group.units, dtype=torch.bool, device="cpu")
            units[torch.randint(group.units, (), generator=generator, device="cpu")] = True
            silence(self.masked, group, units)
            self.chosen[group.name] = units
        self.expected = self._run(self.masked)
        if not finite(self.expected.outputs):
            raise ValueError("Expected finite outputs but got inf or nan: give finite inputs")

    def _run(self, net: nn.Module) -> Result:
        return evaluate(net, self.args, self.kwargs, dense=True)

    def failure(self, groups: Iterable[Group]) -> str | None:
        """Return why the chosen units of these groups cannot be taken out, or None."""
        small = copied(self.masked)
        try:
            shrink(small, Cut.of((group, self.chosen[group.name]) for group in groups))
            actual = self._run(small)
        except ForwardError as error:
            return f"its width is written into the forward of the network: {error}"
        except (RuntimeError, IndexError) as error:
            return f"its channels cannot be cut out of the layers: {error}"
        pairs = zip(self.expected.outputs, actual.outputs, strict=False)
        return _CHANGES if any(differ(a, b) for a, b in pairs) else None

    def culprits(self, groups: Sequence[Group]) -> dict[str, str]:
        """Return the names of groups that cannot be taken out -> why. The others can, together."""
        accepted: list[Group] = []
        frozen: dict[str, str] = {}

        def accept(pending: Sequence[Group]) -> None:
            reason = self.failure([*accepted, *pending]) if pending else None
            if reason is None:
                accepted.extend(pending)
            elif len(pending) == 1:
                frozen[pending[0].name] = reason
            else:
                middle = len(pending) // 2
                accept(pending[:middle])
                accept(pending[middle:])

        accept(groups)
        return frozen


def _randomize(net: nn.Module, generator: torch.Generator) -> None:
    """Open every path of a copy: norms and gates that start at 0, filters that are 0."""

    def uniform(t: Tensor | None, low: float, high: float) -> None:
        if t is not None:
            values = torch.rand(t.shape, generator=generator, dtype=t.dtype, device="cpu")
            t.copy_(values * (high - low) + low)

    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                uniform(parameter, 0.5, 1.5)
        for module in net.modules():
            if is_channel_norm(module):
                uniform(module._parameters["weight"], 0.5, 1.5)
                uniform(module._parameters["bias"], -0.5, 0.5)
                uniform(module._buffers["running_mean"], -0.1, 0.1)
                uniform(module._buffers["running_var"], 0.5, 1.5)
            elif is_weighted(module):
                weight = module._parameters.get("weight")
                if weight is not None and bool((weight.flatten(1) == 0).all(1).any()):
                    bound = weight[0].numel() ** -0.5
                    uniform(weight, -bound, bound)
