"""Exact top-k over several tensors at once, without sorting or joining them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

# Values at a time on a CPU: what is computed of them stays in the cache.
_BLOCK = 1 << 18
# Below this many values one selection over all of them is cheapest.
_SMALL = 1 << 20
_SAMPLE = 1 << 18
# A few False entries of a mask: so many at most, out of so many places.
_FEW, _PLACES = 256, 4096


def count(masks: Iterable[Tensor]) -> list[int]:
    """Return the number of True entries of each mask with one transfer to the host."""
    return _numbers([_count(mask) for mask in masks])


def _count(mask: Tensor) -> Tensor:
    """Return the number of True entries, where they are."""
    if mask.device.type != "cpu":
        return mask.count_nonzero()
    return torch.tensor(np.count_nonzero(mask.numpy()), device="cpu")  # four times as fast


def _numbers(found: Sequence[Tensor]) -> list[int]:
    return torch.stack([n.to(found[0].device) for n in found]).tolist() if found else []


def sampled(mask: Tensor) -> Tensor:
    """Return flat indices of some False entries, evenly spaced; of all, where there are few."""
    stride = max(1, mask.numel() // _PLACES)
    places = torch.arange(0, mask.numel(), stride, device=mask.device)
    found = places[~mask.take(places)]
    return found[:: max(1, -(-len(found) // _FEW))]


@dataclass(frozen=True)
class _Candidates:
    """Which values count; found block by block, for masks of all would take their memory.

    Attributes:
        masks: a bool tensor like each of the values.
        outside: those count where masks are False.
        ties: scores and a number each: those count whose scores equal it.
    """

    masks: Sequence[Tensor]
    outside: bool = False
    ties: tuple[tuple[Sequence[Tensor], Tensor], ...] = ()

    def of(self, i: int, part: Callable[[Tensor], Tensor]) -> Tensor:
        """Return which of a part of the i-th tensor count; not to be written."""
        found = part(self.masks[i])
        found = ~found if self.outside else found
        for scores, value in self.ties:
            found = found & (distinct(part(scores[i])) == value.to(found.device))
        return found

    def where(self, scores: Sequence[Tensor], value: Tensor) -> _Candidates:
        """Return those of them that score so."""
        return replace(self, ties=(*self.ties, (scores, value)))

    def blocks(self) -> Iterator[tuple[int, slice, Tensor]]:
        """Yield all of them: which tensor, which rows, which of these count."""
        for i, mask in enumerate(self.masks):
            rows = max(1, _BLOCK * len(mask) // max(1, mask.numel()))
            rows = rows if mask.device.type == "cpu" else max(1, len(mask))
            for start in range(0, len(mask), rows):
                here = slice(start, start + rows)
                yield i, here, self.of(i, lambda t, here=here: t[here])  # type: ignore[misc]


def distinct(values: Tensor) -> Tensor:
    """Return values once that are expanded: scores of channels."""
    for dim, stride in enumerate(values.stride()):
        values = values if stride else values.narrow(dim, 0, min(1, values.shape[dim]))
    return values


def kth_largest(values: Sequence[Tensor], k: int, among: Sequence[Tensor] | None = None) -> Tensor:
    """Return the k-th largest of all `values`, 1 <= k <= their number.

    A strided sample brackets the answer; only what lies inside the bracket is gathered and selected
    from. Two reads of every value and no sort: 100 million values cost about as much as reading
    them.

    Args:
        values: tensors of any shapes.
        k: the rank, 1 for the largest.
        among: which of them count, a bool tensor like each; None: all do.
    """
    if among is None:
        among = [torch.ones((), dtype=torch.bool, device=v.device).expand_as(v) for v in values]
    candidates = _Candidates(among)
    return _kth_largest(values, k, _total(candidates), candidates)


def _total(among: _Candidates) -> int:
    return sum(count(found for _, _, found in among.blocks()))


def _kth_largest(values: Sequence[Tensor], k: int, total: int, among: _Candidates) -> Tensor:
    """As `kth_largest`, where the number of candidates is known."""
    if total > _SMALL:
        found = _bracketed(values, k, total, among)
        if found is not None:
            return found
    return _select(_join([values[i][here][found] for i, here, found in among.blocks()]), k)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.to(parts[0].device) for part in parts])


def _select(x: Tensor, k: int) -> Tensor:
    return torch.kthvalue(x, x.numel() - k + 1).values


def _sample(values: Sequence[Tensor], among: _Candidates) -> Tensor:
    """Return candidates from evenly spaced places, sorted; about `_SAMPLE` places are looked at."""
    stride = max(1, sum(v.numel() for v in values) // _SAMPLE)
    taken, there = [], []
    for i, v in enumerate(values):
        places = torch.arange(0, v.numel(), stride, device=v.device)
        there.append(among.of(i, lambda t, places=places: t.take(places)))  # type: ignore[misc]
        taken.append(v.take(places))  # whatever the strides of each
    # A device is waited for once, not for every tensor.
    return _join(taken)[_join(there)].sort().values


def _bracketed(values: Sequence[Tensor], k: int, total: int, among: _Candidates) -> Tensor | None:
    sample = _sample(values, among)
    n = sample.numel()
    if n == 0:
        return None
    quantile = 1.0 - k / total
    # Six standard deviations of a sample quantile; a miss only costs the full selection.
    margin = 6.0 * (quantile * (1.0 - quantile) / n) ** 0.5 + 2.0 / n
    first, last = int((quantile - margin) * n), int((quantile + margin) * n) + 1
    low = sample[first] if first > 0 else sample.new_tensor(-torch.inf)
    high = sample[last] if last < n else sample.new_tensor(torch.inf)
    inside, over = [], []
    for i, here, found in among.blocks():
        v = values[i][here]
        found = found & (distinct(v) > low.to(v.device))
        over.append(_count(found))
        inside.append(v[found & (distinct(v) <= high.to(v.device))])
    pool = _join(inside)
    rank = k - sum(_numbers(over)) + pool.numel()
    if 1 <= rank <= pool.numel():
        return _select(pool, rank)
    # What equals the lower end stays out of the pool: weights that are pruned already all do.
    ties = pool.numel() < rank and _total(among.where(values, low))
    return low if pool.numel() < rank <= pool.numel() + ties else None


def top_k(
    scores: Sequence[Tensor],
    k: int,
    among: Sequence[Tensor],
    *,
    outside: bool = False,
    ties: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
    exact: bool = True,
) -> list[Tensor]:
    """Return masks of the `k` best scores among the candidates, over all tensors together.

    Args:
        scores: finite values, any shapes.
        k: how many to take, at most the number of candidates.
        among: candidates, a bool tensor like each score.
        outside: the candidates are where `among` is False.
        ties: a second score that decides between equal scores; what is still equal is decided by
            a seeded order.
        generator: CPU generator of that order.
        exact: False takes every candidate that equals the k-th score, unless that score is zero.
    """
    chosen = [torch.zeros_like(mask) for mask in among]
    candidates = _Candidates(among, outside)
    if k > 0:
        keys = [scores] if ties is None else [scores, ties]
        _take(chosen, keys, k, candidates, generator, exact=exact)
    return chosen


def _take(
    chosen: Sequence[Tensor],
    keys: Sequence[Sequence[Tensor]],
    k: int,
    among: _Candidates,
    generator: torch.Generator | None,
    *,
    exact: bool = True,
) -> None:
    """Write the `k` best candidates into `chosen`, by the first of `keys`, ties by the next."""
    total = _total(among)
    if k >= total:
        for i, here, found in among.blocks():
            chosen[i][here].logical_or_(found)
        return
    if not keys:
        _random(chosen, among, total, k, generator)
        return
    scores, *others = keys
    threshold, reach = _kth_largest(scores, k, total, among), []
    for i, here, found in among.blocks():
        found = found & (distinct(scores[i][here]) >= threshold.to(found.device))
        chosen[i][here].logical_or_(found)
        reach.append(_count(found))
    if sum(_numbers(reach)) == k or (not exact and float(threshold) > 0):
        return
    tied, ties = among.where(scores, threshold), []
    for i, here, found in tied.blocks():
        chosen[i][here].logical_and_(~found)
        ties.append(_count(found))
    if exact:
        missing = k - sum(_numbers(reach)) + sum(_numbers(ties))
        _take(chosen, others, missing, tied, generator)


def _random(
    chosen: Sequence[Tensor],
    among: _Candidates,
    total: int,
    k: int,
    generator: torch.Generator | None,
) -> None:
    """Take `k` of the candidates by a seeded order; nothing is drawn when all are taken."""
    drawn = torch.zeros(total, dtype=torch.bool, device="cpu")
    drawn[torch.randperm(total, generator=generator, device="cpu")[:k]] = True
    numbers = _numbers([_count(found) for _, _, found in among.blocks()])  # waits once
    parts = zip(among.blocks(), drawn.split(numbers), strict=True)
    for (i, here, found), part in parts:
        chosen[i][here].masked_scatter_(found, part.to(found.device))
