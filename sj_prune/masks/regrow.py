"""The one mask algorithm: drop the lowest, regrow the highest, keep exactly as many as asked.

Layers are ranked in pools: all together for a global method, one by one for a layer-wise one. In
each pool of target size K, of which ``k = floor(regrow K)`` are to be grown,

    survivors = the K - k alive units with the highest drop score,
    grown     = the k units with the highest growth score among all that did not survive,

so the dropped lie within the old mask, the grown are disjoint from the survivors, and their sum is
K exactly, under any ties. No layer falls below its floor, one unit at least.

Where layers keep multiples of a number, each of these counts is rounded up or down, so that the
total is as near to K as that admits, and each layer is a pool of its own with the new count; as
many are grown as before, and survivors make up for the difference. What a rounding before took away
is not grown in exchange for others, and where nothing regrows it is not asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sj_prune.masks.allocation import Allocation, Pool
from sj_prune.masks.multiples import allowed_counts, nearest_counts
from sj_prune.masks.select import count, distinct, top_k
from sj_prune.masks.units import LayerScores, keep_top


@dataclass(frozen=True)
class LayerUpdate:
    """New state of one layer: `survivors` of the old mask, `grown` beside them."""

    survivors: Tensor
    grown: Tensor

    @property
    def mask(self) -> Tensor:
        """The new mask, True = kept."""
        return self.survivors | self.grown


def _check_scores(layer: LayerScores) -> None:
    for kind, score in (("drop", layer.drop), ("growth", layer.grow), ("tie", layer.tie)):
        if score is None or score.numel() == 0:
            continue
        if score.shape != layer.mask.shape:
            raise ValueError(
                f"Expected {kind} scores of layer {layer.name!r} in the shape "
                f"{tuple(layer.mask.shape)} but got {tuple(score.shape)}"
            )
        # One pass for both: a NaN anywhere makes both ends NaN.
        low, high = torch.aminmax(distinct(score))
        if not (torch.isfinite(high) & torch.isfinite(low)):
            raise ValueError(
                f"Expected finite {kind} scores for layer {layer.name!r} but found NaN or inf: "
                "look for a diverged loss or an overflow in its weights, gradients or activity; "
                "masks were left as they are"
            )


def prune_and_regrow(
    layers: Sequence[LayerScores],
    keep: int,
    allocation: Allocation,
    *,
    regrow: float = 0.0,
    of: str = "kept",
    across_layers: bool = False,
    exact_ties: bool = True,
    generator: torch.Generator | None = None,
) -> list[LayerUpdate]:
    """Return the new masks of all layers; nothing is modified.

    Args:
        layers: scores and present masks.
        keep: number of units that are to be alive afterwards, over all layers; as near to it as
            `LayerScores.multiple` allows.
        allocation: how many of them each layer gets.
        regrow: fraction of the units that is grown anew, in [0, 1).
        of: what `regrow` is a fraction of: the units "kept"; "all" units, kept or not (SCA's q); or
            those alive "before": that many are dropped, and as many grown as reach `keep`; or
            "zero": dropped are those with a drop score of 0, however many.
        across_layers: rank growth over all layers together, instead of within each.
        exact_ties: False grows every unit that ties with the last one (more than asked).
        generator: CPU generator that breaks what is left of ties.

    Raises:
        ValueError: for NaN or infinite scores (names the layer); for a `keep` out of reach.
    """
    for layer in layers:
        _check_scores(layer)
    _check_reach(layers, keep)
    keep = _without_step_back(layers, keep)

    def asked(keep: int, members: Sequence[LayerScores]) -> int:
        """Return how many are to be grown where so many of some layers' units are kept."""
        if of == "kept":
            return int(regrow * keep)
        if of == "all":
            return round(regrow * sum(layer.size for layer in members))
        alive = sum(count([layer.mask for layer in members]))
        if of == "zero":
            gone = sum(count([layer.mask & (layer.drop == 0) for layer in members]))
        else:
            gone = int(regrow * alive)
        return max(0, keep - (alive - gone))

    pools = allocation.pools(layers, keep, across_layers=across_layers, generator=generator)
    updates: dict[int, LayerUpdate] = {}
    for pool in pools:
        members = [layers[i] for i in pool.layers]
        found = _update_pool(members, pool.keep, asked(pool.keep, members), exact_ties, generator)
        updates.update(zip(pool.layers, found, strict=True))
    exact = [updates[i] for i in range(len(layers))]
    if all(layer.multiple == 1 for layer in layers):
        return exact
    return _on_multiples(layers, exact, keep, pools, asked, generator)


def _on_multiples(
    layers: Sequence[LayerScores],
    exact: Sequence[LayerUpdate],
    keep: int,
    pools: Sequence[Pool],
    asked: Callable[[int, Sequence[LayerScores]], int],
    generator: torch.Generator | None,
) -> list[LayerUpdate]:
    """Return the updates that keep multiples, beside the exact ones."""
    kept = count([update.mask for update in exact])
    grown = count([update.grown for update in exact])
    alive = count([layer.mask for layer in layers])
    allowed = []
    for layer, n, most in zip(layers, kept, alive, strict=True):
        options = allowed_counts(layer.size, layer.multiple, layer.floor)
        if layer.grow is None:  # nothing comes back here
            options = [option for option in options if option <= most] or [n]
        allowed.append(options)
    counts = nearest_counts(kept, allowed, keep)
    result = list(exact)
    for pool in pools:
        asked_for = asked(pool.keep, [layers[i] for i in pool.layers])
        new_in_all = sum(grown[i] for i in pool.layers)
        # More than asked for are grown to fill what an earlier rounding took (or as ties, which
        # make the pool larger): that is no reason to exchange channels.
        filled = new_in_all > asked_for and sum(kept[i] for i in pool.layers) == pool.keep
        for i in pool.layers:
            # Nor if the floors of survivors left no room to grow: a layer grows its own part.
            own = filled or new_in_all < asked_for
            new = asked(counts[i], [layers[i]]) if own else grown[i]
            if (counts[i], new) != (kept[i], grown[i]):
                layer = replace(layers[i], floor=1)
                (result[i],) = _update_pool([layer], counts[i], new, True, generator)
    return result


def _without_step_back(layers: Sequence[LayerScores], keep: int) -> int:
    """Return `keep`, or what is alive where that is `keep` rounded and nothing could come back."""
    nearest = max((layer.multiple for layer in layers), default=1) // 2
    if not nearest or any(layer.grow is not None for layer in layers):
        return keep
    alive = sum(count([layer.mask for layer in layers]))
    return alive if alive < keep <= alive + nearest else keep


def _check_reach(layers: Sequence[LayerScores], keep: int) -> None:
    total = sum(layer.size for layer in layers)
    least = sum(layer.floor for layer in layers)
    if not least <= keep <= total:
        raise ValueError(
            f"Expected to keep between {least} (the floors of {len(layers)} layers: none is ever "
            f"emptied) and {total} units but got {keep}; the sparsity reachable here is at most "
            f"{1 - least / total:.6g}"
        )


def _update_pool(
    layers: Sequence[LayerScores],
    keep: int,
    grown: int,
    exact_ties: bool,
    generator: torch.Generator | None,
) -> list[LayerUpdate]:
    alive = sum(count([layer.mask for layer in layers]))
    growable = all(layer.grow is not None for layer in layers)
    # A pool that is kept whole drops nothing: it could only grow the same units anew, from 0.
    whole = keep == sum(layer.size for layer in layers)
    grown = grown if growable and not whole else 0
    survive = min(max(keep - grown, sum(layer.floor for layer in layers)), alive)
    if survive < keep and not growable:
        names = ", ".join(layer.name for layer in layers[:3])
        raise ValueError(
            f"Expected at least {keep} units alive in {names}{', ...' if len(layers) > 3 else ''} "
            f"but only {alive} are, and this method does not regrow them: ask for a sparsity no "
            "lower than the present one"
        )
    survivors = keep_top(layers, survive, generator)
    if survive == keep:
        return [LayerUpdate(s, s.new_zeros(()).expand_as(s)) for s in survivors]
    new = top_k(
        [layer.grow for layer in layers if layer.grow is not None],
        keep - survive,
        survivors,
        outside=True,
        ties=_ties(layers),
        generator=generator,
        exact=exact_ties,
    )
    return [LayerUpdate(s, g) for s, g in zip(survivors, new, strict=True)]


def _ties(layers: Sequence[LayerScores]) -> list[Tensor] | None:
    ties = [layer.tie for layer in layers if layer.tie is not None]
    return ties if len(ties) == len(layers) else None
