"""Modules that the engine takes over: what each computes, as a node of the graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.deploy.graph import UnsupportedError
from sj_prune.neurons.reference import IF, LIF, PLIF, Equations, forward

_POOLS = {
    "MaxPool1d": "maxpool",
    "MaxPool2d": "maxpool",
    "AvgPool1d": "avgpool",
    "AvgPool2d": "avgpool",
    "AdaptiveAvgPool1d": "adaptive",
    "AdaptiveAvgPool2d": "adaptive",
}
_PACKAGES = ("torch.nn.modules.", "spikingjelly.activation_based.layer")


def kind_of(module: nn.Module) -> str | None:
    """Return the node that `module` becomes as a whole, or None: its operations are looked at.

    Raises:
        UnsupportedError: for neurons that the engine has no equation of.
    """
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and _host.is_plain_layer(module):
        return "layer"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "norm"
    if _host.is_neuron(module):
        return "neuron"
    name = type(module).__name__
    if type(module).__module__.startswith(_PACKAGES):
        return "voting" if name == "VotingLayer" else _POOLS.get(name)
    return None


def check_precision(net: nn.Module) -> None:
    """Refuse half precision: what is compared with it would differ by its rounding.

    Raises:
        UnsupportedError: with the first parameter that has one.
    """
    for name, parameter in net.named_parameters():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise UnsupportedError(
                f"Expected parameters in float32 or float64 but {name} is in {parameter.dtype}: "
                "net.float()"
            )


def single_step(net: nn.Module) -> str:
    """Return a hint at the first module in single-step mode, or nothing."""
    steps = (name for name, m in net.named_modules() if getattr(m, "step_mode", "m") == "s")
    return next((f" ({n} is in single-step mode: sequences need step_mode='m')" for n in steps), "")


def pair(value: Any) -> tuple[int, int]:  # noqa: ANN401
    """Return a setting of one or two dimensions as ``(height, width)``."""
    if isinstance(value, int):
        return value, value
    values = tuple(value)
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])


def settings_of(kind: str, module: nn.Module) -> dict[str, Any]:
    """Return what the node needs to know of its module.

    Raises:
        UnsupportedError: for a setting that the engine does not have.
    """
    if kind == "layer":
        return _layer(module)
    if kind in ("maxpool", "avgpool"):
        return _pool(kind, module)
    if kind == "adaptive":
        flat = type(module).__name__.endswith("1d")
        size = module.output_size
        return {"size": (1, *pair(size)[1:]) if flat else _size(size)}
    if kind == "voting":
        return {"voters": module.voting_size}
    if kind == "norm":
        _check_norm(module)
    return {}


def _size(size: Any) -> tuple[Any, Any]:  # noqa: ANN401
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _layer(module: Any) -> dict[str, Any]:  # noqa: ANN401
    if isinstance(module, nn.Linear):
        return {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)} | {
            "groups": 1
        }
    if module.padding_mode != "zeros":
        raise UnsupportedError(f"its padding_mode is {module.padding_mode!r}, not 'zeros'")
    flat = isinstance(module, nn.Conv1d)
    grown = [_flat(getattr(module, name), flat, 1) for name in ("kernel_size", "stride")]
    dilation = _flat(module.dilation, flat, 1)
    kernel, stride = grown
    padding = _padding(module, kernel, dilation, flat)
    return {
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": module.groups,
    }


def _flat(value: Any, flat: bool, other: int) -> tuple[int, int]:  # noqa: ANN401
    """Return ``(height, width)``, `other` for the height of what has one dimension."""
    if flat:
        return other, value if isinstance(value, int) else value[0]
    return pair(value)


def _padding(
    module: Any,  # noqa: ANN401
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    flat: bool,
) -> tuple[int, int]:
    if not isinstance(module.padding, str):
        return _flat(module.padding, flat, 0)
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if module.padding == "valid":
        return 0, 0
    if any(n % 2 for n in total):
        raise UnsupportedError("padding='same' with an even kernel pads one side more")
    return total[0] // 2, total[1] // 2


def _pool(kind: str, module: Any) -> dict[str, Any]:  # noqa: ANN401
    flat = type(module).__name__.endswith("1d")
    stride = module.kernel_size if module.stride is None else module.stride
    dilation = getattr(module, "dilation", 1)
    if getattr(module, "return_indices", False):
        raise UnsupportedError("it returns indices")
    plain = not module.ceil_mode and getattr(module, "divisor_override", None) is None
    padding = _flat(module.padding, flat, 0)
    if kind == "avgpool" and any(padding) and not module.count_include_pad:
        plain = False
    return {
        "kernel": _flat(module.kernel_size, flat, 1),
        "stride": _flat(stride, flat, 1),
        "padding": padding,
        "dilation": _flat(dilation, flat, 1),
        "ceil_mode": module.ceil_mode,
        "count_include_pad": getattr(module, "count_include_pad", True),
        "divisor": getattr(module, "divisor_override", None),
        "plain": plain,
    }


def _check_norm(norm: Any) -> None:  # noqa: ANN401
    if norm.running_mean is None:
        raise UnsupportedError("it keeps no running statistics, so eval mode norms by the batch")


def equations(node: Any) -> tuple[Equations, float]:  # noqa: ANN401
    """Return a neuron layer's settings, and ``sigmoid(w)`` for PLIF (else 0).

    Raises:
        UnsupportedError: for other neurons than IF, LIF and PLIF, and for single-step mode.
    """
    if not _host.is_stock_neuron(node):
        raise UnsupportedError(
            f"{type(node).__name__} is none of the IF, LIF and PLIF neurons of SpikingJelly"
        )
    if node.step_mode != "m":
        raise UnsupportedError(
            'it is in single-step mode: functional.set_step_mode(net, "m") if the network '
            "has no loop over time of its own"
        )
    if _host.has_explicit_precision(node):
        raise UnsupportedError("its state has a precision of its own")
    decay, kind, tau = 0.0, IF, 1.0
    if isinstance(node, _host.ParametricLIFNode):
        kind, decay = PLIF, float(node.w.detach().float().sigmoid())
    elif isinstance(node, _host.LIFNode):
        kind, tau = LIF, float(node.tau)
    if isinstance(node.v_threshold, Tensor) or isinstance(node.v_reset, Tensor):
        raise UnsupportedError("its threshold or reset is a tensor")
    eq = Equations(
        kind,
        tau,
        bool(getattr(node, "decay_input", False)),
        float(node.v_threshold),
        None if node.v_reset is None else float(node.v_reset),
        True,
    )
    return eq, decay


def reference(kind: str, module: Any, settings: dict[str, Any], x: Tensor) -> Tensor:  # noqa: ANN401
    """Return what the graph takes `module` to compute, in plain torch.

    Args:
        kind: of `kind_of`.
        module: the module.
        settings: of `settings_of`.
        x: ``[T, N, C, H, W]`` in any floating type.
    """
    flat, dtype = x.flatten(0, 1), x.dtype
    if kind == "layer":
        weight = module.weight.detach().to(dtype)
        bias = None if module.bias is None else module.bias.detach().to(dtype)
        weight = weight.reshape(*weight.shape[:2], *settings["kernel"])
        y = F.conv2d(flat, weight, bias, *(settings[k] for k in _CONV))
    elif kind == "norm":
        mean, var, gamma, beta = (
            None if t is None else t.detach().to(dtype)
            for t in (module.running_mean, module.running_var, module.weight, module.bias)
        )
        y = F.batch_norm(flat, mean, var, gamma, beta, eps=module.eps)
    elif kind == "neuron":
        eq, _ = equations(module)
        w = module.w.detach() if eq.kind == PLIF else None
        v = torch.full_like(x[0], eq.rest)
        return torch.stack(forward(x, v, w, eq, None).spikes)
    else:
        y = pooled(kind, settings, flat)
    return y.unflatten(0, x.shape[:2])


_CONV = ("stride", "padding", "dilation", "groups")


def pooled(kind: str, settings: dict[str, Any], x: Tensor) -> Tensor:
    """Return `x` ``[N, C, H, W]`` pooled."""
    if kind == "adaptive":
        return F.adaptive_avg_pool2d(x, settings["size"])
    if kind == "voting":
        voters = settings["voters"]
        return x.unflatten(1, (x.shape[1] // voters, voters)).mean(2)
    kernel, stride, padding = (settings[k] for k in ("kernel", "stride", "padding"))
    ceil_mode = settings["ceil_mode"]
    if kind == "maxpool":
        return F.max_pool2d(x, kernel, stride, padding, settings["dilation"], ceil_mode)
    include, divisor = settings["count_include_pad"], settings["divisor"]
    return F.avg_pool2d(x, kernel, stride, padding, ceil_mode, include, divisor)


def agrees(kind: str, module: nn.Module, settings: dict[str, Any], x: Tensor, y: Tensor) -> bool:
    """Tell whether a module gave for `x` what its class says: `y`, ``[T, N, C, H, W]`` both."""
    if kind == "neuron":  # in its own precision: in another one a spike may differ
        wrong = reference(kind, module, settings, x) != y
        return float(wrong.double().mean()) < 1e-3
    x, y = x.double(), y.double()
    ours = reference(kind, module, settings, x)
    allowed = 1e-3 * float(y.abs().max()) + 1e-15
    if kind == "norm":  # behind a dead layer it magnifies rounding alone, by up to eps**-0.5
        allowed += 1e-6 * float(_magnitude(module, x))
    return ours.shape == y.shape and float((ours - y).abs().max()) <= allowed


def _magnitude(norm: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """Return the largest term in what a norm computes."""
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double().abs()
    terms = x.abs().amax((0, 1, 3, 4)) + norm.running_mean.double().abs()
    return (terms * gain).max()
