"""The statistics of a neuron layer: what is kept of each sample and channel (METHODS: statistics).

A row of `TABLE` is all that a statistic is made of: recording and observed nodes, the reference and
the engines take it from here. Functions of spikes ``[T, N, C, *] -> [N, C]`` are statistics too, by
the name ``module:function``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Statistic(NamedTuple):
    """A quantity of every step, averaged over time, then over the map.

    Attributes:
        of: what it is a function of: the spikes ``"s"``, the potential after reset ``"v"``, that
            before it ``"h"``, or the surrogate's derivative there ``"g"``.
        step: this function, elementwise; None: the number itself.
        code: the same in C++, of `s`, `v`, `h` or `g` and the functions of ``engines/step.h``.
        maximum: of the map the **max** counts, not the mean.
    """

    of: str
    step: Callable[[Tensor], Tensor] | None
    code: str
    maximum: bool = False


#: name -> definition; the position in this table is the statistic's bit in a call of an engine.
TABLE: dict[str, Statistic] = {
    "firing_rate": Statistic("s", None, "s"),
    "abs_potential": Statistic("v", torch.abs, "absolute(v)"),
    "abs_charge": Statistic("h", torch.abs, "absolute(h)"),
    "criticality_mean": Statistic("g", None, "g"),
    "criticality_max": Statistic("g", None, "g", maximum=True),
}
#: what a new node keeps
STATISTICS: tuple[str, ...] = tuple(TABLE)


def check_statistics(names: Iterable[str]) -> tuple[str, ...]:
    """Return `names` in the order of `TABLE`, names of functions behind them.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    wanted = {names} if isinstance(names, str) else set(names)
    functions = sorted(name for name in wanted if is_function(name))
    if unknown := wanted.difference(TABLE, functions):
        raise ValueError(
            f"Expected statistics among {list(TABLE)} but got {sorted(map(str, unknown))}"
        )
    return (*(name for name in TABLE if name in wanted), *functions)


def is_function(name: object) -> bool:
    """Tell whether a statistic is a function of spikes, named ``module:function``."""
    return isinstance(name, str) and ":" in name


@torch.compiler.disable
@torch.no_grad()
def of_spikes(name: str, spikes: Tensor) -> Tensor:
    """Return what a function says of spikes ``[T, N, C, *]``, as ``[N, C]``.

    Raises:
        ValueError: if it returns anything else.
    """
    spikes = spikes.detach() if spikes.ndim > 2 else spikes.detach().unsqueeze(-1)
    found = pkgutil.resolve_name(name)(spikes)
    if not isinstance(found, Tensor) or found.shape != spikes.shape[1:3]:
        raise ValueError(
            f"Expected {name} to return a tensor of shape {tuple(spikes.shape[1:3])} for spikes of "
            f"shape {tuple(spikes.shape)} but got {getattr(found, 'shape', found)!r}"
        )
    return found


def completed(names: tuple[str, ...], partials: Tensor, spikes: Tensor) -> Tensor:
    """Return ``[N, C, k]`` of all names: what an engine has reduced, and functions of spikes."""
    more = [of_spikes(name, spikes) for name in names if is_function(name)]
    if not more:
        return partials
    said = torch.stack(more, -1)
    return said if len(more) == len(names) else torch.cat([partials, said.to(partials.device)], -1)


def bits(names: Collection[str]) -> int:
    """Return names as the bits of a number."""
    return sum([1 << i for i, name in enumerate(TABLE) if name in names])


def names_of(wanted: int) -> tuple[str, ...]:
    """Return the names that `bits` made a number of."""
    return tuple(name for i, name in enumerate(TABLE) if wanted >> i & 1)


def rows_of(wanted: int) -> tuple[Statistic, ...]:
    """Return the rows of `TABLE` that `bits` made a number of."""
    return tuple([row for i, row in enumerate(TABLE.values()) if wanted >> i & 1])


def macros(rows: Sequence[Statistic]) -> dict[str, object]:
    """Return the preprocessor definitions of ``engines/step.h`` for some statistics."""
    if not rows:
        return {}
    sums = list(dict.fromkeys(row.code for row in rows))
    return {
        "SJ_NAMES": len(rows),
        "SJ_SUMS": len(sums),
        "SJ_OF": hex(sum(sums.index(row.code) << 4 * k for k, row in enumerate(rows))),
        "SJ_MAXIMA": sum(row.maximum << k for k, row in enumerate(rows)),
        "SJ_STEP": " ".join(f"value[{i}] = {code};" for i, code in enumerate(sums)),
    }


class Sums:
    """Sums over the steps of one pass, reduced to a value of each sample and channel at the end.

    Args:
        names: the statistics to keep, as `check_statistics` orders them; functions are left out.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.totals: dict[str, Tensor] = {}
        # Two statistics may be of the same sum.
        self._rows = {row.code: row for name, row in TABLE.items() if name in names}

    def wants(self, *quantities: str) -> bool:
        """Tell whether a statistic is of one of ``"s"``, ``"v"``, ``"h"``, ``"g"``."""
        return any(row.of in quantities for row in self._rows.values())

    def add(self, **quantities: Tensor | None) -> None:
        """Add one step: those of `s`, `v`, `h` and `g` that are known, ``[N, *]`` each."""
        for key, row in self._rows.items():
            value = quantities.get(row.of)
            if value is None:
                continue
            if row.step is not None:
                value = row.step(value)
            total = self.totals.get(key)
            # A clone: what is added may be a tensor that its owner writes to.
            self.totals[key] = value.clone() if total is None else total.add_(value)

    def partials(self, steps: int, channel_dim: int = 1) -> list[Tensor]:
        """Return one ``[N, C]`` tensor a name; `channel_dim` is that of one step ``[N, *]``."""
        reduced = []
        for name in filter(TABLE.__contains__, self.names):
            total = self.totals[TABLE[name].code]
            # [N] has one channel; [N, C] and [N, C, *] have C of them with a map of size >= 1.
            maps = total.movedim(channel_dim, 1) if total.ndim > 1 else total.unsqueeze(-1)
            maps = maps.reshape(len(maps), maps.shape[1], -1) / steps
            reduced.append(maps.amax(-1) if TABLE[name].maximum else maps.mean(-1))
        return reduced
