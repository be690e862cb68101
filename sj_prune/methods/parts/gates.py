"""Gates: a factor behind every neuron, learned beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sj_prune.methods.view import NeuronView


@dataclass(frozen=True, kw_only=True)
class Gates:
    """A factor on the spikes of every neuron, one for each place of its map, for all samples.

    Spikes leave a neuron layer as ``gate * s``, in eval mode too. `finalize` puts what differs from
    1 behind the neurons, as `sj_prune.neurons.SpikeGate`. Without a GradScaler.

    Args:
        start: called as ``start(like)`` in the first training forward, with zeros ``[C, *]``, the
            map of one sample: returns ``"gate"``, in that shape, and what else is kept of it.
        learn: called as ``learn(neuron)`` once a step, before the update that is due: changes
            ``neuron.state``, for the forwards to come.
    """

    start: Callable[[Tensor], dict[str, Tensor]]
    learn: Callable[[NeuronView], None]

    def __post_init__(self) -> None:
        for name in ("start", "learn"):
            value = getattr(self, name)
            if not callable(value):
                raise TypeError(f"Expected {name} of gates to be a function but got {value!r}")
