"""What a method sees of a layer: weight, gradient, mask, norm, and what its neurons recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sj_prune._checks import function_name


class _Recorder(Protocol):
    """What a view reads of a recording neuron layer."""

    activity: Any

    @property
    def peak(self) -> float:
        """Of the surrogate derivative."""
        ...


class LayerActivity:
    """What the neurons that a weight feeds have recorded: the mean over them.

    Args:
        nodes: the recording neuron layers that follow the weight, at least one.
        channels: for each node, which of its channels belong to each output channel of the weight,
            ``[C_out, k]`` (behind a flatten k are more than one: their mean counts); None: they
            correspond one to one.
    """

    def __init__(
        self, nodes: Sequence[_Recorder], channels: Sequence[Tensor | None] | None = None
    ) -> None:
        self._nodes = tuple(nodes)
        self._channels = tuple(channels) if channels is not None else (None,) * len(self._nodes)

    def samples(self, name: str | Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return what each neuron layer showed of the last batch, ``[N, C_out]``; none before one.

        Args:
            name: a function of spikes that is read.
        """
        found, key = [], name if isinstance(name, str) else function_name(name)
        for node, channels in zip(self._nodes, self._channels, strict=True):
            latest, names = node.activity.latest, node.activity.names
            if latest is not None and key in names:
                value = latest[..., names.index(key)]
                mapped = None if channels is None else channels.to(value.device)
                found.append(value if mapped is None else value[:, mapped].mean(2))
        return found

    def mean(self, name: str | Callable[[Tensor], Tensor], *, relative: bool = False) -> Tensor:
        """Return one statistic per output channel, ``[C_out]`` in float64.

        Args:
            name: a statistic, such as ``"criticality_max"``, or a function of spikes.
            relative: divide by each surrogate's peak `g'(0)`, so that layers with different
                surrogates compare.
        """
        values, key = [], name if isinstance(name, str) else function_name(name)
        for node, channels in zip(self._nodes, self._channels, strict=True):
            value = node.activity.mean(key)
            if channels is not None:
                value = value[channels.to(value.device)].mean(1)
            values.append(value / node.peak if relative and node.peak else value)
        return torch.stack(values).mean(0)


@dataclass(frozen=True)
class LayerView:
    """What a plan sees of one layer. Read-only but in the phases of a penalty.

    Attributes:
        name: module name of the layer.
        weight: its weight, detached; of a layer that sleeping channels are cut out of, as it was
            when they were awake. ``[C_out, C_in / groups, *]``; of a transposed convolution
            ``[C_in, C_out / groups, *]``, as torch has it.
        grad: the pure loss gradient of the weight, or None if there is none (yet).
        mask: True = kept: the weight's shape, or ``[C_out]`` for `Channels`.
        activity: of the neurons it feeds; None if no recording neuron follows.
        norm: the normalisation layer behind the weight, or None. Where a norm follows several
            layers together, the first of them alone has it.
        step: the optimizer step, from 1.
        seed: of `generator`, another one for every layer and update.
        norm_channels: which channels of the norm are this layer's, ``[C_out]``; None = all of them.
        state: the plan's own tensors for this layer; they enter the checkpoint. Beside them
            ``"awake"`` with `Channels`: every channel's last drop score while awake, ``[C_out]``.
        bias: of the layer, detached, as `weight`; None without one.
        bias_grad: its pure loss gradient, or None.
        inputs: of the neurons that its input comes from; None if none of them records.
        places: how many places of its input map each weight meets in the first forward,
            ``H W / stride^2``; 1 of a linear layer; None before one.
        transposed: groups of a transposed convolution; 0 for every other layer.
        fed: what the layer multiplied with its weight in the last forward, one row an output place,
            ``[groups, T, places, weight.shape[1:].numel()]``; for scores that accumulate and read
            "inputs", in `sj_prune.prune` alone, else None.
    """

    name: str
    weight: Tensor
    grad: Tensor | None
    mask: Tensor
    activity: LayerActivity | None
    norm: nn.Module | None
    step: int
    seed: int
    norm_channels: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    bias: Tensor | None = None
    bias_grad: Tensor | None = None
    inputs: LayerActivity | None = None
    places: float | None = None
    transposed: int = 0
    fed: Tensor | None = None

    @cached_property
    def generator(self) -> torch.Generator:
        """Random numbers for this layer and update, on the weight's device."""
        return torch.Generator(self.weight.device).manual_seed(self.seed)

    @property
    def gamma(self) -> Tensor | None:
        """The norm's weight for each output channel, ``[C_out]``; None without a norm."""
        return self._of_norm("weight")

    @property
    def beta(self) -> Tensor | None:
        """The norm's bias for each output channel, ``[C_out]``; None without a norm."""
        return self._of_norm("bias")

    @property
    def gamma_grad(self) -> Tensor | None:
        """The loss gradient of `gamma`, ``[C_out]``; None without one."""
        return self._of_norm("weight", grad=True)

    @property
    def beta_grad(self) -> Tensor | None:
        """The loss gradient of `beta`, ``[C_out]``; None without one."""
        return self._of_norm("bias", grad=True)

    def _of_norm(self, attribute: str, *, grad: bool = False) -> Tensor | None:
        parameter = None if self.norm is None else self.norm._parameters.get(attribute)
        value = None if parameter is None else parameter.grad if grad else parameter.detach()
        if value is None or self.norm_channels is None:
            return value
        return value[self.norm_channels.to(value.device)]

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.weight.shape[1] * self.transposed if self.transposed else self.weight.shape[0]

    def per_weight(self, values: Tensor) -> Tensor:
        """Return a value of every output channel, ``[C_out]``, as one that broadcasts to `weight`.

        A score need not call it: what it returns as ``[C_out]`` is spread like this.
        """
        rows, columns, *kernel = self.weight.shape
        ones = [1] * len(kernel)
        if not self.transposed:
            return values.view(-1, 1, *ones)
        groups = values.view(self.transposed, 1, columns)
        return groups.expand(-1, rows // self.transposed, -1).reshape(rows, columns, *ones)

    def dense_grad(self) -> Tensor:
        """Return the gradient.

        Raises:
            RuntimeError: if there is none, naming the layer.
        """
        if self.grad is None:
            raise RuntimeError(
                f"Expected a gradient of layer {self.name!r} to score its growth but it is None: "
                "call loss.backward() before the update, and mark the score with "
                '@reads("gradient"); name a layer without one in skip='
            )
        return self.grad


@dataclass(frozen=True)
class NeuronView:
    """What gates see of a neuron layer, once a step.

    Attributes:
        name: of the neuron layer.
        state: the tensors that are kept of it, ``"gate"`` among them, ``[C, *]``; they enter the
            checkpoint.
        grad: the loss gradient of the gate since the last step, the mean over ranks; 0 if the layer
            did not run.
        fan_out: how many weights a spike meets, ``sum C_out k_h k_w / stride^2`` over the layers
            that read it.
        step: the optimizer step, from 1.
    """

    name: str
    state: dict[str, Tensor]
    grad: Tensor
    fan_out: float
    step: int


@dataclass(frozen=True)
class NetView:
    """What a penalty sees of the whole network, once a step.

    Attributes:
        names: of the layers that are scored.
        layer: returns the view of one of them.
        step: the optimizer step, from 1.
        memory: tensors of the whole network, by name; they enter the checkpoint.
        would_drop: called as ``would_drop(score=None, keep=None)``: which units an update without
            regrowth would drop now by a score (the plan's own), to `keep` units (those of the final
            sparsity): True = dropped, in the shape of each layer's mask. Every rank of a
            distributed run has to call it.
        learning_rate: returns that of a layer's weight.
        synops: returns the SynOps a sample of the training forwards since the last step, of the
            weights that are kept and of all, ``[2]`` in float64, for a plan with a penalty on
            them; None without any. Every rank of a distributed run has to call it.
    """

    names: tuple[str, ...]
    layer: Callable[[str], LayerView]
    step: int
    memory: dict[str, Tensor]
    would_drop: Callable[..., Mapping[str, Tensor]]
    learning_rate: Callable[[str], float]
    synops: Callable[[], Tensor | None]

    @property
    def layers(self) -> dict[str, LayerView]:
        """The views of all layers, by name."""
        return {name: self.layer(name) for name in self.names}
