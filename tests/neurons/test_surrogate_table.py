"""The table of surrogate derivatives, and the functions that are not in it."""

import math

import pytest
import torch
from spikingjelly.activation_based import surrogate
from torch import nn

from sj_prune.neurons import STATISTICS, Tanh
from sj_prune.neurons.surrogates import (
    KNOWN,
    Known,
    autograd_derivative,
    derivative,
    lookup,
    peak,
    spike,
)
from tests.support.neuron_cases import LEGACY, STOCK, SURROGATES, assert_near, current, pair

# The equations a second time, on one number (arXiv 2311.16141 eq. 2b, 17, 18 and SpikingJelly).
FORMULAS = {
    "Sigmoid": lambda u, a: a * math.exp(-a * abs(u)) / (1 + math.exp(-a * abs(u))) ** 2,
    "ATan": lambda u, a: a / 2 / (1 + (math.pi / 2 * a * u) ** 2),
    "PiecewiseQuadratic": lambda u, a: max(0.0, a - a**2 * abs(u)),
    "PiecewiseExp": lambda u, a: a / 2 * math.exp(-a * abs(u)),
    "SoftSign": lambda u, a: 1 / (2 * a * (1 / a + abs(u)) ** 2),
    "SuperSpike": lambda u, a: a / (1 + abs(u)) ** 2,
    "Erf": lambda u, a: a / math.sqrt(math.pi) * math.exp(-((a * u) ** 2)),
    "Rect": lambda u, a: a if abs(u) < 1 / (2 * a) else 0.0,
    "Tanh": lambda u, a: a / (2 * math.tanh(a / 2) * math.cosh(a * u) ** 2),
}
PEAKS = {
    "Sigmoid": 1.0,
    "ATan": 1.0,
    "PiecewiseQuadratic": 1.0,
    "PiecewiseExp": 0.5,
    "SoftSign": 1.0,
    "SuperSpike": 1.0,
    "Erf": 2.0 / math.sqrt(math.pi),
    "Rect": 1.0,
    "Tanh": 3.0 / (2.0 * math.tanh(1.5)),
}
CLASSES = {
    name: Tanh if name == "Tanh" else getattr(surrogate, name)
    for name in FORMULAS
    if name == "Tanh" or hasattr(surrogate, name)
}
# No point lies on a corner, where two one-sided derivatives are both right.
GRID = torch.cat([torch.linspace(-3.0, 3.0, 601) + 0.0017, torch.tensor([0.0, -20.0, 20.0])])
ALPHAS = (0.3, 1.0, 2.0, 3.7)


def autograd_of(function, u):
    leaf = u.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def test_the_table_is_complete_for_this_test():
    assert [cls.__name__ for cls in KNOWN] == list(CLASSES)
    if not LEGACY:
        assert set(CLASSES) == set(FORMULAS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", CLASSES)
def test_derivative_is_the_formula_and_the_hosts(name, alpha, dtype):
    function = CLASSES[name](alpha=alpha)
    known = lookup(function)
    u = GRID.to(dtype)
    ours = derivative(u, known)
    assert ours.dtype == dtype
    assert ours.shape == u.shape
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    formula = torch.tensor([FORMULAS[name](x, alpha) for x in u.tolist()], dtype=torch.float64)
    assert_near(ours.double(), formula, tolerance)
    assert torch.equal(autograd_derivative(function, u), autograd_of(function, u))
    assert_near(ours, autograd_of(function, u), tolerance)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])  # powers of two, so the corners are exact
@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"Tanh"}))
def test_corners_belong_to_the_side_that_the_host_gives_them(name, alpha):
    function = CLASSES[name](alpha=alpha)
    u = torch.tensor([0.0, -0.0, 0.5 / alpha, -0.5 / alpha, 1.0 / alpha, -1.0 / alpha])
    assert_near(derivative(u, lookup(function)), autograd_of(function, u), 1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"SuperSpike"}))  # it has no primitive
def test_derivative_is_that_of_the_primitive(name, alpha):
    function = CLASSES[name](alpha=alpha, spiking=False)
    u, step = GRID[GRID != 0].double(), 1e-6  # several have a corner at 0
    slope = (function(u + step) - function(u - step)) / (2 * step)
    ours = derivative(u, lookup(CLASSES[name](alpha=alpha)))
    assert_near(ours, slope.detach(), 1e-7)


@pytest.mark.parametrize("name", CLASSES)
def test_peak(name):
    function = CLASSES[name]()
    assert peak(function) == pytest.approx(PEAKS[name], rel=1e-12)
    assert derivative(GRID, lookup(function)).max() <= peak(function) * (1 + 1e-6)
    with torch.inference_mode():
        assert peak(function) == pytest.approx(PEAKS[name], rel=1e-12)


def test_peak_of_functions_outside_the_table():
    assert peak(surrogate.LeakyKReLU(k=2.0)) == pytest.approx(2.0)
    assert peak(lambda u: (u >= 0).to(u)) == 0.0
    with torch.inference_mode():
        assert peak(surrogate.QPseudoSpike()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", CLASSES)
def test_curvature_is_finite_far_from_the_threshold(name):
    """One nan in a double backward would destroy every gradient of the network."""
    u = torch.tensor([-1e4, -40.0, 0.0, 20.0, 1e4], requires_grad=True)
    (g,) = torch.autograd.grad(spike(u, lookup(CLASSES[name]())).sum(), u, create_graph=True)
    if g.requires_grad:
        assert torch.autograd.grad(g.sum(), u, allow_unused=True)[0].isfinite().all()
    assert g.isfinite().all()


class Halved(surrogate.ATan):
    """A user's subclass with its own curve."""

    def forward(self, x):
        return 0.5 * super().forward(x) + 0.5 * super().forward(x).detach()


class Learnable(nn.Module):
    """Spikes whose gradient also reaches the steepness."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(2.5, dtype=torch.float64))
        self.spiking = True

    def forward(self, u):
        smooth = (self.alpha * u).sigmoid()
        return smooth + ((u >= 0).to(u) - smooth).detach()


def _host_with_tensor_alpha():
    function = surrogate.Sigmoid()
    function.alpha = nn.Parameter(torch.tensor(4.0))
    return function


UNKNOWN = {
    "subclass": Halved,
    "smooth": lambda: surrogate.ATan(spiking=False),
    "learnable": Learnable,
    "tensor alpha": _host_with_tensor_alpha,
    "no closed form": surrogate.S2NN,
    "smooth tanh": lambda: Tanh(spiking=False),
}


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
@pytest.mark.parametrize("statistics", [(), STATISTICS], ids=["bare", "recording"])
def test_unknown_functions_run_through_autograd(name, kind, statistics):
    function = UNKNOWN[name]()
    assert lookup(function) is None
    stock, ours = pair(kind, surrogate_function=function)
    ours.statistics = statistics
    x = current(4, 3, 5, dtype=torch.float64)
    weights = torch.randn(4, 3, 5, dtype=torch.float64)
    results = []
    for node in (stock, ours):
        node.double()
        leaf = x.clone().requires_grad_()
        spikes = node(leaf)
        loss = (spikes * weights).sum() + node.v.sum()
        inputs = [leaf, *node.parameters()]
        results.append([spikes, node.v, *torch.autograd.grad(loss, inputs, allow_unused=True)])
    for a, b in zip(results[1], results[0], strict=True):
        assert_near(a, b, 1e-12)
    if name == "learnable":
        assert results[1][-1].abs() > 0 or kind == "PLIF"
        assert all(g is not None for g in results[1])


def test_a_learnable_function_learns_from_an_input_without_gradient():
    """The first layer of a network: only the function itself asks for a gradient."""
    gradients = []
    for node in pair("LIF", surrogate_function=Learnable(), detach_reset=True):
        spikes = node(current(4, 3, 5, dtype=torch.float64))
        gradients.append(torch.autograd.grad(spikes.sum(), node.surrogate_function.alpha)[0])
    assert_near(gradients[1], gradients[0], 1e-12)
    assert gradients[0].abs() > 0


def test_lookup_reads_the_present_settings_of_the_function():
    function = surrogate.ATan(alpha=2.0)
    assert lookup(function) == Known(list(KNOWN).index(surrogate.ATan), 2.0)
    function.alpha = 3
    assert lookup(function).alpha == 3.0
    function.set_spiking_mode(False)
    assert lookup(function) is None
    for alpha in (0.0, -1.0, math.inf, math.nan, torch.tensor(2.0)):
        function = surrogate.ATan()
        function.alpha = alpha
        assert lookup(function) is None
    assert lookup(lambda u: (u >= 0).to(u)) is None


def test_surrogates_of_the_host_are_known_or_left_to_autograd():
    known = {name for name, make in SURROGATES.items() if lookup(make()) is not None}
    assert known == set(CLASSES) - {"Tanh"}


def test_tanh_in_a_stock_node():
    x = current(4, 3, 5)
    stock, ours = pair("LIF", surrogate_function=Tanh())
    assert torch.equal(ours(x), stock(x))
    assert type(stock) is STOCK["LIF"]


def test_tanh_is_used_like_a_function_of_the_host():
    function = Tanh(alpha=2.0)
    assert repr(function) == "Tanh(alpha=2.0, spiking=True)"
    u = torch.tensor([-0.5, -0.0, 0.0, 0.5])
    assert function(u).tolist() == [0.0, 1.0, 1.0, 1.0]
    function.set_spiking_mode(False)
    smooth = [(math.tanh(2 * x) + math.tanh(1)) / (2 * math.tanh(1)) for x in u.tolist()]
    torch.testing.assert_close(function(u), torch.tensor(smooth))
    grad = Tanh.backward(torch.full_like(u, 3.0), u, 2.0)
    torch.testing.assert_close(grad, 3.0 * derivative(u, lookup(Tanh(2.0))))


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan, "3", None])
def test_tanh_refuses_a_bad_alpha(alpha):
    with pytest.raises(ValueError, match="Expected alpha to be a positive finite number"):
        Tanh(alpha=alpha)
