"""Forwards of float64 copies: as they are, or with a dense signal in place of spikes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from sj_prune import _host
from sj_prune.network.unheard import unheard

_RTOL, _ATOL = 1e-9, 1e-12  # of a float64 result, and of its largest value


class ForwardError(RuntimeError):
    """Raised by a forward of a copy; names the module that raised."""

    def __init__(self, module: str, error: Exception) -> None:
        lines = str(error).strip().splitlines()
        self.module = module
        self.reason = f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
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
    # In units of its own size, so that the signal dies out in no layer and saturates in none.
    return torch.tanh(2 * x / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny))


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
def _located(net: nn.Module) -> Iterator[None]:
    """Turn an exception of a forward into one that names the module."""
    running: list[str] = []

    def left(*_: Any) -> None:  # noqa: ANN401 (a hook that returns something replaces the output)
        running.pop()

    with ExitStack() as stack:
        for name, module in net.named_modules():
            enter = module.register_forward_pre_hook(lambda _m, _a, name=name: running.append(name))
            stack.callback(enter.remove)
            stack.callback(module.register_forward_hook(left).remove)
        try:
            yield
        except Exception as error:
            raise ForwardError(running[-1] if running else "", error) from error


def evaluate(
    net: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    dense: bool,
) -> Result:
    """Run a float64 copy in eval mode.

    Args:
        net: the copy; its neurons are reset before.
        args: positional inputs in float64.
        kwargs: keyword inputs in float64.
        dense: neurons return a smooth signal; no gradients then.

    Raises:
        ForwardError: naming the module, whatever the forward raised.
    """
    _host.reset_net(net)
    inputs = args if dense else tree_map(_leaf, args)
    leaves = [x for x in tensors_of(inputs) if x.requires_grad]
    with _alike(net), unheard(net), _located(net), torch.set_grad_enabled(not dense):
        if dense:
            with hooked(net, smooth, _host.is_neuron):
                out = net(*inputs, **kwargs)
        else:
            out = net(*inputs, **kwargs)
        outputs = tensors_of(out)
        gradients = [] if dense else _gradients(outputs, leaves)
    if not outputs:
        problem = TypeError(f"Expected tensors to be returned but got {type(out).__name__}")
        raise ForwardError("", problem)
    return Result([x.detach() for x in outputs], gradients)


def tensors_of(values: Any) -> list[Tensor]:  # noqa: ANN401
    """Return the tensors in nested values."""
    return [x for x in tree_flatten(values)[0] if isinstance(x, Tensor)]


def _leaf(x: Any) -> Any:  # noqa: ANN401
    floating = isinstance(x, Tensor) and x.is_floating_point()
    return x.detach().clone().requires_grad_() if floating else x


@contextmanager
def _alike(net: nn.Module) -> Iterator[None]:
    """Eager, without autocast, and with the same random numbers (Poisson encoders) every time."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    indices = [device.index or 0] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=indices),
        _host.foreign_generators(),
        torch.autocast(device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        yield


def _gradients(outputs: list[Tensor], leaves: list[Tensor]) -> list[Tensor | None]:
    """Return the gradients of a fixed random projection of the outputs."""
    outputs = [x for x in outputs if x.requires_grad]
    if not outputs or not leaves:
        return []
    generator = torch.Generator("cpu").manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator, device="cpu").to(x) for x in outputs]
    found = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
    return list(found)
