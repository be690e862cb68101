"""Surrogate functions: which of the host's have a closed-form derivative that engines know.

`g'(u)` is the derivative that a surrogate uses at ``u = H - V_threshold`` (METHODS: symbols).
`lookup` gives an id and the one parameter for the classes below; every other function, a subclass
included, is served by autograd through the function itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from sj_prune import _host


def _tanh_derivative(u: torch.Tensor, k: float) -> torch.Tensor:
    # 1/cosh(x)^2 = 4e/(1+e)^2 with e = exp(-2|x|): cosh overflows, and then its gradient is nan.
    e = torch.exp(-2.0 * k * u.abs())
    return 2.0 * k / math.tanh(k / 2.0) * e / (1.0 + e).square()


class Tanh(nn.Module):
    """Hyperbolic-tangent surrogate of the criticality paper, arXiv 2311.16141 eq. (17).

    ``g(u) = (tanh(k u) + tanh(k/2)) / (2 tanh(k/2))``; its derivative is
    ``g'(u) = k / (2 tanh(k/2) cosh(k u)^2)``. SpikingJelly has no such class; this one is used
    like its own: ``LIFNode(surrogate_function=Tanh())``.

    Args:
        alpha: steepness `k`; the released code uses 3.
        spiking: True gives spikes and the surrogate gradient, False the smooth `g` itself.

    Raises:
        ValueError: if `alpha` is not a positive finite number.
    """

    def __init__(self, alpha: float = 3.0, spiking: bool = True) -> None:
        super().__init__()
        if not (isinstance(alpha, (int, float)) and 0 < alpha < math.inf):
            raise ValueError(f"Expected alpha to be a positive finite number but got {alpha!r}")
        self.alpha = float(alpha)
        self.spiking = spiking

    def set_spiking_mode(self, spiking: bool) -> None:
        """Choose spikes (True) or the smooth function (False), as the host's functions do."""
        self.spiking = spiking

    def extra_repr(self) -> str:
        """Return the parameters, as the host prints them."""
        return f"alpha={self.alpha}, spiking={self.spiking}"

    @staticmethod
    def spiking_function(x: torch.Tensor, alpha: float) -> torch.Tensor:
        """Return spikes of ``x = H - V_threshold``, with `g'` as gradient."""
        return spike(x, Known(_TANH, alpha))

    @staticmethod
    def primitive_function(x: torch.Tensor, alpha: float) -> torch.Tensor:
        """Return the smooth `g(x)`."""
        half = math.tanh(alpha / 2.0)
        return (torch.tanh(alpha * x) + half) / (2.0 * half)

    @staticmethod
    def backward(grad_output: torch.Tensor, x: torch.Tensor, alpha: float) -> torch.Tensor:
        """Return ``grad_output * g'(x)``."""
        return grad_output * _tanh_derivative(x, alpha)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return spikes, or the smooth `g` when ``spiking`` is False."""
        function = self.spiking_function if self.spiking else self.primitive_function
        return function(x, self.alpha)


class Known(NamedTuple):
    """A surrogate with a closed form: its id in the engines and its parameter."""

    id: int
    alpha: float


def _sigmoid(u: torch.Tensor, a: float) -> torch.Tensor:
    s = torch.sigmoid(a * u)
    return a * (s * (1.0 - s))


def _atan(u: torch.Tensor, a: float) -> torch.Tensor:
    return (a / 2.0) / (1.0 + (math.pi / 2.0 * a * u).square())


def _piecewise_quadratic(u: torch.Tensor, a: float) -> torch.Tensor:
    return (a - a * a * u.abs()).clamp_min(0.0)


def _piecewise_exp(u: torch.Tensor, a: float) -> torch.Tensor:
    return a / 2.0 * torch.exp(-a * u.abs())


def _soft_sign(u: torch.Tensor, a: float) -> torch.Tensor:
    return 1.0 / (2.0 * a * (1.0 / a + u.abs()).square())


def _super_spike(u: torch.Tensor, a: float) -> torch.Tensor:
    return a / (1.0 + u.abs()).square()


def _erf(u: torch.Tensor, a: float) -> torch.Tensor:
    return a / math.sqrt(math.pi) * torch.exp(-(a * u).square())


def _rect(u: torch.Tensor, a: float) -> torch.Tensor:
    return a * (u.abs() < 0.5 / a).to(u.dtype)


#: class name on the host -> `g'(u, alpha)`; the position in this table is the id in the engines.
KNOWN: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "Sigmoid": _sigmoid,
    "ATan": _atan,
    "PiecewiseQuadratic": _piecewise_quadratic,
    "PiecewiseExp": _piecewise_exp,
    "SoftSign": _soft_sign,
    "SuperSpike": _super_spike,
    "Erf": _erf,
    "Rect": _rect,
    "Tanh": _tanh_derivative,
}
_BY_ID = tuple(KNOWN.values())
_TANH = list(KNOWN).index("Tanh")
# A class of the host is known by identity, so that a user's subclass with its own curve is not.
_CLASSES: dict[type, int] = {
    cls: index
    for index, name in enumerate(KNOWN)
    if (cls := Tanh if name == "Tanh" else getattr(_host.surrogate, name, None)) is not None
}


def lookup(function: Callable[[torch.Tensor], torch.Tensor]) -> Known | None:
    """Return id and parameter of a surrogate with a known derivative, else None.

    None also for ``spiking=False`` and for a parameter that is not a plain number (a learnable
    one needs its gradient): such functions run through autograd.
    """
    index = _CLASSES.get(type(function))
    alpha = getattr(function, "alpha", None)
    if index is None or not getattr(function, "spiking", False):
        return None
    if not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        return None
    return Known(index, float(alpha))


def derivative(u: torch.Tensor, known: Known) -> torch.Tensor:
    """Return `g'(u)`, elementwise, same shape and dtype as `u`."""
    return _BY_ID[known.id](u, known.alpha)


class _Spike(torch.autograd.Function):
    """Heaviside step with `g'` as gradient, differentiable any number of times."""

    @staticmethod
    def forward(u: torch.Tensor, known: Known) -> torch.Tensor:
        return (u >= 0).to(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ANN401
        ctx.save_for_backward(inputs[0])
        ctx.known = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        return grad * derivative(ctx.saved_tensors[0], ctx.known), None


def spike(u: torch.Tensor, known: Known) -> torch.Tensor:
    """Return the spikes of ``u = H - V_threshold`` with `g'` of `known` as gradient."""
    return _Spike.apply(u, known)


def autograd_derivative(
    function: Callable[[torch.Tensor], torch.Tensor], u: torch.Tensor
) -> torch.Tensor:
    """Return `g'(u)` of any surrogate by differentiating it once, detached from any graph."""
    return spike_and_derivative(function, u.detach())[1]


def spike_and_derivative(
    function: Callable[[torch.Tensor], torch.Tensor], u: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``function(u)``, in the graph of `u` if it has one, and the detached `g'(u)`.

    Both come from one call. A function that autograd cannot see through, as a plain step, has the
    derivative 0.
    """
    with torch.inference_mode(False), torch.enable_grad():
        if not u.requires_grad:
            # A tensor of inference mode cannot enter a graph; its copy made here can.
            u = (u.clone() if u.is_inference() else u.detach()).requires_grad_()
        s = function(u)
        if not s.requires_grad:
            return s, torch.zeros_like(s)
        (g,) = torch.autograd.grad(s, u, torch.ones_like(s), retain_graph=True)
    return s, g.detach()


def peak(function: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Return `g'(0)`: the scale by which criticality is compared across different surrogates."""
    known = lookup(function)
    tensors = function.parameters() if isinstance(function, nn.Module) else iter(())
    device = next((p.device for p in tensors), torch.device("cpu"))
    zero = torch.zeros(1, dtype=torch.float64, device=device)
    value = derivative(zero, known) if known else autograd_derivative(function, zero)
    return float(value)
