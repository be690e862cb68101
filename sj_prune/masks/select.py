"""Exact top-k over several tensors at once, without sorting or joining them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["count", "kth_largest", "top_k"]

# Below this many values one selection over all of them is cheapest.
_SMALL = 1 << 20
_SAMPLE = 1 << 18


def count(masks: Sequence[Tensor]) -> list[int]:
    """Return the number of True entries of each mask with one transfer to the host."""
    if not masks:
        return []
    device = masks[0].device
    return torch.stack([mask.count_nonzero().to(device) for mask in masks]).tolist()


def kth_largest(values: Sequence[Tensor], k: int) -> Tensor:
    """Return the k-th largest of all `values` (1-D tensors), 1 <= k <= their number.

    A strided sample brackets the answer; only what lies inside the bracket is selected from. Two
    reads of every value and no sort: 100 million values cost about as much as reading them.
    """
    total = sum(v.numel() for v in values)
    if total > _SMALL:
        found = _bracketed(values, k, total)
        if found is not None:
            return found
    return _select(torch.cat([v.to(values[0].device) for v in values]), k)


def _select(x: Tensor, k: int) -> Tensor:
    return torch.kthvalue(x, x.numel() - k + 1).values


def _bracketed(values: Sequence[Tensor], k: int, total: int) -> Tensor | None:
    stride = total // _SAMPLE
    sample = torch.cat([v[::stride].to(values[0].device) for v in values]).sort().values
    n = sample.numel()
    quantile = 1.0 - k / total
    # Six standard deviations of a sample quantile; a miss only costs the full selection.
    margin = 6.0 * (quantile * (1.0 - quantile) / n) ** 0.5 + 2.0 / n
    low = sample[max(0, int((quantile - margin) * n))]
    high = sample[min(n - 1, int((quantile + margin) * n) + 1)]
    inside, above = [], 0
    for v in values:
        lo, hi = low.to(v.device), high.to(v.device)
        above += int((v > hi).count_nonzero())
        inside.append(v[(v > lo) & (v <= hi)].to(values[0].device))
    pool = torch.cat(inside)
    rank = k - above
    if 1 <= rank <= pool.numel():
        return _select(pool, rank)
    # What equals the lower end stays out of the pool: weights that are pruned already all do.
    ties = sum(int((v == low.to(v.device)).count_nonzero()) for v in values)
    return low if pool.numel() < rank <= pool.numel() + ties else None


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
    values = [score[mask] for score, mask in zip(scores, among, strict=True)]
    total = sum(v.numel() for v in values)
    if k >= total:
        return [mask.clone() for mask in among]
    threshold = kth_largest(values, k)
    del values
    pairs = list(zip(scores, among, strict=True))
    above = [(s > threshold.to(s.device)) & m for s, m in pairs]
    tied = [(s == threshold.to(s.device)) & m for s, m in pairs]
    missing = k - sum(count(above))
    if not exact:
        chosen = tied if float(threshold) > 0 else [torch.zeros_like(m) for m in tied]
    elif ties is not None:
        chosen = top_k(ties, missing, tied, generator=generator)
    else:
        chosen = _random(tied, missing, generator)
    return [a | c for a, c in zip(above, chosen, strict=True)]


def _random(among: Sequence[Tensor], k: int, generator: torch.Generator | None) -> list[Tensor]:
    """Take `k` of the candidates by a seeded order; nothing is drawn when all are taken."""
    sizes = count(among)
    if k >= sum(sizes):
        return [mask.clone() for mask in among]
    picks = torch.randperm(sum(sizes), generator=generator)[:k]
    chosen, start = [], 0
    for mask, size in zip(among, sizes, strict=True):
        mine = picks[(picks >= start) & (picks < start + size)] - start
        result = torch.zeros_like(mask, memory_format=torch.contiguous_format)
        places = mask.flatten().nonzero().squeeze(1)[mine.to(mask.device)]
        result.view(-1)[places] = True
        chosen.append(result)
        start += size
    return chosen
