"""The Shapley value of channels: what each is worth over all sets of the others, sampled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sj_prune._checks import check_choice, check_integer
from sj_prune.analysis.looking import Forward, Labeled, Value, accuracy, labeled, looking, valued
from sj_prune.masks.bindings import Strict
from sj_prune.masks.manager import MaskManager
from sj_prune.masks.schedule import Manual
from sj_prune.reports.tables import optional, table
from sj_prune.run.scores import drop_scores
from sj_prune.trained.calibration import Loss, calibrate, mean_cross_entropy
from sj_prune.trained.prune import at_once
from sj_prune.wrapper import PruningWrapper

_HEADERS = ("group", "channel", "Shapley value", "standard error", "score")


@dataclass(frozen=True)
class Shapley:
    """The Shapley value of every channel beside its score; `str` gives the table.

    Attributes:
        values: ``[units]`` by group: what a channel adds, on average over the sampled orders.
        errors: the standard errors of `values`.
        scores: what the method drops channels by, low first.
        alive: which channels are not silent in the network anyway; the others are worth 0, and left
            out of table, plot and correlation.
        method: its name.
        permutations: how many orders were sampled.
        whole: value of the network with all channels; `values` add up to it less `none`.
        none: value with all of these channels silent.
    """

    values: dict[str, Tensor]
    errors: dict[str, Tensor]
    scores: dict[str, Tensor]
    alive: dict[str, Tensor]
    method: str
    permutations: int
    whole: float
    none: float

    def correlation(self, group: str | None = None) -> float | None:
        """Return Spearman's rank correlation of scores and values; None where one is constant.

        Args:
            group: of its channels; by default of all.

        Raises:
            ValueError: for an unknown group.
        """
        from scipy.stats import rankdata

        if group is not None:
            check_choice("group", group, list(self.values))
        names = [group] if group is not None else list(self.values)
        pair = [
            torch.cat([each[n][self.alive[n]] for n in names])
            for each in (self.values, self.scores)
        ]
        ranks = torch.stack([torch.from_numpy(rankdata(x.double().numpy())) for x in pair])
        found = float(torch.corrcoef(ranks)[0, 1]) if ranks.shape[1] > 1 else math.nan
        return None if math.isnan(found) else found

    def __str__(self) -> str:
        return self._text(markdown=False)

    def to_markdown(self) -> str:
        """Return the same in GitHub's Markdown."""
        return self._text(markdown=True)

    def _text(self, *, markdown: bool) -> str:
        cells = [
            [
                group,
                str(i),
                *(f"{round(float(kind[group][i]), 12):.3g}" for kind in self._columns()),
            ]
            for group, alive in self.alive.items()
            for i in alive.nonzero().flatten().tolist()
        ]
        silent = sum(int((~alive).sum()) for alive in self.alive.values())
        note = (
            f"rank correlation with the score of {self.method}: {optional(self.correlation())}; "
            f"{self.permutations} orders; all channels: {self.whole:.4g}, none: {self.none:.4g}"
            + (f"; {silent} silent channels, worth 0, are left out" if silent else "")
        )
        return "\n\n".join([table(_HEADERS, cells, markdown), note])

    def _columns(self) -> tuple[dict[str, Tensor], ...]:
        return self.values, self.errors, self.scores


def shapley(
    net: nn.Module,
    loader: Iterable[Any],
    method: Any = None,  # noqa: ANN401
    *,
    groups: Iterable[str] | None = None,
    permutations: int = 32,
    batches: int = 4,
    value: Value = accuracy,
    loss: Loss = mean_cross_entropy,
    forward: Forward | None = None,
    skip: Iterable[str] = (),
    seed: int = 0,
) -> Shapley:
    """Estimate the Shapley value of channels, and score them as a pruning method does.

    The players are channels, coupled ones as one; a set of them is worth what the network reaches
    with all others pruned: silent at their norm, or without filter and bias where no norm follows.
    Sampled: in each of some random orders every channel is worth what it adds to those before it;
    the mean estimates its Shapley value without bias, and the values add up exactly. One order
    costs as many passes over the batches as there are channels that are not silent anyway; no set
    is measured twice.

    Args:
        net: any network, wrapped or not; it is left as it is.
        loader: yields ``(x, y)`` as `sj_prune.prune` takes them, y class numbers ``[N]``; the first
            `batches` of it are held in memory.
        method: a method that prunes channels, for the scores; by default that of the wrapper.
        groups: names of those whose channels are the players, as in a wrapper's `masks`; by default
            all, and the method's ranking over all layers is what is compared.
        permutations: orders that are sampled, at least 2.
        batches: how many batches to measure on, and to calibrate the scores.
        value: instead of accuracy, called as ``value(output, y)``, a mean over the batch.
        loss: as for `sj_prune.prune`, of methods that score gradients.
        forward: as for `clusters`.
        skip: names of layers whose channels are no players.
        seed: of the orders; the generators of torch, NumPy and Python are left as they are.

    Returns:
        Values, errors and scores by group.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: for a method of single weights or one that prunes in training alone, unknown
            groups, batches without labels.
    """
    if method is None and isinstance(net, PruningWrapper):
        method = net.method
    plan = at_once(method)
    if not plan.structure.sleeps:
        raise ValueError(
            f"Expected a method that prunes channels but {plan.name} prunes {plan.structure.unit}: "
            "give one such as FilterNorm() or SCA() as method="
        )
    if check_integer("permutations", permutations) < 2:
        raise ValueError(f"Expected at least 2 permutations, for the error, but got {permutations}")
    generator = torch.Generator().manual_seed(check_integer("seed", seed, 0))
    plan = replace(plan, schedule=Manual(final=0.0), binding=Strict(), rewrite=None)
    with looking(net, forward) as twin:
        held = list(labeled(twin, loader, batches))
        model = PruningWrapper(twin, plan, example_input=held[0][0], skip=skip, seed=seed)
        calibrate(model, held, loss)
        run = model.session.run
        scores = {s.name: s.drop.detach().cpu().flatten() for s in drop_scores(twin, run, None)}
        scores = {name: scores[name] for name in _chosen(groups, scores)}
        game = _Game(twin, model.masks, list(scores), held, value)
        found = torch.stack([game.order(generator) for _ in range(permutations)])
        ends = game.worth(game.alive), game.worth(torch.zeros_like(game.alive))
    mean, error = found.mean(0), found.std(0) / permutations**0.5
    sides = game.split(mean), game.split(error), scores, game.split(game.alive)
    return Shapley(*sides, plan.name, permutations, *ends)


def _chosen(groups: Iterable[str] | None, known: Mapping[str, Any]) -> list[str]:
    chosen = list(known) if groups is None else list(groups)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(f"Expected groups to be among {list(known)} but got {unknown or 'none'}")
    return chosen


class _Game:
    """What sets of channels are worth; those of all groups in one row."""

    def __init__(
        self,
        net: nn.Module,
        masks: MaskManager,
        names: list[str],
        batches: list[Labeled],
        value: Value,
    ) -> None:
        self.net, self.masks, self.names = net, masks, names
        self.measured = (batches, value)
        zeros = masks.zeros()
        self.sizes = [len(masks.alive(name)) for name in names]
        self.alive = torch.cat([~zeros[name].cpu() for name in names])
        self.known: dict[bytes, float] = {}

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Return values of all channels by group."""
        return dict(zip(self.names, values.split(self.sizes), strict=True))

    def worth(self, present: Tensor) -> float:
        """Return the value with these channels present, and no others."""
        key = np.packbits(present.numpy()).tobytes()
        if key not in self.known:
            self.masks.install(self.split(present))
            self.known[key] = valued(self.net, *self.measured)
        return self.known[key]

    def order(self, generator: torch.Generator) -> Tensor:
        """Return what each channel adds to those before it in a random order; 0 if silent."""
        players = self.alive.nonzero().flatten()
        present, added = torch.zeros_like(self.alive), torch.zeros(len(self.alive)).double()
        before = self.worth(present)
        for i in players[torch.randperm(len(players), generator=generator)].tolist():
            present[i] = True
            after = self.worth(present)
            added[i] = after - before
            before = after
        return added
