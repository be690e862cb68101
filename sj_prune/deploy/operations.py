"""Tensor operations between modules that the graph understands, each as a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sj_prune.deploy import leaves
from sj_prune.deploy.graph import UnsupportedError, Value

# How the dimensions of time and batch lie in front: [T, N, *], [T * N, *], [N, *], [1, N, *].
SEQUENCE, MERGED, BATCH, ONE = "sequence", "merged", "batch", "one"


@dataclass(frozen=True)
class Label:
    """Which value a tensor holds, and how."""

    value: int
    lead: str


def lead_of(value: Value, lead: str, shape: tuple[int, ...], steps: int, samples: int) -> str:
    """Return how a tensor of `shape` holds a value that was held as `lead`.

    Raises:
        UnsupportedError: if it does not.
    """
    fronts = {
        SEQUENCE: (steps, samples),
        MERGED: (steps * samples,),
        ONE: (1, samples),
        BATCH: (samples,),
    }
    timed = (SEQUENCE, MERGED)
    likely = timed if lead in timed else (BATCH, ONE, *timed)
    if lead == MERGED:
        likely = (SEQUENCE, MERGED)
    for name in likely:
        front = fronts[name]
        rest = shape[len(front) :]
        if shape[: len(front)] == front and _numel(rest) == value.size:
            return name
    raise UnsupportedError(
        f"it makes the shape {shape} of a value {value.shape} with T = {steps} and N = {samples}"
    )


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def tail_of(lead: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the dimensions behind time and batch."""
    return shape[1:] if lead in (MERGED, BATCH) else shape[2:]


# A rule: (tracer, positional arguments, keyword arguments, result) -> label of the result.
Rule = Callable[[Any, tuple[Any, ...], Mapping[str, Any], Tensor], Label]


def apply(
    tracer: Any,  # noqa: ANN401
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    out: Any,  # noqa: ANN401
) -> Label:
    """Return the label of the result of an operation.

    Raises:
        UnsupportedError: for an operation or a use of it that is not understood.
    """
    rule = _RULES.get(name)
    out = out[0] if name == "max_pool2d_with_indices" else out
    if rule is None or not isinstance(out, Tensor):
        raise UnsupportedError(f"the operation {name} is not understood{_WHY.get(name, '')}")
    return rule(tracer, args, kwargs, out)


def _reshape(tracer: Any, args: Any, kwargs: Any, out: Tensor) -> Label:  # noqa: ANN401
    label = tracer.label(args[0])
    value = tracer.values[label.value]
    shape = tuple(out.shape)
    lead = lead_of(value, label.lead, shape, tracer.steps, tracer.samples)
    if lead in (SEQUENCE, MERGED) and label.lead in (BATCH, ONE) and not value.static:
        raise UnsupportedError("it repeats a mean over time")
    tail = tail_of(lead, shape)
    if tail == value.tail:
        return Label(label.value, lead)
    return Label(tracer.node("reshape", (label.value,), tail), lead)


def _same(tracer: Any, args: Any, kwargs: Any, out: Tensor) -> Label:  # noqa: ANN401
    return tracer.label(args[0])


def _two(tracer: Any, args: Any, what: str) -> tuple[Label, Label]:  # noqa: ANN401
    labels = [tracer.label(a) for a in args[:2]]
    if None in labels:
        raise UnsupportedError(
            f"{what} meets a tensor that comes from no layer, such as a learned gate or scale"
        )
    a, b = labels
    values = [tracer.values[x.value] for x in labels]
    if values[0].shape != values[1].shape or (a.lead != b.lead and not values[1].static):
        raise UnsupportedError(f"{what} meets values of two shapes")
    return a, b


def _add(tracer: Any, args: Any, kwargs: Any, out: Tensor) -> Label:  # noqa: ANN401
    if kwargs.get("alpha", 1) != 1:
        raise UnsupportedError("add has an alpha")
    a, b = _two(tracer, args, "add")
    return Label(tracer.node("add", (a.value, b.value), tracer.values[a.value].tail), a.lead)


def _mul(tracer: Any, args: Any, kwargs: Any, out: Tensor) -> Label:  # noqa: ANN401
    factor = _number(args[1])
    if factor is None:
        a, b = _two(tracer, args, "mul")
        return Label(tracer.node("and", (a.value, b.value), tracer.values[a.value].tail), a.lead)
    return _scaled(tracer, args, factor)


def _div(tracer: Any, args: Any, kwargs: Any, out: Tensor) -> Label:  # noqa: ANN401
    number = _number(args[1])
    if number is None:
        raise UnsupportedError("div divides by a tensor")
    return _scaled(tracer, args, 1.0 / number)


def _number(x: Any) -> float | None:  # noqa: ANN401
    if isinstance(x, (int, float)):
        return float(x)
    plain = isinstance(x, Tensor) and x.ndim == 0
    return float(x) if plain else None


def _scaled(tracer: Any, args: Any, factor: float) -> Label:  # noqa: ANN401
    a = tracer.label(args[0])
    tail = tracer.values[a.value].tail
    return Label(tracer.node("scale", (a.value,), tail, {"factor": factor}), a.lead)


def _rsub(tracer: Any, args: Any, kwargs: Any, out: Tensor) -> Label:  # noqa: ANN401
    if _number(args[1]) != 1.0 or kwargs.get("alpha", 1) != 1:
        raise UnsupportedError("rsub is not 1 - spikes")
    a = tracer.label(args[0])
    return Label(tracer.node("complement", (a.value,), tracer.values[a.value].tail), a.lead)


def _cat(tracer: Any, args: Any, kwargs: Any, out: Tensor) -> Label:  # noqa: ANN401
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    labels = [tracer.label(x) for x in args[0]]
    if None in labels or len({x.lead for x in labels}) != 1:
        raise UnsupportedError("cat meets a tensor that comes from no layer")
    lead = labels[0].lead
    channels = 1 if lead in (MERGED, BATCH) else 2
    if (dim + out.ndim if dim < 0 else dim) != channels:
        raise UnsupportedError(f"cat is along dimension {dim}, not along channels")
    inputs = tuple(x.value for x in labels)
    return Label(tracer.node("cat", inputs, tail_of(lead, tuple(out.shape))), lead)


def _mean(tracer: Any, args: Any, kwargs: Any, out: Tensor) -> Label:  # noqa: ANN401
    return _reduced(tracer, args, kwargs, out, mean=True)


def _sum(tracer: Any, args: Any, kwargs: Any, out: Tensor) -> Label:  # noqa: ANN401
    return _reduced(tracer, args, kwargs, out, mean=False)


def _reduced(tracer: Any, args: Any, kwargs: Any, out: Tensor, mean: bool) -> Label:  # noqa: ANN401
    label, x = tracer.label(args[0]), args[0]
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    dims = sorted(d + x.ndim if d < 0 else d for d in dims or range(x.ndim))
    keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
    value = tracer.values[label.value]
    if dims == [0] and label.lead == SEQUENCE and not keep:
        made = tracer.node("mean", (label.value,), value.tail, {"mean": mean})
        tracer.values[made].static = False
        return Label(made, BATCH)
    space = len(value.tail) - 1
    if mean and space > 0 and dims == list(range(x.ndim - space, x.ndim)):
        tail = (value.tail[0], *[1] * (space if keep else 0))
        made = tracer.node("adaptive", (label.value,), tail, {"size": (1, 1)})
        return Label(made, label.lead)
    raise UnsupportedError(f"it reduces the dimensions {dims}, neither time nor the whole map")


def _pooling(kind: str, make: Callable[..., nn.Module]) -> Rule:
    """Return the rule of a pooling function: what its module would do."""

    def rule(tracer: Any, args: Any, kwargs: Any, out: Tensor) -> Label:  # noqa: ANN401
        label = tracer.label(args[0])
        settings = leaves.settings_of(kind, make(*args[1:]))
        tail = tail_of(label.lead, tuple(out.shape))
        return Label(tracer.node(kind, (label.value,), tail, settings), label.lead)

    return rule


def _average(kernel: Any, stride: Any = None, *more: Any) -> nn.Module:  # noqa: ANN401
    return nn.AvgPool2d(kernel, stride or None, *more)


def _largest(
    kernel: Any,  # noqa: ANN401
    stride: Any = None,  # noqa: ANN401
    padding: Any = 0,  # noqa: ANN401
    dilation: Any = 1,  # noqa: ANN401
    ceil: bool = False,
) -> nn.Module:
    return nn.MaxPool2d(kernel, stride or None, padding, dilation, ceil_mode=ceil)


_SHAPES = (
    "view _unsafe_view reshape flatten squeeze unsqueeze expand repeat alias clone detach "
    "contiguous"
)
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_SHAPES.split(), _reshape),
    "lift_fresh": _same,
    "_to_copy": _same,
    "add": _add,
    "add_": _add,
    "mul": _mul,
    "mul_": _mul,
    "div": _div,
    "div_": _div,
    "rsub": _rsub,
    "cat": _cat,
    "mean": _mean,
    "sum": _sum,
    "avg_pool2d": _pooling("avgpool", _average),
    "_adaptive_avg_pool2d": _pooling("adaptive", nn.AdaptiveAvgPool2d),
    "max_pool2d_with_indices": _pooling("maxpool", _largest),
}
_WHY = dict.fromkeys(
    ("unbind", "select"),
    ': a loop over time? Layers in multi-step mode take whole sequences: step_mode="m"',
)
