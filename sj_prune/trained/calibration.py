"""What a trained network says of itself on some batches: statistics and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.methods.parts import reads_of
from sj_prune.network.inputs import as_args
from sj_prune.run.views import view
from sj_prune.trained.feeding import feeding
from sj_prune.wrapper import PruningWrapper

#: called as ``loss(output, target)``, returns a scalar
Loss = Callable[[Any, Any], Tensor]


def mean_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of the mean over time: ``output [T, N, K]`` or ``[N, K]``."""
    return F.cross_entropy(output.mean(0) if output.ndim == 3 else output, target)


def batches_of(
    loader: Iterable[Any], batches: int | None, device: torch.device
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the first batches of a loader as (inputs, target), on a device.

    Args:
        loader: yields ``(x, y)`` pairs, or inputs alone, ``x`` or ``(x,)``.
        batches: how many; None: all.
        device: of the network.

    Raises:
        ValueError: if the loader is empty or yields something else, or numbers that are not finite.
    """

    def move(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, tuple | list):
            return tuple(move(item) for item in value)
        return value.to(device) if isinstance(value, Tensor) else value

    number = 0
    for batch in islice(loader, batches):
        inputs, target = _pair(batch)
        args = as_args(move(inputs))
        _check_finite(args, number)
        yield args, move(target)
        number += 1
    if not number:
        raise ValueError("Expected at least one batch from the loader but it is empty")


def _check_finite(args: tuple[Any, ...], number: int) -> None:
    for i, value in enumerate(args):
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_sparse:
            continue
        # Only a first input: a mask of attention that is added, later on, may hold -inf.
        if value.isnan().any() or (i == 0 and value.isinf().any()):
            raise ValueError(
                f"Expected finite inputs from the loader but input {i} of batch {number} (from 0) "
                "holds nan or infinite numbers: mend the data, or leave that batch out"
            )


def _pair(batch: Any) -> tuple[Any, Any]:  # noqa: ANN401
    if isinstance(batch, Tensor):
        return batch, None
    if not isinstance(batch, tuple | list):
        raise ValueError(
            f"Expected batches (x, y) from the loader but got {type(batch).__name__}: wrap it in a "
            "generator that yields tensors as the network and the loss take them"
        )
    if len(batch) not in (1, 2):
        raise ValueError(
            f"Expected batches (x, y) from the loader but got {len(batch)} items: let it yield "
            "((x1, x2, ...), y) for a network with several inputs"
        )
    return batch[0], batch[1] if len(batch) == 2 else None


def inputs_of(batches: Iterable[tuple[tuple[Any, ...], Any]]) -> Iterator[tuple[Any, ...]]:
    """Return the inputs of batches."""
    return (args for args, _ in batches)


def calibrate(
    model: PruningWrapper, batches: Iterable[tuple[tuple[Any, ...], Any]], loss: Loss
) -> None:
    """Let neurons record, and gradients add up, what the method scores: one pass in eval mode.

    Gradients are the mean over batches; scores that add up see those of every batch. Neuron layers
    that cut gradients in eval mode run in train mode where gradients are scored: they spike alike.
    """
    plan = model.session.run.plan
    sums_of_gradients = any("inputs" not in reads_of(score).what for score in plan.accumulating)
    backward = sums_of_gradients or plan.gradient != "never"
    if not (plan.statistics or backward or plan.needs_inputs):
        return
    sums: dict[nn.Parameter, Tensor] = {}
    modes = _evaluating(model, differentiable=backward)
    run = model.session.run
    names = tuple(run.masks.layers) if plan.needs_inputs else ()
    grad = torch.set_grad_enabled(backward)
    with modes, model.recording(), model.dense_gradients(), grad, feeding(model.net, names) as fed:
        number = 0
        for args, target in batches:
            _host.reset_net(model)
            model.zero_grad(set_to_none=True)
            output = model(*args)
            if backward:
                _backward(output, target, loss)
                _add(model, sums)
            observe(model, run.masks.layers, fed)
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


@torch.no_grad()
def observe(model: PruningWrapper, names: Iterable[str], fed: Mapping[str, Tensor]) -> None:
    """Let scores add up what they see of a batch.

    Args:
        model: the wrapper.
        names: of the layers that are looked at.
        fed: what went into them, where it is kept.
    """
    run = model.session.run
    for score in run.plan.accumulating:
        for name in names:
            score.add(replace(view(model.net, run, name), fed=fed.get(name)))


def look_again(
    model: PruningWrapper, batches: Iterable[tuple[tuple[Any, ...], Any]], name: str
) -> None:
    """Let scores add up anew what goes into one layer, as the network is now."""
    run = model.session.run
    layer = view(model.net, run, name)
    for score in run.plan.accumulating:
        layer.state.update(score.sums(layer))
    with _evaluating(model, differentiable=False), feeding(model.net, (name,)) as fed:
        for args in inputs_of(batches):
            _host.reset_net(model)
            with torch.no_grad():
                model(*args)
            observe(model, (name,), fed)
        _host.reset_net(model)


def _add(model: PruningWrapper, sums: dict[nn.Parameter, Tensor]) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            known = sums.get(parameter)
            sums[parameter] = parameter.grad.clone() if known is None else known + parameter.grad


@contextmanager
def _evaluating(model: PruningWrapper, *, differentiable: bool) -> Iterator[None]:
    """Put the network into eval mode, its neurons recording all the same."""
    training = {module: module.training for module in model.modules()}
    kept = {node: node.record_in_eval for node in model.nodes.values()}
    try:
        model.eval()
        if differentiable:
            _host.eval_with_gradients(model)
        for node in model.nodes.values():
            node.record_in_eval = True
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        for node, recorded in kept.items():
            node.record_in_eval = recorded
