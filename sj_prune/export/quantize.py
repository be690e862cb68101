"""Weights as integers times a scale for each output channel, where 0 is always 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune._checks import check_choice, check_flag
from sj_prune.network.layers import TRANSPOSED, Layer, is_weighted, why_not

_BITS = (4, 8)


def quantize(net: nn.Module, bits: int = 8, *, power_of_two: bool = False) -> nn.Module:
    """Round the weights of every layer to ``2**bits - 1`` levels, in place.

    Symmetric, a scale for each output channel, so that norms fold into the scales: a weight becomes
    ``scale * n`` with integers ``|n| <= 2**(bits - 1) - 1`` and moves by ``scale / 2`` at most.
    What is 0 stays 0. Biases and norms stay as they are. The scales are kept in buffers
    ``weight_scale``, ``[C_out]``, of the layers that no `state_dict` has, and exports carry them;
    a network that was loaded gets them by quantizing again.

    Args:
        net: what `finalize` or `compact` returns (quantize last), or any other network.
        bits: 8 or 4.
        power_of_two: scales are powers of two: a product is a shift.

    Returns:
        The network.

    Raises:
        ValueError: for other bits, and for a layer whose weights are computed or not finite, by
            name; then nothing has changed.
    """
    layers = _layers(net, bits, power_of_two)
    with torch.no_grad():
        scales = {name: scale_of(layer, bits, power_of_two) for name, layer in layers.items()}
        written: set[int] = set()
        for name, layer in layers.items():
            layer.register_buffer("weight_scale", scales[name], persistent=False)
            layer.weight_bits = bits  # type: ignore[assignment]
            if id(layer.weight) not in written:  # several layers may share one
                layer.weight.copy_(_rounded(layer, scales[name]))
                written.add(id(layer.weight))
    return net


@contextmanager
def fake_quantize(net: nn.Module, bits: int = 8, *, power_of_two: bool = False) -> Iterator[None]:
    """Let layers compute with quantized weights inside this block, to fine-tune for `quantize`.

    ::

        with sj_prune.fake_quantize(model, bits=4):
            train(model)  # attached and masked as ever
        net = sj_prune.quantize(model.finalize(), bits=4)

    The parameters stay in full precision and get the gradient of the rounded weights, straight
    through. A pruned weight is 0 in both; masks, optimizers and checkpoints see parameters alone.

    Args:
        net: a network, or a `PruningWrapper`.
        bits: as of `quantize`.
        power_of_two: likewise.

    Raises:
        ValueError: as `quantize`, and inside another such block.
    """
    layers = _layers(net, bits, power_of_two)
    for name, layer in layers.items():
        hooks = layer._forward_pre_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), _Straight) for hook in hooks):
            raise ValueError(
                f"Expected one fake_quantize at a time but layer {name!r} is in such a block: "
                "leave it first"
            )
    with ExitStack() as stack:
        for layer in layers.values():
            straight = _Straight(bits, power_of_two)
            for handle in (
                layer.register_forward_pre_hook(straight.swap),
                layer.register_forward_hook(straight.put_back, always_call=True),
            ):
                stack.callback(handle.remove)
        yield


class _Straight:
    """Hooks of one layer: rounded weights while it computes."""

    def __init__(self, bits: int, power_of_two: bool) -> None:
        self.bits, self.power_of_two = bits, power_of_two

    def swap(self, layer: Any, _: Any) -> None:  # noqa: ANN401
        weight = layer.weight
        rounded = _rounded(layer, scale_of(layer, self.bits, self.power_of_two))
        del layer._parameters["weight"]
        # The second term is 0, and has the gradient; the sum is the rounded weight to the last bit.
        vars(layer).update(weight=rounded + (weight - weight.detach()), _weight_in_full=weight)

    def put_back(self, layer: Any, *_: Any) -> None:  # noqa: ANN401
        own = vars(layer)
        if "_weight_in_full" in own:
            del own["weight"]
            layer._parameters["weight"] = own.pop("_weight_in_full")


def _layers(net: nn.Module, bits: int, power_of_two: bool) -> dict[str, Layer]:
    """Return the layers to quantize, those that share a weight too."""
    _host.check_module(net)
    check_choice("bits", bits, _BITS)
    check_flag("power_of_two", power_of_two)
    found: dict[str, Any] = {name: m for name, m in net.named_modules() if is_weighted(m)}
    for name, layer in list(found.items()):
        weight = layer._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"Expected the weight of layer {name!r} to be a parameter but it is computed: "
                "remove its parametrization first"
            )
        if why_not(net, name) is not None:  # a part of a neuron is no synapse
            del found[name]
        elif not bool(weight.isfinite().all()):
            raise ValueError(f"Expected finite weights but those of layer {name!r} are not")
    return found


def scale_of(layer: Layer, bits: int, power_of_two: bool) -> Tensor:
    """Return the scale of each output channel, ``[C_out]``: what makes its largest weight fit."""
    weight = layer.weight.detach()
    if isinstance(layer, TRANSPOSED):  # [C_in, C_out / groups, *]
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    scale = weight.flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
    if power_of_two:
        mantissa, exponent = torch.frexp(scale)  # mantissa in [0.5, 1)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    return torch.where(weight.flatten(1).any(1), scale, 1.0)


def _rounded(layer: Layer, scale: Tensor) -> Tensor:
    weight = layer.weight.detach()
    ones = (1,) * (weight.ndim - 2)
    if isinstance(layer, TRANSPOSED):
        each = scale.view(layer.groups, -1).repeat_interleave(len(weight) // layer.groups, 0)
        each = each.view(*weight.shape[:2], *ones)
    else:
        each = scale.view(-1, 1, *ones)
    return (weight / each).round() * each


@dataclass(frozen=True)
class Grid:
    """Quantized weights of one layer, norms folded.

    Attributes:
        bits: of an integer.
        integers: ``[C_out, C_in / groups, kH, kW]``, int8.
        scale: ``[C_out]``, float32; integers times scale are the weights.
    """

    bits: int
    integers: Tensor
    scale: Tensor


def grid_of(module: nn.Module, name: str, folded: Tensor) -> Grid | None:
    """Return integers and scales of a quantized layer; None if it is not quantized.

    Args:
        module: the layer.
        name: of it, for errors.
        folded: its weight with norms folded in, ``[C_out, C_in / groups, kH, kW]`` in float64.

    Raises:
        ValueError: if its weights have changed since.
    """
    scale = module._buffers.get("weight_scale")
    if scale is None:
        return None
    given = module._parameters["weight"].detach().flatten(1).double()  # type: ignore[union-attr]
    exact = given / scale.double()[:, None] if len(scale) == len(given) else given + torch.inf
    levels = exact.round()
    if not bool(((exact - levels).abs() < 1e-3).all()) or float(levels.abs().max()) > 127:
        raise ValueError(
            f"Expected the weights of layer {name!r} to be as quantize() left them but they have "
            "changed: quantize last, after training and compact()"
        )
    largest = levels.abs().argmax(1, keepdim=True)
    found = levels.gather(1, largest)
    real = folded.flatten(1).to(found.device).gather(1, largest) / found
    real = torch.where(found == 0, 1.0, real)  # negative where the norm turns the sign
    integers = (levels * real.sign()).to("cpu", torch.int8).reshape(folded.shape)
    return Grid(int(module.weight_bits), integers, real.abs()[:, 0].float().cpu())  # type: ignore[arg-type]
