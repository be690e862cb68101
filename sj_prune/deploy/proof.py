"""Layer by layer against float64, each on the spikes that the engine itself fed in.

The engine sums in float32. With ``u = 2^-24`` the sum of `n` products is wrong by at most about
``n u sum |w x|`` (Higham, Accuracy and Stability of Numerical Algorithms, 2002, eq. 3.5), whatever
its order; the same holds of float64's with a far smaller `u`. Where a potential lies further from
the threshold than such errors reach, the spike has to be float64's. From a neuron's first step
within reach on, its spikes are open: they may differ, and are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sj_prune.deploy import leaves
from sj_prune.deploy.plan import Layer, Plan
from sj_prune.deploy.program import Program, Shape
from sj_prune.deploy.weights import Weights
from sj_prune.neurons.reference import IF, LIF

_U = 2.0**-24
_MOST = 1 << 26  # numbers of a layer that are looked at; more samples than that are left out


class ProofError(RuntimeError):
    """Raised where the engine does not compute what the network does; nothing is deployed."""


@dataclass
class Finding:
    """What the proof found for one layer.

    Attributes:
        spikes: how many outputs were compared, steps counted.
        open: how many of them float64 does not decide.
        differ: how many of the open ones differ from float64's.
        error: the largest difference of real outputs.
    """

    spikes: int = 0
    open: int = 0
    differ: int = 0
    error: float = 0.0


def prove(
    made: Plan,
    weights: Mapping[int, Weights],
    kernels: Mapping[int, str],
    shape: Shape,
    x: Tensor,
) -> dict[int, Finding]:
    """Return what was found for each layer, by the number of the value that it makes.

    Args:
        made: what is run; its layers still know their modules.
        weights: of each layer.
        kernels: of each layer.
        shape: of the input.
        x: the input.

    Raises:
        ProofError: if a layer's output differs where it must not.
    """
    program = Program(made, weights, kernels, shape, torch.get_num_threads())
    program(x)
    found = {}
    for layer in made.steps:
        if isinstance(layer, Layer):
            found[layer.output] = _prove_layer(program, layer)
    return found


def _prove_layer(program: Program, layer: Layer) -> Finding:
    size = max(program.plan.values[i].size for i in (layer.input, layer.output))
    samples = max(1, min(program.samples, _MOST // (size * program.steps)))
    x = _looked_at(program, layer.input)[:, :samples]
    rest = None if layer.rest is None else _looked_at(program, layer.rest)[:, :samples]
    planes = max(1, program.plan.forms[layer.input].planes)
    current, error = _current(layer, x, rest, planes)
    out = _looked_at(program, layer.output)[:, :samples]
    if layer.eq is None:
        return _compare_reals(layer, current, error, out)
    steps = program.steps
    current = current.expand(steps, *current.shape[1:])
    return _compare_spikes(layer, current, error.expand_as(current), out)


def _looked_at(program: Program, value: int) -> Tensor:
    """Return a value in float64; what is unpacked to be looked at is left out of later calls."""
    before = len(program.calls)
    x = program.real(value)
    for _, call in program.calls[before:]:
        call()
    del program.calls[before:]
    return x.double()


def _current(layer: Layer, x: Tensor, rest: Tensor | None, planes: int) -> tuple[Tensor, Tensor]:
    """Return what drives the neurons, in float64 and unfolded, and the bound of float32's error."""
    current = driven = x
    error = torch.zeros_like(x)
    for node in layer.parts:
        if node.op in ("layer", "norm"):
            driven = current = leaves.reference(node.op, node.module, node.settings, current)
        elif node.op == "add":
            assert rest is not None  # noqa: S101
            driven, current = current, current + rest
    if layer.weight is not None:
        g = layer.geometry
        arguments = [g[k] for k in ("stride", "padding", "dilation", "groups")]
        flat = x.abs().flatten(0, 1)
        weight = layer.weight.abs()
        sums = F.conv2d(flat, weight, None, *arguments).unflatten(0, x.shape[:2])
        count = (weight != 0).sum((1, 2, 3)).view(-1, 1, 1) * planes
        # Products, sums in any order, the folded weight's own rounding and the scale's.
        error = (count + 8) * _U * sums
    if layer.bias is not None:
        error = error + 4 * _U * (layer.bias.abs().view(-1, 1, 1) + driven.abs())
    if rest is not None:  # adding to 0 is exact
        error = error + 4 * _U * (rest.abs() + current.abs()) * (current != rest)
    return current, error


def _compare_reals(layer: Layer, current: Tensor, error: Tensor, out: Tensor) -> Finding:
    difference = (out - current).abs()
    if bool((difference > error + 1e-30).any()):
        raise ProofError(
            f"Expected {layer.name} to give float64's numbers within float32's error but the "
            f"largest difference is {float(difference.max()):.3g}: please report this"
        )
    return Finding(out.numel(), 0, 0, float(difference.max()))


def _compare_spikes(layer: Layer, current: Tensor, error: Tensor, out: Tensor) -> Finding:
    eq = layer.eq
    assert eq is not None  # noqa: S101
    threshold, rest = (
        float(torch.tensor(k, dtype=torch.float32)) for k in (eq.v_threshold, eq.rest)
    )
    v = torch.full_like(current[0], rest)
    slack = torch.zeros_like(v)  # how far the engine's potential may lie from v
    is_open = torch.zeros_like(v, dtype=torch.bool)
    found = Finding()
    for x, bound, spikes in zip(current, error, out, strict=True):
        h, slack = _charge(layer, x, v, rest, bound, slack)
        is_open |= ((h - threshold).abs() <= slack) & (slack > 0)  # an exact sum decides
        s = (h >= threshold).double()
        wrong = s != spikes
        if bool((wrong & ~is_open).any()):
            raise ProofError(
                f"Expected {layer.name} to give float64's spikes but "
                f"{int((wrong & ~is_open).sum())} that are beyond doubt differ: please report this"
            )
        found.spikes += s.numel()
        found.open += int(is_open.sum())
        found.differ += int(wrong.sum())
        if eq.v_reset is None:
            v = h - s * threshold
            slack = slack + _U * v.abs()
        else:
            v = s * rest + (1 - s) * h
            slack = slack * (1 - s)
    return found


def _charge(
    layer: Layer, x: Tensor, v: Tensor, rest: float, bound: Tensor, slack: Tensor
) -> tuple[Tensor, Tensor]:
    eq = layer.eq
    assert eq is not None  # noqa: S101
    rounding = 4 * _U * (v.abs() + x.abs() + abs(rest))
    if eq.kind == IF or (not eq.decay_input and rest == 0.0):
        rounding = rounding * (v != 0)  # adding to 0 is exact
    if eq.kind == IF:
        return v + x, slack + bound + rounding
    leak = 1.0 / float(torch.tensor(eq.tau, dtype=torch.float32)) if eq.kind == LIF else layer.decay
    kept = slack * abs(1.0 - leak) + rounding * (1.0 + leak)
    if eq.decay_input:
        return v + (x - (v - rest)) * leak, kept + bound * leak
    return v - (v - rest) * leak + x, kept + bound
