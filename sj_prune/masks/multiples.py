"""Numbers of kept channels that hardware likes: multiples of 8, 16 or 32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


def allowed_counts(size: int, multiple: int, least: int = 1) -> list[int]:
    """Return how many of `size` units may be kept, in ascending order.

    The multiples from `least` on, one at least, and all of them: what is kept whole stays as it is,
    and a group smaller than one multiple is whole always.
    """
    first = max(1, math.ceil(least / multiple)) * multiple
    return [*range(first, size, multiple), size]


class _Division(NamedTuple):
    """What has been given to the groups so far: how far that is, and the counts, last first."""

    moved: float
    last: int
    before: _Division | None


def nearest_counts(
    counts: Sequence[int], allowed: Sequence[Sequence[int]], total: int
) -> list[int]:
    """Round counts to allowed ones, up or down, so that their sum is as near to `total` as any.

    A count that is allowed stays; another goes to the next below or above it, so that no group is
    moved by more than the distance of two allowed counts, nor the sum from that of `counts` by more
    than half of it. Of two sums as near the smaller is taken. Among the divisions of that sum the
    one is returned that minimizes ``sum (new - old)^2 / old``, the distance of Webster's
    apportionment: where the sum admits it every count goes to the nearer side.

    Args:
        counts: one a group.
        allowed: counts that each group may have, in ascending order.
        total: that `counts` add up to.
    """
    found: dict[int, _Division] = {0: _Division(0.0, 0, None)}
    for n, options in zip(counts, allowed, strict=True):
        longer: dict[int, _Division] = {}
        for option in _beside(n, options):
            distance = (option - n) ** 2 / max(n, 1)
            for given, shorter in found.items():
                moved, known = shorter.moved + distance, longer.get(given + option)
                if known is None or moved < known.moved:
                    longer[given + option] = _Division(moved, option, shorter)
        found = longer
    division = found[min(found, key=lambda given: (abs(given - total), given))]
    result = []
    while division.before is not None:
        result.append(division.last)
        division = division.before
    return result[::-1]


def _beside(n: int, options: Sequence[int]) -> set[int]:
    """Return the options next to `n`, or itself."""
    below, above = [o for o in options if o <= n][-1:], [o for o in options if o >= n][:1]
    return {*below, *above}
