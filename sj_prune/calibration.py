"""What a trained network says of itself on some batches: statistics, gradients, norms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.methods.base import Method
from sj_prune.outline import as_args
from sj_prune.wrapper import PruningWrapper

__all__ = ["Loss", "calibrate", "few_batches", "inputs_of", "mean_cross_entropy", "renormalize"]

#: called as ``loss(output, target)``, returns a scalar
Loss = Callable[[Any, Any], Tensor]
_NORMS = nn.modules.batchnorm._NormBase


def mean_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of the mean over time: ``output [T, N, K]`` or ``[N, K]``."""
    return F.cross_entropy(output.mean(0) if output.ndim == 3 else output, target)


def few_batches(
    loader: Iterable[Any], batches: int, device: torch.device
) -> list[tuple[tuple[Any, ...], Any]]:
    """Return the first batches of a loader as (inputs, target), on a device.

    Args:
        loader: yields ``(x, y)`` pairs, or inputs alone.
        batches: how many.
        device: of the network.

    Raises:
        ValueError: if the loader is empty.
    """

    def move(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, tuple | list):
            return tuple(move(item) for item in value)
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    found = []
    for batch in islice(loader, batches):
        pair = batch if isinstance(batch, tuple | list) else (batch, None)
        if len(pair) != 2:
            raise ValueError(
                f"Expected batches (x, y) from the loader but got {len(pair)} items: let it yield "
                "((x1, x2, ...), y) for a network with several inputs"
            )
        found.append((as_args(move(pair[0])), move(pair[1])))
    if not found:
        raise ValueError("Expected at least one batch from the loader but it is empty")
    return found


def inputs_of(batches: Iterable[tuple[tuple[Any, ...], Any]]) -> Iterator[tuple[Any, ...]]:
    """Return the inputs of batches."""
    return (args for args, _ in batches)


def calibrate(
    model: PruningWrapper, batches: Iterable[tuple[tuple[Any, ...], Any]], loss: Loss
) -> None:
    """Let neurons record, and gradients add up, what the method scores: one pass in eval mode.

    Gradients are the mean over batches; ``method.observe`` sees those of every batch.
    """
    observes = type(model.method).observe is not Method.observe
    if not (model.method.needs or observes or model.method.gradient != "never"):
        return
    backward = observes or model.method.gradient != "never"
    sums: dict[nn.Parameter, Tensor] = {}
    with _evaluating(model), model.recording(), model.dense_gradients():
        number = 0
        for args, target in batches:
            _host.reset_net(model)
            model.zero_grad(set_to_none=True)
            with torch.set_grad_enabled(backward):
                output = model(*args)
            if backward:
                _backward(output, target, loss)
                _observe(model, observes)
                _add(model, sums)
            number += 1
        _host.reset_net(model)
    for parameter, value in sums.items():
        parameter.grad = value / number


def _backward(output: Any, target: Any, loss: Loss) -> None:  # noqa: ANN401
    if target is None:
        raise ValueError(
            "Expected (x, y) batches, for this method scores gradients of the loss, but the loader "
            "yields inputs alone"
        )
    loss(output, target).backward()


def _observe(model: PruningWrapper, observes: bool) -> None:
    if observes:
        for name in model.masks.layers:
            model.method.observe(model.updater.view(name))


def _add(model: PruningWrapper, sums: dict[nn.Parameter, Tensor]) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            known = sums.get(parameter)
            sums[parameter] = parameter.grad.clone() if known is None else known + parameter.grad


@contextmanager
def _evaluating(model: PruningWrapper) -> Iterator[None]:
    """Put the network into eval mode, its neurons recording all the same."""
    training = {module: module.training for module in model.modules()}
    kept = {node: node.record_in_eval for node in model.nodes.values()}
    try:
        model.eval()
        for node in model.nodes.values():
            node.record_in_eval = True
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        for node, recorded in kept.items():
            node.record_in_eval = recorded


@torch.no_grad()
def renormalize(net: nn.Module, inputs: Iterable[tuple[Any, ...]]) -> None:
    """Estimate the running statistics of all batch norms anew: the mean over these inputs.

    Pruning changes what norms see; stale statistics cost more accuracy than the weights that went.

    Args:
        net: a network; its mode and everything but the statistics stay.
        inputs: positional inputs of each forward.
    """
    norms = [m for m in net.modules() if isinstance(m, _NORMS) and m.track_running_stats]
    if not norms:
        return
    training = {module: module.training for module in net.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    try:
        net.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # the cumulative mean
        for args in inputs:
            _host.reset_net(net)
            net(*args)
        _host.reset_net(net)
    finally:
        for module, flag in training.items():
            module.training = flag
        for norm, momentum in momenta.items():
            norm.momentum = momentum
