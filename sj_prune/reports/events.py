"""Which tensors of a forward are averages or sums of spikes, and what one spike is in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from sj_prune.network.uses import is_binary


class Events(TorchDispatchMode):
    """Follows spikes through averages, sums and concatenations.

    Averaging is linear: a chip passes the spikes on, and each meets the weights behind by itself. A
    value of an average over 4 places is a number of spikes times 1/4, its **unit**.
    """

    def __init__(self) -> None:
        super().__init__()
        self._units: Any = WeakTensorKeyDictionary()

    def fired(self, spikes: Tensor) -> None:
        """Take note of what neurons fired."""
        self._units[spikes] = 1.0

    def unit(self, x: Tensor) -> float | None:
        """Return what one spike is in `x`; None if it is not made of spikes alone."""
        if x not in self._units and is_binary(x):
            self.fired(x)
        return self._units.get(x)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and note what a spike is in its result."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _RULES or name.endswith("_"):  # what is written in place is not what it was
            rule = _RULES.get(name.removesuffix("_"))
            unit = None if rule is None else rule(self, args, kwargs or {}, out)
            for x in tree_leaves(out):
                if unit is not None:
                    self._units[x] = unit
                elif isinstance(x, Tensor):
                    self._units.pop(x, None)
        return out

    def known(self, x: Any) -> float | None:  # noqa: ANN401
        """As `unit`, without a look at the values."""
        return self._units.get(x) if isinstance(x, Tensor) else None


def _same(events: Events, args: Any, options: Any, out: Any) -> float | None:  # noqa: ANN401
    return events.known(args[0])


def _alike(events: Events, args: Any, options: Any, out: Any) -> float | None:  # noqa: ANN401
    """All parts of a sum or of a concatenation have one unit, or it has none."""
    units = {events.known(x) for x in (args[:2] if isinstance(args[0], Tensor) else args[0])}
    return units.pop() if len(units) == 1 and options.get("alpha", 1) == 1 else None


def _times(events: Events, args: Any, options: Any, out: Any) -> float | None:  # noqa: ANN401
    unit, factor = events.known(args[0]), args[1]
    return unit * factor if unit and isinstance(factor, int | float) and factor > 0 else None


def _over(events: Events, args: Any, options: Any, out: Any) -> float | None:  # noqa: ANN401
    unit, by = events.known(args[0]), args[1]
    return unit / by if unit and isinstance(by, int | float) and by > 0 else None


def _mean(events: Events, args: Any, options: Any, out: Any) -> float | None:  # noqa: ANN401
    """A mean over dimensions, or adaptive pooling: its windows are equal if they divide the map."""
    x, unit = args[0], events.unit(args[0])
    if x.ndim == out.ndim and any(a % b for a, b in zip(x.shape, out.shape, strict=True)):
        return None
    return unit and unit * out.numel() / x.numel()


def _pool(events: Events, args: Any, options: Any, out: Any) -> float | None:  # noqa: ANN401
    defaults: list[Any] = [(), (), False, True, None]
    given: list[Any] = [*args[1:], *defaults[len(args) - 2 :]]
    kernel, _, padding, ceil_mode, whole, divisor = given
    unit = events.unit(args[0])
    equal = not ceil_mode and (whole or not any(padding)) and len(kernel) > 1
    return unit / (divisor or math.prod(kernel)) if unit and equal else None


_SHAPES = (
    "view _unsafe_view reshape flatten squeeze unsqueeze expand repeat alias clone detach permute "
    "transpose t select slice split unbind index index_select _to_copy lift_fresh"
)
_RULES: dict[str, Any] = {
    **dict.fromkeys((*_SHAPES.split(), "sum"), _same),
    **dict.fromkeys(("add", "cat", "stack"), _alike),
    **dict.fromkeys(("avg_pool2d", "avg_pool3d"), _pool),
    **dict.fromkeys(("mean", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"), _mean),
    "mul": _times,
    "div": _over,
}
