"""Counts what a pruned network's step asks of a device, without one.

On the meta device tensors have no data, so whatever would make the host wait for a device raises
there, and every other operator that is dispatched is one launch of a kernel. Operators that take
tensors of the CPU to the device are host copies: they wait too.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sj_prune
from sj_prune.run import looks, step

# Where the run meets a step: what is dispatched in there is the cost of masks.
SEAMS = [
    *((step, name) for name in ("_begin", "_before", "_after", "_gate", "before_forward")),
    (looks, "before_forward"),
]
ALLOCATIONS = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach"}


class Launches(TorchDispatchMode):
    """Counts operators by name while `on`, and what comes from the host.

    Attributes:
        found: number of launches by operator or kernel.
        copies: operators that read tensors of the CPU, each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.copies: list[str] = []
        self.depth = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.depth:
            self._note(
                func, [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)], result
            )
        return result

    def _note(self, func: Any, given: list[Tensor], result: Any) -> None:
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        devices = {t.device.type for t in (*given, *made)}
        if "meta" not in devices:
            return
        if any(t.device.type == "cpu" and t.numel() and t.ndim for t in given):
            self.copies.append(str(func))
        name = func.__name__.split(".")[0]
        views = all(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        if not views and name not in ALLOCATIONS:
            self.found[name] += 1

    def run(self, device: Any, source: Any, *launches: Any) -> None:
        """Count launches of our own kernels in place of `cupy_device.run`."""
        if self.depth:
            self.found.update(one.kernel for one in launches)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Count inside this block."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def watching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is counted."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.on():
                return function(*args, **kwargs)

        return watched


@contextlib.contextmanager
def seams() -> Iterator[Launches]:
    """Count what the run does around forwards, gradients and steps; its kernels are stubbed."""
    counter = Launches()
    with contextlib.ExitStack() as stack:
        for module, name in SEAMS:
            function = counter.watching(getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, function))
        with contextlib.suppress(ImportError):  # a checkout from before there were any
            from sj_prune.engines import fill
            from sj_prune.masks import fill as masks_fill

            stubs = {"on_device": lambda t: t.device.type == "meta", "_able": lambda: True}
            for module, name in ((fill, "on_device"), (masks_fill, "on_device"), (fill, "_able")):
                stack.enter_context(mock.patch.object(module, name, stubs[name]))
            stack.enter_context(mock.patch.object(fill, "run", counter.run))
        yield counter


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    """Run one step of training on a loss that any network has."""
    functional.reset_net(model)
    loss = model(x).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def to_meta(
    model: sj_prune.PruningWrapper, make: Callable[..., torch.optim.Optimizer]
) -> torch.optim.Optimizer:
    """Move a wrapper to the meta device; return a new attached optimizer."""
    for optimizer in model.optimizers:
        model.release(optimizer)
    functional.reset_net(model)
    model.to("meta")
    optimizer = make(model.parameters())
    model.attach(optimizer)
    return optimizer


def counted(
    model: sj_prune.PruningWrapper,
    make: Callable[..., torch.optim.Optimizer],
    shape: tuple[int, ...],
) -> list[tuple[Counter[str], list[str]]]:
    """Return launches and host copies of three steps in a row, by operator.

    Args:
        model: a wrapper on the CPU whose masks prune something, with no update in the next steps;
            it is moved.
        make: makes the optimizer.
        shape: of an input.
    """
    x = torch.empty(shape, device="meta")
    found = []
    with seams() as counter:
        optimizer = to_meta(model, make)
        for _ in range(3):
            with counter:
                train_step(model, optimizer, x)
            found.append((Counter(counter.found), list(counter.copies)))
            counter.found.clear()
            counter.copies.clear()
    return found
