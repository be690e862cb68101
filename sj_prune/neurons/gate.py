"""A factor behind neurons, as a module: what learned gates leave in a finished network."""

from __future__ import annotations

from torch import Tensor, nn


class SpikeGate(nn.Module):
    """Multiplies what leaves a neuron layer, place by place: ``[T, N, C, *]`` or ``[N, C, *]``.

    Args:
        gate: ``[C, *]``, the map of one sample; a buffer.
    """

    gate: Tensor

    def __init__(self, gate: Tensor) -> None:
        super().__init__()
        self.register_buffer("gate", gate)

    def forward(self, spikes: Tensor) -> Tensor:
        """Return the spikes behind the gate.

        Raises:
            ValueError: for another map.
        """
        return gated(spikes, self.gate, "spikes")

    def extra_repr(self) -> str:
        """Return the shape, and how many places are open."""
        return f"{tuple(self.gate.shape)}, open: {int(self.gate.count_nonzero())}"


def gated(spikes: Tensor, gate: Tensor, name: str) -> Tensor:
    """Return spikes behind a gate.

    Raises:
        ValueError: if it belongs to another map, naming `name`.
    """
    shape = spikes.shape[spikes.ndim - gate.ndim :]
    if shape != gate.shape:
        raise ValueError(
            f"Expected {name} to end in {tuple(gate.shape)}, the map that its gates were learned "
            f"on, but got {tuple(spikes.shape)}: gates of neurons belong to one size of inputs"
        )
    return spikes * gate.to(spikes)
