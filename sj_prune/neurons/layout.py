"""Where the dimensions of a neuron layer's input are."""

from __future__ import annotations

from torch import Tensor

from sj_prune.neurons.op import Outputs


def check_input(x_seq: Tensor, name: str) -> None:
    """Refuse what is no sequence ``[T, N, *]`` of floating-point numbers.

    Raises:
        TypeError: if ``x_seq`` is not a floating-point tensor.
        ValueError: if it has no time or batch dimension, or is empty.
    """
    if not x_seq.is_floating_point():
        raise TypeError(f"Expected x_seq of {name} to be floating point but got {x_seq.dtype}")
    if x_seq.ndim < 2:
        raise ValueError(
            f"Expected x_seq of {name} as [T, N, *] but got shape {tuple(x_seq.shape)}: in "
            'multi-step mode (step_mode = "m") the first dimension is time'
        )
    if x_seq.numel() == 0:
        raise ValueError(f"Expected a non-empty x_seq for {name} but got {tuple(x_seq.shape)}")


def step_dim(channel_dim: int) -> int:
    """Return the dimension of one step ``[N, *]`` for a dimension of the sequence."""
    return channel_dim if channel_dim < 0 else channel_dim - 1


def move_back(out: Outputs, channel_dim: int) -> Outputs:
    """Return outputs whose channels stand at dimension 2 with channels at `channel_dim`."""

    def move(seq: Tensor | None) -> Tensor | None:
        return None if seq is None else seq.movedim(2, channel_dim)

    v_seq = move(out.v_seq)
    # `v` and `v_seq` are cloned: the host detaches its memories in place, which no view allows.
    return Outputs(
        out.spikes.movedim(2, channel_dim),
        out.v.movedim(1, step_dim(channel_dim)).clone(),
        out.partials,
        None if v_seq is None else v_seq.clone(),
        move(out.h_seq),
        move(out.g_seq),
    )
