"""The SynOps of training forwards, and the terms of a loss on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.network.layers import Layer
from sj_prune.network.uses import each_use, is_binary
from sj_prune.neurons.nodes import in_backward_pass

#: returns ``dP/dS`` of a term, called with the tensors that the plan keeps of the whole network,
#: and `S`
Slope = Callable[[Mapping[str, Tensor], Tensor], Tensor]


@dataclass
class MeterHook:
    """A forward hook of a layer, a neuron or the network; found by its class when it has to go."""

    tell: Callable[[Any, tuple[Any, ...], Any], None]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        """Tell of a training forward."""
        training = module.training and torch.is_grad_enabled() and not in_backward_pass()
        if training and args and isinstance(args[0], Tensor):
            self.tell(module, args, output)


@dataclass
class Meter:
    """Adds up accumulations between two steps, and gives spikes the gradient of their terms.

    Attributes:
        slopes: of the terms.
        memory: what they are called with.
        kept: element masks by layer; of other layers the weights that are not 0 count.
        changes: the count of mask changes that they are of.
        known: by layer, what `_uses` found, and for which shapes and masks: the same every step.
        scaler: the GradScaler of the loss, or None; a copy has none.
        synops: accumulations since the last step, of kept and of all weights, ``[2]`` in float64.
        samples: that they are of. A pass of single steps outside of the network is one batch.
        first: the neuron that tells batch sizes.
        calls: of that neuron in the forward in hand.
        single: whether it takes single steps.
        batch: samples in the forward in hand.
    """

    slopes: tuple[Slope, ...]
    memory: dict[str, Tensor]
    kept: dict[str, Tensor] = field(default_factory=dict)
    changes: int = -1
    known: dict[str, tuple[Any, list[Tensor]]] = field(default_factory=dict)
    scaler: Any = None
    synops: Tensor | None = None
    samples: int = 0
    first: str | None = None
    calls: int = 0
    single: bool = False
    batch: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "scaler": None}

    def clear(self) -> None:
        """Begin anew."""
        self.synops, self.samples, self.calls = None, 0, 0

    def mean(self) -> Tensor | None:
        """Return SynOps a sample since the last step, ``[2]``: of kept and of all weights."""
        return None if self.synops is None or not self.samples else self.synops / self.samples

    def count(self, name: str, layer: Layer, args: tuple[Any, ...], output: Tensor) -> None:
        """Count one call of a layer, if its input is spikes."""
        x = args[0]
        with torch.no_grad():
            binary = is_binary(x)
            met = [uses * binary for uses in self._uses(name, layer, x, output)]
            spikes = x.reshape(-1, *met[0].shape).sum(0, dtype=torch.float64)
            found = torch.stack([(spikes * each).sum() for each in met])
            self.synops = found if self.synops is None else self.synops + found
        if x.requires_grad:
            x.register_hook(partial(self._push, met[0]))

    def _uses(self, name: str, layer: Layer, x: Tensor, output: Tensor) -> list[Tensor]:
        """Return how many kept weights, and how many of all, each input of one sample meets."""
        weight = layer.weight.detach()
        dims = 1 - weight.ndim
        where = (x.shape[dims:], output.shape[dims:], x.device, self.changes)
        known, uses = self.known.get(name, (None, []))
        if known != where:
            kept = self.kept.get(name, weight != 0)
            every = torch.ones_like(kept)
            uses = [each_use(layer, counts, x, output) for counts in (kept, every)]
            if name in self.kept:  # other weights may become 0 in any step
                self.known[name] = (where, uses)
        return uses

    def _push(self, met: Tensor, grad: Tensor) -> Tensor:
        """Add the gradient of the terms: each spike costs what it meets."""
        found = self.mean()
        if found is None:  # nothing has told how many samples it is of
            return grad
        slopes = [slope(self.memory, found[0]) for slope in self.slopes]
        term = met * (torch.stack(slopes).sum() / self.batch)
        return grad + (term if self.scaler is None else self.scaler.scale(term)).to(grad)

    def note(self, name: str, node: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Take the batch size from the first neuron."""
        self.first = name if self.first is None else self.first
        if name == self.first:
            self.single = _host.step_mode(node) != "m"
            self.batch = args[0].shape[0 if self.single else 1]
            self.calls += 1

    def close(self, net: nn.Module, args: tuple[Any, ...], output: object) -> None:
        """Count the samples of one forward of the network."""
        if self.single and self.calls == 1:
            self.samples = self.batch
        elif self.calls:
            self.samples += self.batch
        self.calls = 0


def meter(
    net: nn.Module,
    layers: Mapping[str, Layer],
    neurons: Mapping[str, Any],
    slopes: tuple[Slope, ...],
    memory: dict[str, Tensor],
) -> Meter:
    """Return a meter that hears all calls of a network's layers.

    Args:
        net: the network.
        layers: whose accumulations count, by name.
        neurons: names of its neurons.
        slopes: of terms.
        memory: what they are called with.
    """
    found = Meter(slopes, memory)
    for name, layer in layers.items():
        layer.register_forward_hook(MeterHook(partial(found.count, name)))
    for name in neurons:
        net.get_submodule(name).register_forward_hook(MeterHook(partial(found.note, name)))
    net.register_forward_hook(MeterHook(found.close))
    return found
