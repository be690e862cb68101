"""In what order and type of numbers the compiled engines see tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sj_prune.neurons.reference import compute_dtype


class Layout(NamedTuple):
    """Order of the memory of a computation, of `ndim` dimensions, channels `last` or not.

    Attributes:
        dtype: type of the potentials.
    """

    ndim: int
    last: bool
    dtype: torch.dtype

    @staticmethod
    def of(x_seq: Tensor) -> Layout:
        """Return that of ``[T, N, C, *]``: channels last if it lies in memory as that, densely."""
        last = x_seq.ndim > 3 and not x_seq.is_contiguous()
        last = last and x_seq.movedim(2, -1).is_contiguous()
        return Layout(x_seq.ndim, last, compute_dtype(x_seq.dtype))

    def _channel(self, tensor: Tensor) -> int:
        """Return the dimension of the channels in a sequence or in one step of it."""
        return 2 - (self.ndim - tensor.ndim)

    def _view(self, tensor: Tensor) -> Tensor:
        """Return `tensor` with its dimensions in the order of the memory."""
        return tensor.movedim(self._channel(tensor), -1) if self.last else tensor

    def arrange(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return `tensor` itself if it is in this order and type, else a copy that is."""
        if tensor.dtype == (dtype or self.dtype) and self._view(tensor).is_contiguous():
            return tensor
        dense = self._view(tensor.to(dtype or self.dtype)).contiguous()
        return dense.movedim(-1, self._channel(tensor)) if self.last else dense

    def initial(self, v_init: Tensor) -> Tensor:
        """Return the initial potentials, as they are where all are one number in memory."""
        if not any(v_init.stride()) and v_init.dtype == self.dtype:
            return v_init
        return self.arrange(v_init)

    def writable(self, out: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return `out` if a kernel can write into it, else a buffer to copy from."""
        dtype = dtype or self.dtype
        if not out.numel() or (out.dtype == dtype and self._view(out).is_contiguous()):
            return out
        return self.arrange(torch.empty_like(out, dtype=dtype), dtype)


def copy_back(outputs: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
    """Copy into `outputs` what was not written there."""
    for out, buffer in zip(outputs, buffers, strict=True):
        if out is not buffer:
            out.copy_(buffer)
