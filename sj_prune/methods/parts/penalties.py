"""Penalties: what training does to the weights so that pruning hurts less."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sj_prune._checks import check_choice
from sj_prune.methods.view import LayerView, NetView


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """Terms of a loss beside the user's own, by phase; each phase is a function or None.

    Args:
        gradient: called as ``gradient(layer)`` before a step of the optimizer that moves the layer:
            it adds to ``layer.grad`` in place, or to the gradient of gamma, as `of` says.
        proximal: called as ``proximal(layer, lr)`` after it: changes ``layer.weight`` in place,
            outside of the optimizer's moments; `lr` is the learning rate of the weight.
        prepare: called as ``prepare(net)`` once a step, before an update that is due and before the
            gradient terms; it sees all layers and may ask what an update would keep.
        finish: called as ``finish(net)`` once a step, after the proximal terms of the optimizer
            whose steps count: changes weights of `net`'s layers in place, as `proximal` does.
        spikes: called as ``spikes(s)`` in the backward pass, with what left a neuron layer in train
            mode, ``[T, N, *]`` (or a single step): returns the gradient ``dP/ds`` of a term in its
            shape, which is added there. Under a GradScaler: ``attach(optimizer, scaler=scaler)``.
        synops: called as ``synops(memory, found)`` in the backward pass, with `NetView.memory` and
            the SynOps `S` a sample, as `NetView.synops` has them of this rank: returns ``dP/dS`` of
            a term, a tensor; spikes get their share of it. A GradScaler as with `spikes`.
        of: "weight", or "gamma": what the gradient term changes the gradient of.
        keeps: called as ``keeps(layer)``: what it keeps of a layer in ``layer.state``, as it is at
            first, by name. What is declared here is checked when a checkpoint is loaded.
        remembers: numbers in `NetView.memory`, as they are at first, by name; checked likewise.
    """

    gradient: Callable[[LayerView], None] | None = None
    proximal: Callable[[LayerView, float], None] | None = None
    prepare: Callable[[NetView], None] | None = None
    finish: Callable[[NetView], None] | None = None
    spikes: Callable[[Tensor], Tensor] | None = None
    synops: Callable[[Mapping[str, Tensor], Tensor], Tensor] | None = None
    of: str = "weight"
    keeps: Callable[[LayerView], dict[str, Tensor]] | None = None
    remembers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("of", self.of, ("weight", "gamma"))
        for name in ("gradient", "proximal", "prepare", "finish", "spikes", "synops", "keeps"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"Expected {name} of a penalty to be a function but got {value!r}")


def add_gamma_l1(layer: LayerView, strength: float) -> None:
    """Add the gradient of ``strength * sum |gamma|`` over this layer's channels of its norm."""
    parameter = None if layer.norm is None else layer.norm._parameters.get("weight")
    if parameter is None or parameter.grad is None:
        return
    term = strength * torch.sign(parameter.detach()).to(parameter.grad)
    if layer.norm_channels is None:
        parameter.grad.add_(term)
    else:
        mine = layer.norm_channels.to(term.device)
        parameter.grad.index_add_(0, mine, term[mine])
