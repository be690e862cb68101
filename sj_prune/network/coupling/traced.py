"""What a traced forward has found: labels of every module, and which of them belong together."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from sj_prune import _host
from sj_prune.network.coupling.labels import Labels, Partition
from sj_prune.network.layers import WEIGHTED, is_weighted
from sj_prune.network.norms import CHANNEL_NORMS


@dataclass
class Traced:
    """The findings of a forward; the tracer fills it in, `assemble` reads it.

    Attributes:
        layers: names of all weighted layers.
        owners: id of a parameter -> names of the weighted layers and norms that hold it.
        partition: which labels belong together.
        outputs: layer name -> labels of its output channels.
        inputs: layer name -> labels of its input channels.
        norms: norm name -> labels of its channels.
        neurons: neuron layer name -> labels of its channels.
        neuron_dims: neuron layer name -> dimension of its channels, from the end.
        bare: layers whose output something else than a norm reads.
        norm_of: layer name -> the first norm behind it.
        frozen_layers: layer name -> why nothing of it can be pruned.
        met: name of whatever senses -> the dimensions of channels that it was given, from the end,
            each with their labels.
    """

    layers: list[str]
    owners: dict[int, list[str]]
    partition: Partition = field(default_factory=Partition)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    neurons: dict[str, Tensor] = field(default_factory=dict)
    neuron_dims: dict[str, int] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    norm_of: dict[str, str] = field(default_factory=dict)
    frozen_layers: dict[str, str] = field(default_factory=dict)
    met: dict[str, set[tuple[int, tuple[int, ...]]]] = field(default_factory=dict)

    @classmethod
    def of(cls, net: nn.Module) -> Traced:
        """Return what is known of a network before its forward."""
        owners: dict[int, list[str]] = {}
        for name, module in net.named_modules():
            if isinstance(module, (*WEIGHTED, *CHANNEL_NORMS)):
                for parameter in module._parameters.values():
                    if parameter is not None:
                        owners.setdefault(id(parameter), []).append(name)
        layers = {name: m for name, m in net.named_modules() if is_weighted(m)}
        unknown = {
            name: f"{type(m).__name__} has a forward or a weight of its own, so what it does to "
            "channels is unknown"
            for name, m in layers.items()
            if not _host.is_plain_layer(m)
        }
        return cls(list(layers), owners, frozen_layers=unknown)

    def freeze(self, labels: Labels | None, reason: str) -> None:
        """Keep all channels of a tensor with these labels."""
        if labels is not None:
            self.partition.freeze(labels.ids, reason)
            self.bare.update(labels.raw)

    def meet(self, table: dict[str, Tensor], name: str, ids: Tensor) -> None:
        """Join labels with those that the module has met in an earlier call."""
        known = table.setdefault(name, ids)
        if len(known) == len(ids):
            self.partition.join(known, ids)
        else:
            for labels in (known, ids):
                self.partition.freeze(labels, f"{name} meets two numbers of channels")

    def outputs_of(self, name: str, number: int) -> Tensor:
        """Return the labels of a layer's output channels, fresh at its first call."""
        if name not in self.outputs:
            self.outputs[name] = self.partition.new(number)
        return self.outputs[name]
