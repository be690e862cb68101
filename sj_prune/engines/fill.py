"""Zeros and rows written into many tensors of a CUDA device with one launch: `fill.cu`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sj_prune.engines.cupy_device import Launch, Source, available, run
from sj_prune.engines.request import requested

#: values; where they are kept (bool, of their shape), or which rows change; what these become
Write: TypeAlias = tuple[Tensor, Tensor, Tensor | None]

# As in `fill.cu`.
_THREADS, _WORDS = 256, 4
_TENSORS, _TENSORS_OF_ROWS = 128, 96
_PLAIN = (Tensor, torch.nn.Parameter)


def _array(kind: Any, *names: str, of: int = _TENSORS) -> list[tuple[str, Any]]:  # noqa: ANN401
    return [(name, kind * of) for name in names]


class FillArguments(ctypes.Structure):
    """Argument of ``sj_fill``."""

    _fields_ = [
        *_array(ctypes.c_void_p, "values", "kept"),
        *_array(ctypes.c_longlong, "count"),
        *_array(ctypes.c_int, "first"),
        *_array(ctypes.c_ubyte, "size"),
        ("tensors", ctypes.c_int),
    ]


class RowsArguments(ctypes.Structure):
    """Argument of ``sj_put_rows``."""

    _fields_ = [
        *_array(ctypes.c_void_p, "values", "index", "source", of=_TENSORS_OF_ROWS),
        *_array(ctypes.c_uint, "rows", "bytes", of=_TENSORS_OF_ROWS),
        *_array(ctypes.c_int, "first", of=_TENSORS_OF_ROWS),
        *_array(ctypes.c_ubyte, "word", of=_TENSORS_OF_ROWS),
        ("tensors", ctypes.c_int),
    ]


def fused(writes: Iterable[Write]) -> list[Write]:
    """Write what lies on CUDA devices, one launch for up to 128 tensors.

    Returns:
        What is left to others: on other devices, in other layouts, or all where CuPy does not run.
    """
    left: list[Write] = []
    found: dict[tuple[Any, bool], list[Write]] = {}
    for one in writes:
        masked = one[1].dtype == torch.bool
        if on_device(one[0]) and _serves(*one, masked) and _able():
            found.setdefault((one[0].device, masked), []).append(one)
        else:
            left.append(one)
    for (device, masked), group in found.items():
        launches = _fills(group) if masked else _rows(group)
        run(device, Source("fill.cu"), *launches)
    return left


def on_device(tensor: Tensor) -> bool:
    """Tell whether a tensor lies where a launch costs more than the writing."""
    return tensor.is_cuda


def _able() -> bool:
    return requested() in ("auto", "cupy") and available() is None


def _serves(values: Tensor, where: Tensor, source: Tensor | None, masked: bool) -> bool:
    if not on_device(where) or type(values) not in _PLAIN:
        return False
    order = order_of(values)
    if order is None:
        return False
    if masked:
        same = values.shape == where.shape and order == order_of(where)
        return same and values.element_size() in (2, 4, 8)
    alike = source is None or (source.dtype == values.dtype and order_of(source) == order)
    return alike and where.is_contiguous() and values.element_size() > 1 and values.nbytes < 2**32


def order_of(values: Tensor) -> torch.memory_format | None:
    """Return the usual order in which a tensor fills its memory; None if it does in no such."""
    if values.is_contiguous():
        return torch.contiguous_format
    last = values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else None


def _launches(
    kernel: str, group: Sequence[Write], most: int, block: Callable[[Sequence[Write]], Any]
) -> Iterator[Launch]:
    """Yield launches over so many tensors each; `block` sets all but blocks and their number."""
    for start in range(0, len(group), most):
        part = group[start : start + most]
        arguments, blocks = block(part)
        first = 0
        for i, n in enumerate(blocks):
            arguments.first[i] = first
            first += n
        arguments.tensors = len(part)
        if first:
            yield Launch(kernel, (first, 1), _THREADS, arguments)


def _fills(group: Sequence[Write]) -> Iterator[Launch]:
    def block(part: Sequence[Write]) -> tuple[FillArguments, list[int]]:
        n, arguments = len(part), FillArguments()
        sizes = [values.element_size() for values, _, _ in part]
        counts = [values.numel() for values, _, _ in part]
        arguments.values[:n] = [values.data_ptr() for values, _, _ in part]
        arguments.kept[:n] = [kept.data_ptr() for _, kept, _ in part]
        arguments.count[:n], arguments.size[:n] = counts, sizes
        each = _THREADS * _WORDS * 16
        return arguments, [-(-c * s // each) for c, s in zip(counts, sizes, strict=True)]

    return _launches("sj_fill", group, _TENSORS, block)


def _rows(group: Sequence[Write]) -> Iterator[Launch]:
    def block(part: Sequence[Write]) -> tuple[RowsArguments, list[int]]:
        n, arguments = len(part), RowsArguments()
        rows = [index.numel() for _, index, _ in part]
        widths = [values.nbytes // len(values) for values, _, _ in part]
        addresses = [values.data_ptr() for values, _, _ in part]
        sources = [0 if source is None else source.data_ptr() for _, _, source in part]
        common = [math.gcd(16, *each) for each in zip(widths, addresses, sources, strict=True)]
        words = [16 if c == 16 else 4 if c % 4 == 0 else 2 for c in common]
        arguments.values[:n], arguments.source[:n] = addresses, sources
        arguments.index[:n] = [index.data_ptr() for _, index, _ in part]
        arguments.rows[:n], arguments.bytes[:n], arguments.word[:n] = rows, widths, words
        each = _THREADS * _WORDS
        return arguments, [
            -(-r * b // w // each) for r, b, w in zip(rows, widths, words, strict=True)
        ]

    return _launches("sj_put_rows", group, _TENSORS_OF_ROWS, block)
