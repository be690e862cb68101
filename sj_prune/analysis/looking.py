"""A look at a network that leaves no trace: on a copy of it, in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeAlias

import torch
from torch import OutOfMemoryError, Tensor, nn

from sj_prune import _host
from sj_prune._checks import check_steps
from sj_prune.compaction.build import copied
from sj_prune.network.unheard import unheard
from sj_prune.run.looks import applied
from sj_prune.trained.calibration import batches_of
from sj_prune.wrapper import PruningWrapper

#: called as ``forward(net, *inputs)``, returns the output of a whole sequence
Forward: TypeAlias = Callable[..., Any]
#: called as ``value(output, y)``, returns a mean over the batch
Value: TypeAlias = Callable[[Any, Tensor], float | Tensor]
Labeled: TypeAlias = tuple[tuple[Any, ...], Tensor]

_LOOP = (
    "lead a single-step network over time by forward=lambda net, x_seq: "
    "functional.multi_step_forward(x_seq, net), or mend the loader"
)


def accuracy(output: Any, y: Tensor) -> float:  # noqa: ANN401
    """Return the fraction of right answers of ``output [T, N, K]`` or ``[N, K]``.

    Raises:
        ValueError: for an output of another form.
    """
    shape = list(output.shape) if isinstance(output, Tensor) else None
    if shape is None or len(shape) not in (2, 3) or shape[-2] != len(y):
        got = f"a {type(output).__name__}" if shape is None else str(shape)
        raise ValueError(
            f"Expected one answer a sample, [T, N, K] or [N, K], for {len(y)} labels from the "
            f"network but got {got}: give value=, a function of output and labels"
        )
    answers = (output.mean(0) if output.ndim == 3 else output).argmax(1)
    return float((answers == y).double().mean())


@contextmanager
def looking(net: nn.Module, forward: Forward | None) -> Iterator[nn.Module]:
    """Yield a copy of a network, or of a wrapped one, in eval mode, without gradients.

    Users' hooks do not hear it, and the generators of torch, NumPy and Python are put back.

    Args:
        net: the network.
        forward: what a call of the copy does, with the copy and the inputs; by default its own.

    Raises:
        TypeError: if it is no module.
        RuntimeError: for a wrapper that has been finalized.
    """
    _host.check_module(net)
    if isinstance(net, PruningWrapper):
        net._check_usable()
        applied(net.session)
        net = net.net
    twin = copied(net).eval()
    if forward is not None:
        _lead(twin, forward)
    eager = torch.compiler.set_stance("force_eager")
    with _host.preserved_state(twin), unheard(twin, listeners_only=True), torch.no_grad(), eager:
        yield twin


def _lead(net: nn.Module, forward: Forward) -> None:
    """Let calls of a network be led by a function that calls it itself, step by step."""
    led = False

    def lead(self: nn.Module, *inputs: Any) -> Any:  # noqa: ANN401
        nonlocal led
        if led:
            return vars(self)["_own_forward"](*inputs)
        led = True
        try:
            return forward(self, *inputs)
        finally:
            led = False

    # Bound methods, so that copies of the network are led through themselves.
    vars(net).update(_own_forward=net.forward, forward=MethodType(lead, net))


def labeled(net: nn.Module, loader: Iterable[Any], batches: int | None) -> Iterator[Labeled]:
    """Yield batches as (inputs, labels) on the device of a network.

    Raises:
        ValueError: for batches without one class number a sample, an empty loader, and no batches.
    """
    if batches is not None:
        check_steps("batches", batches)
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    for args, y in batches_of(loader, batches, device):
        if not isinstance(y, Tensor) or y.ndim != 1 or y.is_floating_point():
            got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                "Expected batches (x, y) from the loader with one class number a sample in y, "
                f"integers [N], but got {got}"
            )
        yield args, y


def answered(net: nn.Module, args: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """Return the output of a network from reset neurons.

    Raises:
        ValueError: for inputs that it does not take.
    """
    _host.reset_net(net)
    try:
        return net(*args)
    except (MemoryError, OutOfMemoryError):
        raise
    except Exception as error:
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in args]
        single = all(_host.step_mode(module) != "m" for module in net.modules())
        wanted, advice = ("[N, *]", _LOOP) if single else ("[T, N, *]", "mend the loader")
        raise ValueError(
            f"Expected inputs from the loader as the network takes them, such as {wanted}, but its "
            f"forward of {shapes} raised {type(error).__name__}: {error}: {advice}"
        ) from error


def valued(net: nn.Module, batches: list[Labeled], value: Value) -> float:
    """Return the mean of a value over all samples, each batch from reset neurons."""
    total = 0.0
    for args, y in batches:
        total += float(value(answered(net, args), y)) * len(y)
    return total / sum(len(y) for _, y in batches)
