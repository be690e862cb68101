"""Forwards of float64 copies: as they are, or with a dense signal in place of spikes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from traceback import walk_tb
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from sj_prune import _host
from sj_prune.network.unheard import unheard

_RTOL, _ATOL = 1e-9, 1e-12  # of a float64 result, and of its largest value


class Trail:
    """How far a forward has come: turns an exception into one that names the module.

    Attributes:
        entered: names of the modules that have been called.
        progress: how many calls of modules are over, and the line in the module that raised.
    """

    def __init__(self) -> None:
        self._running: list[tuple[str, nn.Module]] = []
        self.entered: set[str] = set()
        self.progress = (0, 0)

    def enter(self, name: str, module: nn.Module, _: Any) -> None:  # noqa: ANN401
        """Hear that a module is called: a forward pre-hook."""
        self._running.append((name, module))
        self.entered.add(name)

    def leave(self, *_: Any) -> None:  # noqa: ANN401 (what a hook returns replaces the output)
        """Hear that a call of a module is over: a forward hook."""
        self._running.pop()
        self.progress = (self.progress[0] + 1, 0)

    def error(self, error: Exception) -> ForwardError:
        """Return what says where the forward has raised."""
        name, module = self._running[-1] if self._running else ("", None)
        frames = walk_tb(error.__traceback__)
        lines = [line for frame, line in frames if frame.f_locals.get("self") is module]
        self.progress = (self.progress[0], max(lines, default=0))
        return ForwardError(name, error, self)


class ForwardError(RuntimeError):
    """Raised by a forward of a copy; names the module that raised.

    Attributes:
        module: its name.
        reason: what it raised.
        trail: what had run by then.
    """

    def __init__(self, module: str, error: Exception, trail: Trail) -> None:
        lines = str(error).strip().splitlines()
        self.module = module
        self.reason = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
        self.trail = trail
        super().__init__(f"{module or 'the network itself'}: {self.reason}")


class Result(NamedTuple):
    """Output tensors of a forward, and gradients of its inputs (None where there are none)."""

    outputs: list[Tensor]
    gradients: list[Tensor | None]


def doubled(inputs: Any) -> Any:  # noqa: ANN401
    """Return inputs with floating tensors in float64."""

    def double(x: Any) -> Any:  # noqa: ANN401
        floating = isinstance(x, Tensor) and x.is_floating_point()
        return x.detach().double() if floating else x

    return tree_map(double, inputs)


def differ(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two tensors if it is more than rounding, otherwise 0."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.detach().double(), b.detach().double()
    scale = float(a.abs().nan_to_num(0, 0, 0).max()) if a.numel() else 0.0
    if torch.allclose(a, b, rtol=_RTOL, atol=_ATOL * scale, equal_nan=True):
        return 0.0
    return float((a - b).abs().nan_to_num(nan=float("inf")).max())


def finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether all values are finite numbers."""
    return all(bool(x.isfinite().all()) for x in tensors if x.is_floating_point())


def smooth(_: Any, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401
    """Replace the output of a neuron layer (a forward hook). Silent channels change nothing."""
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not isinstance(output, Tensor) or x.shape != output.shape:
        return None
    return _signal(x)


def _signal(x: Tensor) -> Tensor:
    # In units of its own size, so that the signal dies out in no layer and saturates in none.
    return torch.tanh(2 * x / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny))


def _smooth_step(node: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """Stand for the forward of a stock neuron: the signal alone, which costs no loop over time."""
    signal = _signal(x)
    multi_step = node.step_mode == "m"
    node.v = signal[-1] if multi_step else signal
    if multi_step and node.store_v_seq:
        node.v_seq = signal
    return signal


@contextmanager
def _smoothed(net: nn.Module) -> Iterator[None]:
    """Let every neuron layer return a smooth signal."""
    stock = {m for m in net.modules() if _host.is_stock_neuron(m) and "forward" not in vars(m)}
    try:
        for node in stock:
            vars(node)["forward"] = partial(_smooth_step, node)
        with hooked(net, smooth, lambda m: _host.is_neuron(m) and m not in stock):
            yield
    finally:
        for node in stock:
            vars(node).pop("forward", None)


@contextmanager
def hooked(
    net: nn.Module,
    hook: Callable[..., Any],
    where: Callable[[nn.Module], bool],
) -> Iterator[None]:
    """Put a forward hook on modules for a while; it gets the name, all inputs and the output."""
    with ExitStack() as stack:
        for name, module in net.named_modules():
            if where(module):

                def call(_m: Any, a: Any, k: Any, o: Any, name: str = name) -> Any:  # noqa: ANN401
                    return hook(name, (*a, *k.values()), o)

                stack.callback(module.register_forward_hook(call, with_kwargs=True).remove)
        yield


@contextmanager
def _located(net: nn.Module) -> Iterator[list[Trail]]:
    """Yield a list whose last trail is followed."""
    trails = [Trail()]
    with ExitStack() as stack:
        for name, module in net.named_modules():

            def enter(m: nn.Module, args: Any, name: str = name) -> None:  # noqa: ANN401
                trails[-1].enter(name, m, args)

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(lambda *_: trails[-1].leave()).remove)
        yield trails


@contextmanager
def running(
    net: nn.Module, *, dense: bool, located: bool = True
) -> Iterator[Callable[..., Result]]:
    """Yield what runs a float64 copy in eval mode on `args` and `kwargs`, as often as one likes.

    Its neurons are reset before every run, and the random numbers are the same.

    Args:
        net: the copy.
        dense: neurons return a smooth signal; no gradients then.
        located: follow the calls of modules, so that an error names the one that raised.

    Raises:
        ForwardError: by a run, whatever the forward raised.
    """

    def run(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Result:
        _host.reset_net(net)
        _seed()
        inputs = args if dense else tree_map(_leaf, args)
        leaves = [x for x in tensors_of(inputs) if x.requires_grad]
        trails[:] = [Trail()]
        with unheard(net):
            try:
                out = net(*inputs, **kwargs)
                outputs = tensors_of(out)
                gradients = [] if dense else _gradients(outputs, leaves)
                if not outputs:
                    raise TypeError(f"Expected tensors to be returned but got {type(out).__name__}")
            except Exception as error:
                raise trails[-1].error(error) from error
        return Result([x.detach() for x in outputs], gradients)

    smoothed = _smoothed(net) if dense else nullcontext()
    followed = _located(net) if located else nullcontext([Trail()])
    with _alike(net), torch.set_grad_enabled(not dense), smoothed, followed as trails:
        yield run


def evaluate(
    net: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    dense: bool,
) -> Result:
    """Run a float64 copy once, as `running` does."""
    try:
        with running(net, dense=dense, located=False) as run:
            return run(args, kwargs)
    except ForwardError:
        with running(net, dense=dense) as run:  # again, to hear where
            return run(args, kwargs)


def tensors_of(values: Any) -> list[Tensor]:  # noqa: ANN401
    """Return the tensors in nested values."""
    return [x for x in tree_flatten(values)[0] if isinstance(x, Tensor)]


def _leaf(x: Any) -> Any:  # noqa: ANN401
    floating = isinstance(x, Tensor) and x.is_floating_point()
    return x.detach().clone().requires_grad_() if floating else x


@contextmanager
def _alike(net: nn.Module) -> Iterator[None]:
    """Eager, without autocast; random numbers (Poisson encoders) are drawn for nobody else."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    indices = [device.index or 0] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=indices),
        _host.foreign_generators(),
        torch.autocast(device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def _gradients(outputs: list[Tensor], leaves: list[Tensor]) -> list[Tensor | None]:
    """Return the gradients of a fixed random projection of the outputs."""
    outputs = [x for x in outputs if x.requires_grad]
    if not outputs or not leaves:
        return []
    generator = torch.Generator("cpu").manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator, device="cpu").to(x) for x in outputs]
    found = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
    return list(found)
