"""A budget in the terms of hardware: the least that is pruned so that the network fits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sj_prune.chips.fits import chip_of, fits_layers
from sj_prune.chips.limits import LIMITS, Chip
from sj_prune.chips.mapping import Mapped, mapped
from sj_prune.masks.regrow import LayerUpdate
from sj_prune.masks.select import count
from sj_prune.masks.units import LayerScores, keep_top
from sj_prune.network.layers import weight_identity, weighted_layers
from sj_prune.run.scores import scores
from sj_prune.run.views import generator_of
from sj_prune.trained.fans import few_enough
from sj_prune.wrapper import PruningWrapper

logger = logging.getLogger("sj_prune")


def chip_in(budget: object) -> Chip | None:
    """Return the chip that a budget names or describes, None for a budget of another kind.

    Raises:
        ValueError: for an unknown chip, a wrong limit, or limits beside other budgets.
        TypeError: for a chip that is none.
    """
    if not isinstance(budget, Mapping) or not budget or budget.keys().isdisjoint({"chip", *LIMITS}):
        return None
    if budget.keys() == {"chip"}:
        return chip_of(budget["chip"])
    if unknown := [key for key in budget if key not in LIMITS]:
        raise ValueError(
            f"Expected a budget of hardware limits {LIMITS}, or of a chip alone, but got "
            f"{unknown} in {dict(budget)!r}"
        )
    for key, value in budget.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (not key.startswith("mean") and not isinstance(value, int)):
            raise ValueError(f"Expected {key} to be a number of them but got {value!r}")
    limits: dict[str, Any] = dict(budget)
    return Chip(name="the budget", **limits)


def fitted(model: PruningWrapper, chip: Chip, args: tuple[Any, ...]) -> dict[str, LayerUpdate]:
    """Return the update that prunes least, by the plan's scores, so that the network fits.

    Neurons that take or send too many synapses lose their lowest weights. Of what remains so many
    units are kept, ranked over all layers, as fit; then each layer in turn gets back as many as
    still fit: where a chip counts in powers of two, up to the next one.

    Args:
        model: a wrapper with all units kept and its statistics calibrated.
        chip: its limits.
        args: positional inputs, of which the shape counts.

    Raises:
        ValueError: if the sparsest masks do not fit, with what is missing.
    """
    run = model.session.run
    layers = mapped(model.net, args[0])
    if chip.cores is None and (chip.neurons_per_core or chip.synapses_per_core):
        chip = replace(chip, cores=len(layers))  # each layer on one
    search = _Search(model, chip, layers)
    found = [_few_enough(each, search, chip) for each in scores(model.net, run)]
    generator = generator_of(run)
    found = run.plan.structure.ranked(found, generator)
    least, most = sum(each.floor for each in found), sum(count([each.mask for each in found]))

    def at(keep: int) -> list[Tensor]:
        return keep_top(found, keep, generator_of(run))

    if problems := search.problems(found, at(least)):
        kinds = "single weights leave shapes as they are" if not search.channels else "channels"
        raise ValueError(
            f"Expected a network that can be pruned until it fits {chip.name} but the sparsest "
            f"masks ({least} of {most} units, {kinds}) do not: {'; '.join(problems)}"
        )
    low, high = least, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = not search.problems(found, at(middle))
        low, high = (middle, high) if fits else (low, middle)
    kept = _given_back(found, at(low), search)
    logger.info(
        "%s: %d of %d units are kept, and the network fits", chip.name, sum(count(kept)), most
    )
    nothing = [torch.zeros_like(mask) for mask in kept]
    pairs = zip(found, kept, nothing, strict=True)
    return {each.name: LayerUpdate(mask, none) for each, mask, none in pairs}


class _Search:
    """The network's layers, and whether they fit under masks.

    Attributes:
        layers: in order, each with the name by which masks know its weight; several share one
            where a module runs twice or a weight is tied.
    """

    def __init__(self, model: PruningWrapper, chip: Chip, layers: Sequence[Mapped]) -> None:
        self.scopes, self.chip = model.masks.scopes, chip
        names = {weight_identity(each): name for name, each in weighted_layers(model.net).items()}
        self.layers = [(each, names.get(weight_identity(each.module))) for each in layers]
        self.channels = any(scope.sleeps for scope in self.scopes.values())
        self._known: dict[int, tuple[Tensor, Mapped]] = {}

    def problems(self, found: Sequence[LayerScores], kept: Sequence[Tensor]) -> tuple[str, ...]:
        """Return why the network does not fit with these units; nothing if it does."""
        masks: dict[str, Tensor] = {}
        for each, units in zip(found, kept, strict=True):
            self.scopes[each.name].add_elements(units, masks)
        layers = [self._under(i, masks.get(name or "")) for i, (_, name) in enumerate(self.layers)]
        return fits_layers(layers, self.chip).problems

    def _under(self, i: int, mask: Tensor | None) -> Mapped:
        layer, known = self.layers[i][0], self._known.get(i)
        if mask is None:
            return layer
        if known is None or not torch.equal(known[0], mask):
            known = self._known[i] = (mask, layer.under(mask, self.channels))
        return known[1]


def _few_enough(each: LayerScores, search: _Search, chip: Chip) -> LayerScores:
    """Return scores of the weights that a neuron may take and an input may send; no others."""
    layers = [layer for layer, name in search.layers if name == each.name]
    if search.channels or not layers or (chip.fan_in, chip.fan_out) == (None, None):
        return each
    shape = layers[0].layer.weight.shape  # type: ignore[union-attr]
    mask, drop = (t.to("cpu").reshape(shape) for t in (each.mask, each.drop))
    mask = few_enough(mask, drop, layers, chip.fan_in, chip.fan_out)
    return replace(each, mask=mask.reshape(each.mask.shape).to(each.mask.device))


def _given_back(found: Sequence[LayerScores], kept: list[Tensor], search: _Search) -> list[Tensor]:
    """Return masks of which none can be wider alone; the most pruned layers are asked first."""
    numbers = count(kept)
    for i in sorted(range(len(found)), key=lambda i: numbers[i] / found[i].size):
        low, high = numbers[i], int(found[i].mask.sum()) + 1
        while high - low > 1:
            middle = (low + high) // 2
            fits = not search.problems(found, _with_units(found, kept, i, middle))
            low, high = (middle, high) if fits else (low, middle)
        kept = _with_units(found, kept, i, low)
    return kept


def _with_units(
    found: Sequence[LayerScores], kept: list[Tensor], which: int, number: int
) -> list[Tensor]:
    (wider,) = keep_top([found[which]], number, None)
    return [*kept[:which], wider, *kept[which + 1 :]]
