"""What every tensor operation does to channel labels; what is not understood freezes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from sj_prune.network.coupling.labels import Labels, Partition, reshaped

Result = Labels | None | list[Labels | None]


class NotSeparateError(Exception):
    """Raised by a rule whose operation does not keep channels apart; says what happens to them."""


def _normal(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


def _reshape(x: Tensor, labels: Labels, out: Tensor, *_: Any) -> Labels:  # noqa: ANN401
    found = reshaped(labels, x.shape, out.shape)
    if found is None:
        raise NotSeparateError("a reshape divides its channels")
    return found


def _permute(x: Tensor, labels: Labels, out: Tensor, dims: Sequence[int]) -> Labels:
    return labels.at([_normal(d, x.ndim) for d in dims].index(labels.dim))


def _transpose(x: Tensor, labels: Labels, out: Tensor, a: int = 0, b: int = 1) -> Labels:
    a, b = _normal(a, x.ndim), _normal(b, x.ndim)
    return labels.at({a: b, b: a}.get(labels.dim, labels.dim))


def _unsqueeze(x: Tensor, labels: Labels, out: Tensor, dim: int) -> Labels:
    return labels.at(labels.dim + (_normal(dim, x.ndim + 1) <= labels.dim))


def _squeeze(
    x: Tensor, labels: Labels, out: Tensor, dims: int | Sequence[int] | None = None
) -> Labels:
    wanted = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {_normal(d, x.ndim) for d in wanted if x.shape[d] == 1}
    if labels.dim in gone:
        raise NotSeparateError("a squeeze removes its channel dimension")
    return labels.at(labels.dim - sum(d < labels.dim for d in gone))


def _expand(x: Tensor, labels: Labels, out: Tensor, *_: Any, **__: Any) -> Labels:  # noqa: ANN401
    dim = labels.dim + out.ndim - x.ndim
    return labels.at(dim, labels.ids.expand(out.shape[dim]))


def _repeat(x: Tensor, labels: Labels, out: Tensor, repeats: Sequence[int]) -> Labels:
    dim = labels.dim + out.ndim - x.ndim
    return labels.at(dim, labels.ids.repeat(repeats[dim]))


def _slice(x: Tensor, labels: Labels, out: Tensor, dim: int = 0, *_: Any) -> Labels:  # noqa: ANN401
    if _normal(dim, x.ndim) == labels.dim and out.shape != x.shape:
        raise NotSeparateError("its channels are sliced")
    return labels


def _select(x: Tensor, labels: Labels, out: Tensor, dim: int, index: int) -> Labels:
    dim = _normal(dim, x.ndim)
    if dim == labels.dim:
        raise NotSeparateError("one of its channels is selected")
    return labels.at(labels.dim - (dim < labels.dim))


def _split(
    x: Tensor,
    labels: Labels,
    out: Sequence[Tensor],
    sizes: Any,  # noqa: ANN401
    dim: int = 0,
) -> list[Labels | None]:
    if _normal(dim, x.ndim) == labels.dim and len(out) > 1:
        raise NotSeparateError("its channels are split")
    return [labels] * len(out)


def _unbind(x: Tensor, labels: Labels, out: Sequence[Tensor], dim: int = 0) -> list[Labels | None]:
    return [_select(x, labels, out[0], dim, 0)] * len(out)


def _same(x: Tensor, labels: Labels, out: Tensor, *_: Any, **__: Any) -> Labels:  # noqa: ANN401
    return labels


def _reduce(
    x: Tensor,
    labels: Labels,
    out: Any,  # noqa: ANN401
    dims: int | Sequence[int] | None = None,
    keepdim: bool = False,
    **_: Any,  # noqa: ANN401
) -> Result:
    wanted = [dims] if isinstance(dims, int) else list(dims or range(x.ndim))
    gone = {_normal(d, x.ndim) for d in wanted}
    if labels.dim in gone:
        raise NotSeparateError("it is reduced over its channels")
    found = labels.at(labels.dim - (0 if keepdim else sum(d < labels.dim for d in gone)))
    return found if isinstance(out, Tensor) else [found] * len(out)


def _spatial(number: int) -> Callable[..., Result]:
    """Return the rule of an operation on the last `number` dimensions, such as a pooling."""

    def rule(x: Tensor, labels: Labels, out: Any, *_: Any, **__: Any) -> Result:  # noqa: ANN401
        if labels.dim >= x.ndim - number:
            raise NotSeparateError("its channels are pooled (a voting layer?)")
        return labels if isinstance(out, Tensor) else [labels] * len(out)

    return rule


def _pad(x: Tensor, labels: Labels, out: Tensor, pad: Sequence[int], value: float = 0.0) -> Labels:
    if value != 0:
        raise NotSeparateError(f"it is padded with {value}")
    return _spatial(len(pad) // 2)(x, labels, out)  # type: ignore[return-value]


def _restride(x: Tensor, labels: Labels, out: Tensor, *_: Any) -> Labels:  # noqa: ANN401
    # As torch itself does after an average over whole maps, where channels are last in memory.
    if not (out.is_contiguous() and labels.dim == 1 and out.shape[2:].numel() == 1):
        raise NotSeparateError("as_strided_ mixes its channels")
    return labels


_VIEWS: dict[str, Callable[..., Result]] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "repeat": _repeat,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "split_with_sizes": _split,
    "unbind": _unbind,
    "constant_pad_nd": _pad,
    "as_strided_": _restride,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(
        ("clone", "detach", "alias", "contiguous", "_to_copy", "lift_fresh", "native_dropout"),
        _same,
    ),
}
_POOLS = re.compile(r"(?:.*pool|upsample_[a-z]+?|.*_pad)(\d)d(?:_with_indices)?$")
#: makes a tensor of the same shape with one value throughout
_CONSTANTS = ("zeros_like", "ones_like", "full_like")
#: makes a new tensor, whatever the values
_FACTORIES = re.compile(r"(?:(?:zeros|ones|empty|full|rand|randn)_like|new_\w+)$")


def relabel(
    func: Any,  # noqa: ANN401
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    out: Any,  # noqa: ANN401
    labels_of: Callable[[Any], Labels | None],
    partition: Partition,
) -> Result:
    """Return the labels of what an ATen operation has returned.

    Args:
        func: the operation.
        args: positional arguments, tensors or lists of them among them.
        kwargs: keyword arguments.
        out: its result.
        labels_of: labels of a tensor, None if it carries no channels.
        partition: where labels are joined.

    Raises:
        NotSeparateError: if it does not keep channels apart.
    """
    name = func.overloadpacket.__name__
    pool = _POOLS.match(name)
    if name in _CONSTANTS and (labels := labels_of(args[0])) is not None:
        return Labels(labels.dim, labels.ids, zero=name == "zeros_like")
    if _FACTORIES.match(name):
        return None
    if name in ("cat", "stack"):
        return _join(name, args, kwargs, labels_of, partition)
    rule = _spatial(int(pool[1])) if pool else _VIEWS.get(name)
    if rule is not None:
        x = args[0]
        labels = labels_of(x)
        if labels is None or any(labels_of(a) for a in tree_flatten(args[1:])[0]):
            raise NotSeparateError(f"{name} takes its channels as an argument")
        return rule(x, labels, out, *args[1:], **kwargs)
    if torch.Tag.pointwise in func.tags:
        return _pointwise(func, args, kwargs, out, labels_of, partition)
    raise NotSeparateError(f"{name} mixes its channels, or is not known to keep them apart")


def _join(
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    labels_of: Callable[[Any], Labels | None],
    partition: Partition,
) -> Labels:
    tensors = args[0]
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    dim = _normal(dim, tensors[0].ndim + (name == "stack"))
    found = [labels_of(t) for t in tensors]
    some = [labels for labels in found if labels is not None]
    if len({labels.dim for labels in some}) != 1:
        raise NotSeparateError(f"{name} puts different dimensions together")
    raw = frozenset().union(*(labels.raw for labels in some))
    zero = all(labels.zero for labels in some)
    where = some[0].dim
    if name == "cat" and dim == where:
        ids = [
            _foreign(tensor.shape[dim], partition) if labels is None else labels.ids
            for tensor, labels in zip(tensors, found, strict=True)
        ]
        return Labels(dim, torch.cat(ids), zero, raw)
    for labels in some[1:]:
        partition.join(some[0].ids, labels.ids)
    zero = zero and len(some) == len(found)
    return Labels(where + (name == "stack" and dim <= where), some[0].ids, zero, raw)


def _foreign(number: int, partition: Partition) -> Tensor:
    ids = partition.new(number)
    partition.freeze(ids, "it is concatenated with channels that no layer made")
    return ids


def _pointwise(
    func: Any,  # noqa: ANN401
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    out: Any,  # noqa: ANN401
    labels_of: Callable[[Any], Labels | None],
    partition: Partition,
) -> Labels:
    if not isinstance(out, Tensor):
        raise NotSeparateError(f"{func} returns several tensors")
    operands = [a for a in tree_flatten((args, dict(kwargs)))[0] if isinstance(a, Tensor)]
    some = [(x, labels) for x in operands if (labels := labels_of(x)) is not None]
    dims = {labels.dim + out.ndim - x.ndim for x, labels in some}
    if len(dims) != 1:
        raise NotSeparateError(
            f"{func.overloadpacket.__name__} meets channels along two dimensions"
        )
    dim = dims.pop()
    size = out.shape[dim]
    for x in operands:
        at = dim - (out.ndim - x.ndim)
        if labels_of(x) is None and size > 1 and at >= 0 and x.shape[at] == size:
            raise NotSeparateError("it meets a tensor with a value for every channel")
    first = some[0][1].ids.expand(size)
    for _, labels in some[1:]:
        partition.join(first, labels.ids.expand(size))
    raw = frozenset().union(*(labels.raw for _, labels in some))
    return Labels(dim, first, _is_zero_at_zero(func, args, kwargs, labels_of), raw)


def _is_zero_at_zero(
    func: Any,  # noqa: ANN401
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    labels_of: Callable[[Any], Labels | None],
) -> bool:
    """Tell whether a pointwise operation gives 0 where its silent operands are 0: by trying."""

    def stand_in(value: float) -> Callable[[Any], Any]:
        def replace(x: Any) -> Any:  # noqa: ANN401
            if not isinstance(x, Tensor):
                return x
            labels = labels_of(x)
            silent = labels is not None and labels.zero
            return torch.full((1,), 0 if silent else value, device="cpu").to(x.dtype)

        return replace

    try:
        tried = [func(*tree_map(r, args), **tree_map(r, dict(kwargs))) for r in _draws(stand_in)]
        return all(bool((t == 0).all()) for t in tried)
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def _draws(stand_in: Callable[[float], Any]) -> list[Any]:
    return [stand_in(value) for value in (0.37, 1.0, -2.3)]
