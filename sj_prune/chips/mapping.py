"""What a network asks of a chip: its layers with all that is computed beside them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from sj_prune.deploy.plan import Layer, Plan, Step
from sj_prune.export.folded import folded, windows
from sj_prune.export.synapses import fans
from sj_prune.neurons.reference import IF, LIF

_KINDS = {IF: "IF", LIF: "LIF"}


@dataclass
class Mapped:
    """One layer of weights with its neurons.

    Attributes:
        name: of the layer; a module that runs again takes room again, under another name.
        shape_in: ``(C, H, W)`` of what it reads; of a linear layer behind a flattening the map
            before it.
        shape_out: ``(C, H, W)`` of its neurons.
        kernel: height and width.
        stride: likewise.
        padding: likewise.
        groups: of the convolution.
        bias: whether it has one, after norms are folded.
        neuron: "IF", "LIF" or "PLIF"; None: no neurons follow.
        fan_in: synapses that each neuron receives.
        fan_out: synapses that leave each input.
        plan: what it is a part of.
        layer: its part in the plan.
        pool: window of the average pooling behind its neurons; 1 without.
        sources: names of the layers that it reads, ``"input"`` for the network's input.
        readers: how many layers read it; for the last one, the outside.
        problems: what no chip here does, in words.
    """

    name: str
    shape_in: tuple[int, int, int]
    shape_out: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    bias: bool
    neuron: str | None
    fan_in: np.ndarray
    fan_out: np.ndarray
    plan: Plan = field(repr=False)
    layer: Layer = field(repr=False)
    pool: int = 1
    sources: tuple[str, ...] = ()
    readers: int = 0
    problems: list[str] = field(default_factory=list)

    def under(self, mask: Tensor, channels: bool) -> Mapped:
        """Return what is asked for under a mask, without building the network that is left.

        Args:
            mask: True = kept, in the weight's shape; where channels are pruned those that read
                them are False too.
            channels: rows and columns without any weight are gone, and not only 0.
        """
        assert self.layer.weight is not None  # noqa: S101
        kept = mask.to("cpu").reshape(self.layer.weight.shape)
        into, out = fans(self.plan, replace(self.layer, weight=self.layer.weight * kept))
        if not channels:
            return replace(self, fan_in=into, fan_out=out)
        rows, columns = kept.flatten(1).any(1), kept.transpose(0, 1).flatten(1).any(1)
        groups, read = self.groups, columns.reshape(self.shape_in[0] // self.groups, -1).any(1)
        if groups == 1:
            out = out[columns.numpy()]
        elif len(read) == 1:  # a depthwise filter goes with its input; other groups stay whole
            read = rows.reshape(groups, -1).any(1)
            out, groups = out[read.numpy()], int(read.sum())
        else:
            read = torch.ones(self.shape_in[0])
        return replace(
            self,
            shape_in=(int(read.sum()), *self.shape_in[1:]),
            shape_out=(int(rows.sum()), *self.shape_out[1:]),
            groups=groups,
            fan_in=into[rows.numpy()],
            fan_out=out,
        )

    @property
    def module(self) -> nn.Module:
        """The layer in the network."""
        assert self.layer.parts[0].module is not None  # noqa: S101 (of a layer with weights)
        return self.layer.parts[0].module

    @property
    def neurons(self) -> int:
        """How many."""
        return int(np.prod(self.shape_out))

    @property
    def synapses(self) -> int:
        """How many connections, one by one."""
        return int(self.fan_in.sum())

    @property
    def weights(self) -> int:
        """Kernel entries of the layer, zeros too."""
        channels = self.shape_in[0] // self.groups
        return self.shape_out[0] * channels * int(np.prod(self.kernel))


def mapped(net: nn.Module, x_seq: Tensor) -> list[Mapped]:
    """Return the layers of a network in order.

    Args:
        net: a stock network in multi-step mode; left as it was.
        x_seq: an input ``[T, N, *]`` or ``[N, *]``; only its shape matters.

    Raises:
        ValueError: (`UnsupportedError`) for what the graph does not understand, by name.
    """
    if isinstance(x_seq, Tensor) and x_seq.is_floating_point() and x_seq.numel():
        seeded = torch.Generator().manual_seed(0)
        x_seq = torch.rand(x_seq.shape, generator=seeded).to(x_seq)
    return _Mapping(folded(net, x_seq)).layers


class _Mapping:
    """Which layers feed each value, and through which pooling."""

    def __init__(self, made: Plan) -> None:
        self.made = made
        self.layers: list[Mapped] = []
        self.feeds: dict[int, list[Mapped | None]] = {0: [None]}
        self.maps: dict[int, tuple[int, int, int]] = {}
        for step in made.steps:
            self._layer(step) if isinstance(step, Layer) else self._step(step)
        for feed in self.feeds[made.graph.output]:
            if feed is not None:
                feed.readers += 1

    def _layer(self, layer: Layer) -> None:
        feeds = self.feeds[layer.input]
        if layer.rest is not None:
            feeds = feeds + self.feeds[layer.rest]
        if layer.weight is None:
            self._neurons_alone(layer, feeds)
            return
        into, out = fans(self.made, layer)
        shape = self.maps.get(layer.input, self.made.values[layer.input].shape)
        kernel = layer.geometry["kernel"]
        # A linear layer behind a flattening is a convolution over the whole map.
        kernel = shape[1:] if layer.input in self.maps else kernel
        eq, before = layer.eq, sum(each.layer.name == layer.name for each in self.layers)
        made = Mapped(
            f"{layer.name} (run {before + 1})" if before else layer.name,
            shape,
            self.made.values[layer.output].shape,
            kernel,
            layer.geometry["stride"],
            layer.geometry["padding"],
            layer.geometry["groups"],
            layer.bias is not None,
            None if eq is None else _KINDS.get(eq.kind, "PLIF"),
            into,
            out,
            plan=self.made,
            layer=layer,
        )
        self._read(made, feeds)
        if layer.rest is not None:
            made.problems.append("currents are added to it that come from elsewhere")
        self.layers.append(made)
        self.feeds[layer.output] = [made]

    def _read(self, made: Mapped, feeds: list[Mapped | None]) -> None:
        made.sources = tuple("input" if feed is None else feed.name for feed in feeds)
        for feed in feeds:
            if feed is not None:
                feed.readers += 1

    def _neurons_alone(self, layer: Layer, feeds: list[Mapped | None]) -> None:
        for feed in feeds:
            if feed is not None:
                feed.problems.append(f"{layer.name} fires on what is made of it, not on its sums")
        self.feeds[layer.output] = feeds

    def _step(self, step: Step) -> None:
        feeds = [feed for i in step.inputs for feed in self.feeds[i]]
        self.feeds[step.output] = feeds
        if step.op == "reshape":
            given = step.inputs[0]
            self.maps[step.output] = self.maps.get(given, self.made.values[given].shape)
        elif step.op in ("avgpool", "adaptive"):
            self._pool(step, feeds)
        elif step.op not in ("add", "cat", "mean", "voting"):
            for feed in feeds:
                if feed is not None:
                    feed.problems.append(f"the operation {step.op} follows ({step.name})")

    def _pool(self, step: Step, feeds: list[Mapped | None]) -> None:
        window = windows(step)
        for feed in feeds:
            if feed is None:
                continue
            if window is None or len({*window[0], *window[1]}) != 1 or any(window[2]):
                feed.problems.append(f"{step.name} pools by windows that are not equal squares")
            elif feed.neuron is None:
                feed.problems.append(f"{step.name} pools its sums: pool the spikes behind neurons")
            else:
                feed.pool *= window[0][0]
