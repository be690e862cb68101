"""Exact top-k over several tensors at once, without sorting or joining them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# Below this many values one selection over all of them is cheapest.
_SMALL = 1 << 20
_SAMPLE = 1 << 18
# A few False entries of a mask: so many at most, out of so many places.
_FEW, _PLACES = 256, 4096


def count(masks: Iterable[Tensor]) -> list[int]:
    """Return the number of True entries of each mask with one transfer to the host."""
    found = [mask.count_nonzero() for mask in masks]
    return torch.stack([n.to(found[0].device) for n in found]).tolist() if found else []


def sampled(mask: Tensor) -> Tensor:
    """Return flat indices of some False entries, evenly spaced; of all, where there are few."""
    stride = max(1, mask.numel() // _PLACES)
    places = torch.arange(0, mask.numel(), stride, device=mask.device)
    found = places[~mask.take(places)]
    return found[:: max(1, -(-len(found) // _FEW))]


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
        total = sum(v.numel() for v in values)
    else:
        total = sum(count(among))
    return _kth_largest(values, k, total, among)


def _kth_largest(values: Sequence[Tensor], k: int, total: int, among: Sequence[Tensor]) -> Tensor:
    """As `kth_largest`, where the number of candidates is known."""
    if total > _SMALL:
        found = _bracketed(values, k, total, among)
        if found is not None:
            return found
    return _select(_join([v[m] for v, m in zip(values, among, strict=True)]), k)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.to(parts[0].device) for part in parts])


def _select(x: Tensor, k: int) -> Tensor:
    return torch.kthvalue(x, x.numel() - k + 1).values


def _sample(values: Sequence[Tensor], among: Sequence[Tensor]) -> Tensor:
    """Return candidates from evenly spaced places, sorted; about `_SAMPLE` places are looked at."""
    stride = max(1, sum(v.numel() for v in values) // _SAMPLE)
    found = []
    for v, m in zip(values, among, strict=True):
        places = torch.arange(0, v.numel(), stride, device=v.device)
        found.append(v.take(places)[m.take(places)])  # whatever the strides of each
    return _join(found).sort().values


def _bracketed(
    values: Sequence[Tensor], k: int, total: int, among: Sequence[Tensor]
) -> Tensor | None:
    sample = _sample(values, among)
    n = sample.numel()
    if n == 0:
        return None
    quantile = 1.0 - k / total
    # Six standard deviations of a sample quantile; a miss only costs the full selection.
    margin = 6.0 * (quantile * (1.0 - quantile) / n) ** 0.5 + 2.0 / n
    low = sample[max(0, int((quantile - margin) * n))]
    high = sample[min(n - 1, int((quantile + margin) * n) + 1)]
    inside, above = [], []
    for v, m in zip(values, among, strict=True):
        # In place: of masks this large, fresh memory costs more than the arithmetic.
        over = (v > low.to(v.device)).logical_and_(m)
        inner = (v <= high.to(v.device)).logical_and_(over)
        inside.append(v[inner])
        above.append(over.logical_xor_(inner))
    pool = _join(inside)
    rank = k - sum(count(above))
    if 1 <= rank <= pool.numel():
        return _select(pool, rank)
    # What equals the lower end stays out of the pool: weights that are pruned already all do.
    ties = count(_both([v == low.to(v.device) for v in values], among))
    return low if pool.numel() < rank <= pool.numel() + sum(ties) else None


def top_k(
    scores: Sequence[Tensor],
    k: int,
    among: Sequence[Tensor],
    *,
    ties: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
    exact: bool = True,
) -> list[Tensor]:
    """Return masks of the `k` best scores among the candidates, over all tensors together.

    Args:
        scores: finite values, any shapes.
        k: how many to take, at most the number of candidates.
        among: candidates, a bool tensor like each score.
        ties: a second score that decides between equal scores; what is still equal is decided by
            a seeded order.
        generator: CPU generator of that order.
        exact: False takes every candidate that equals the k-th score, unless that score is zero.
    """
    if k <= 0:
        return [torch.zeros_like(mask) for mask in among]
    total = sum(count(among))
    if k >= total:
        return [mask.clone() for mask in among]
    threshold = _kth_largest(scores, k, total, among)
    above = _both([s > threshold.to(s.device) for s in scores], among)
    tied = _both([s == threshold.to(s.device) for s in scores], among)
    missing = k - sum(count(above))
    if not exact:
        chosen = tied if float(threshold) > 0 else [torch.zeros_like(m) for m in tied]
    elif ties is not None:
        chosen = top_k(ties, missing, tied, generator=generator)
    else:
        chosen = _random(tied, missing, generator)
    return [a.logical_or_(c) for a, c in zip(above, chosen, strict=True)]


def _both(masks: Sequence[Tensor], among: Sequence[Tensor]) -> list[Tensor]:
    """Return which candidates are True, in the memory of `masks`."""
    return [mask.logical_and_(m) for mask, m in zip(masks, among, strict=True)]


def _random(among: Sequence[Tensor], k: int, generator: torch.Generator | None) -> list[Tensor]:
    """Take `k` of the candidates by a seeded order; nothing is drawn when all are taken."""
    sizes = count(among)
    if k >= sum(sizes):
        return [mask.clone() for mask in among]
    picks = torch.randperm(sum(sizes), generator=generator, device="cpu")[:k]
    chosen, start = [], 0
    for mask, size in zip(among, sizes, strict=True):
        mine = picks[(picks >= start) & (picks < start + size)] - start
        result = torch.zeros_like(mask, memory_format=torch.contiguous_format)
        places = mask.flatten().nonzero().squeeze(1)[mine.to(mask.device)]
        result.view(-1)[places] = True
        chosen.append(result)
        start += size
    return chosen
