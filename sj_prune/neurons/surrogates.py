"""Surrogate functions: which of them have a closed-form derivative that engines know.

`g'(u)` is the derivative that a surrogate uses at ``u = H - V_threshold`` (METHODS: symbols).
`lookup` gives an id and the one parameter for the classes in `KNOWN`; every other function, a
subclass included, is served by autograd through the function itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from sj_prune import _host


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
        return spike(x, Known(list(KNOWN).index(Tanh), alpha))

    @staticmethod
    def primitive_function(x: torch.Tensor, alpha: float) -> torch.Tensor:
        """Return the smooth `g(x)`."""
        half = math.tanh(alpha / 2.0)
        return (torch.tanh(alpha * x) + half) / (2.0 * half)

    @staticmethod
    def backward(grad_output: torch.Tensor, x: torch.Tensor, alpha: float) -> torch.Tensor:
        """Return ``grad_output * g'(x)``."""
        return grad_output * _tanh(x, alpha)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return spikes, or the smooth `g` when ``spiking`` is False."""
        function = self.spiking_function if self.spiking else self.primitive_function
        return function(x, self.alpha)


class Known(NamedTuple):
    """A surrogate with a closed form: its place in `KNOWN` and its parameter."""

    id: int
    alpha: float


class ClosedForm(NamedTuple):
    """`g'` of a surrogate class with one parameter `a`, the function's ``alpha``.

    Attributes:
        derivative: ``g'(u, a)`` in torch, elementwise, differentiable itself.
        code: C++ statements that return the same of `u` and `a`, with the functions of
            ``engines/step.h``; `exponential` is for arguments up to 0, and nothing may overflow.
    """

    derivative: Callable[[torch.Tensor, float], torch.Tensor]
    code: str


def _sigmoid(u: torch.Tensor, a: float) -> torch.Tensor:
    s = torch.sigmoid(a * u)
    return a * (s * (1.0 - s))


def _tanh(u: torch.Tensor, a: float) -> torch.Tensor:
    # 1/cosh(x)^2 = 4e/(1+e)^2 with e = exp(-2|x|): cosh overflows, and then its gradient is nan.
    e = torch.exp(-2.0 * a * u.abs())
    return 2.0 * a / math.tanh(a / 2.0) * e / (1.0 + e).square()


_HOSTS: dict[str, ClosedForm] = {
    "Sigmoid": ClosedForm(
        _sigmoid,
        # a s (1 - s), with e = exp(-a |u|)
        "const A e = exponential(minus_absolute(a * u)); const A d = A(1) + e;"
        "return ratio(a * e, d * d);",
    ),
    "ATan": ClosedForm(
        lambda u, a: (a / 2.0) / (1.0 + (math.pi / 2.0 * a * u).square()),
        "const A z = A(1.5707963267948966) * a * u;return ratio(a * A(0.5), fused(z, z, A(1)));",
    ),
    "PiecewiseQuadratic": ClosedForm(
        lambda u, a: (a - a * a * u.abs()).clamp_min(0.0),
        "const A z = a - a * a * absolute(u);return select(z < A(0), A(0), z);",  # a nan stays one
    ),
    "PiecewiseExp": ClosedForm(
        lambda u, a: a / 2.0 * torch.exp(-a * u.abs()),
        "return a * A(0.5) * exponential(a * minus_absolute(u));",
    ),
    "SoftSign": ClosedForm(
        lambda u, a: 1.0 / (2.0 * a * (1.0 / a + u.abs()).square()),
        # (a / 2) / (1 + a |u|)^2
        "const A z = fused(a, absolute(u), A(1)); return ratio(a * A(0.5), z * z);",
    ),
    "SuperSpike": ClosedForm(
        lambda u, a: a / (1.0 + u.abs()).square(),
        "const A z = A(1) + absolute(u); return ratio(a, z * z);",
    ),
    "Erf": ClosedForm(
        lambda u, a: a / math.sqrt(math.pi) * torch.exp(-(a * u).square()),
        "const A z = a * u; return a * A(0.56418958354775629) * exponential(-(z * z));",
    ),
    "Rect": ClosedForm(
        lambda u, a: a * (u.abs() < 0.5 / a).to(u.dtype),
        "return select(absolute(u) < A(0.5) / a, a, A(0));",
    ),
}
_TANH = ClosedForm(
    _tanh,
    # 1 / cosh(z)^2 = 4 e / (1 + e)^2 with e = exp(-2 |z|), tanh(a / 2) = (1 - t) / (1 + t)
    "const A e = exponential(A(2) * minus_absolute(a * u)); const A d = A(1) + e;"
    "const A t = exponential(-a);"
    "return a / (A(2) * ((A(1) - t) / (A(1) + t))) * ratio(A(4) * e, d * d);",
)
#: class -> `g'`. A class is known by identity: a user's subclass with its own curve is not.
KNOWN: dict[type, ClosedForm] = {
    cls: form  # not every release has all of them
    for name, form in _HOSTS.items()
    if (cls := getattr(_host.surrogate, name, None)) is not None
}
KNOWN[Tanh] = _TANH


def lookup(function: Callable[[torch.Tensor], torch.Tensor]) -> Known | None:
    """Return id and parameter of a surrogate with a known derivative, else None.

    None also for ``spiking=False`` and for a parameter that is not a plain number (a learnable
    one needs its gradient): such functions run through autograd.
    """
    alpha = getattr(function, "alpha", None)
    if type(function) not in KNOWN or not getattr(function, "spiking", False):
        return None
    if not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        return None
    return Known(list(KNOWN).index(type(function)), float(alpha))


def form_of(known: Known) -> ClosedForm:
    """Return the row of `KNOWN`."""
    return list(KNOWN.values())[known.id]


def derivative(u: torch.Tensor, known: Known) -> torch.Tensor:
    """Return `g'(u)`, elementwise, same shape and dtype as `u`."""
    return form_of(known).derivative(u, known.alpha)


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
