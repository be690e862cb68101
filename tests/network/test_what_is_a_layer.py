"""What is prunable: whatever computes with its weight; and what is not, with the reason."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import sj_prune
from sj_prune import cost, methods
from sj_prune.network.layers import prunable_layers, why_not
from tests.support.foreign_neurons import Mixing


class Filled(nn.Conv2d):
    """Fills in settings, computes nothing."""

    def __init__(self):
        super().__init__(4, 6, 3, padding=1)


class Same(nn.Conv2d):
    def __init__(self):
        super().__init__(4, 6, 3)

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Doubled(nn.Linear):
    def __init__(self):
        super().__init__(4, 6)

    def forward(self, x):
        return 2 * super().forward(x)


class Scaled(layer.Linear):
    def __init__(self):
        super().__init__(4, 6, step_mode="m")

    def forward(self, x):
        return F.linear(x, 0.5 * self.weight, self.bias)


class Up(nn.ConvTranspose1d):
    def __init__(self):
        super().__init__(4, 6, 3, groups=2)

    def forward(self, x):
        return super().forward(x)[..., 1:]


class TwoInputs(nn.Linear):
    """Cannot be tried on its own."""

    def __init__(self):
        super().__init__(4, 6)

    def forward(self, x, y):
        return super().forward(x) + y


class Standardised(nn.Conv2d):
    def __init__(self):
        super().__init__(4, 6, 3, groups=2)

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / w.std(), self.bias)


class Within(layer.Conv1d):
    def __init__(self):
        super().__init__(4, 6, 3, step_mode="m")

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class FoldsTime(nn.Conv2d):
    """It takes ``[T, N, *]`` though its class has no step mode."""

    def __init__(self):
        super().__init__(4, 6, 3)

    def forward(self, x_seq):
        y = self._conv_forward(x_seq.flatten(0, 1), self.weight - self.weight.mean(), self.bias)
        return y.unflatten(0, x_seq.shape[:2])


class Centred(nn.Linear):
    def __init__(self):
        super().__init__(4, 6)

    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


@pytest.mark.parametrize("kind", [Filled, Same, Doubled, Scaled, Up, TwoInputs])
def test_what_computes_with_its_weight_is_prunable(kind):
    net = nn.ModuleDict({"a": kind()})
    before = {k: v.clone() for k, v in net.state_dict().items()}
    generator = torch.get_rng_state()
    assert list(prunable_layers(net)) == ["a"]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


HOSTS = [getattr(layer, name) for name in ("WSConv2d",) if hasattr(layer, name)]


@pytest.mark.parametrize("kind", [Standardised, Within, FoldsTime, Centred, *HOSTS])
def test_a_computed_weight_is_refused_with_the_reason(kind):
    one = kind(4, 6, 3) if kind in HOSTS else kind()
    net = nn.Sequential(one, nn.Linear(3, 3))
    assert list(prunable_layers(net)) == ["1"]
    model = sj_prune.PruningWrapper(net, methods.Magnitude(sparsity=0.5, interval=1, end=1))
    model.update_masks()
    (row,) = [row for row in model.explain().rows if row.name == "0"]
    assert not row.prunable
    assert row.status.startswith(f"no: {kind.__name__} computes with another weight")
    assert bool(one.weight.all())
    assert list(model.sparsity()) == ["1", "total"]


def test_costs_of_a_computed_weight_count_its_own_parameter():
    conv, x = Within(), (torch.rand(2, 3, 4, 5) < 0.5).float()
    with torch.no_grad():
        conv.weight[:, 1] = 0
    plain = layer.Conv1d(4, 6, 3, step_mode="m")
    plain.load_state_dict(conv.state_dict())
    a, b = (cost.measure(nn.Sequential(each), x, samples=1)["0"] for each in (conv, plain))
    assert a == b


class Gated(neuron.LIFNode):
    """A neuron of the host's kind with a matrix of its own, which runs as a module."""

    def __init__(self):
        super().__init__(step_mode="m", surrogate_function=surrogate.ATan())
        self.gate = nn.Linear(4, 4)

    def multi_step_forward(self, x_seq):
        return super().multi_step_forward(x_seq * self.gate(x_seq).sigmoid())


def test_a_part_of_a_neuron_is_left_alone():
    net = nn.Sequential(layer.Linear(3, 4, step_mode="m"), Gated(), layer.Linear(4, 2))
    assert "a part of 1 (Gated), a neuron" in why_not(net, "1.gate")
    model = sj_prune.PruningWrapper(net, methods.Magnitude(sparsity=0.5, interval=1, end=1))
    model(torch.randn(2, 3, 3))
    model.update_masks()
    assert bool(net[1].gate.weight.all())
    assert model.sparsity()["total"] == 0.5


# ---- layers that do not run ----------------------------------------------------------------------


class Tasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.node = layer.Linear(6, 20), Mixing()
        self.first, self.second = layer.Linear(20, 4), layer.Linear(20, 30)
        functional.set_step_mode(self, "m")
        self.task = "first"

    def forward(self, x):
        return getattr(self, self.task)(self.node(self.body(x)))


def zeros(*layers):
    return sum(int((m.weight == 0).sum()) for m in layers) / sum(m.weight.numel() for m in layers)


def test_the_sparsity_is_met_on_what_runs():
    torch.manual_seed(0)
    net, x = Tasks(), torch.randn(3, 4, 6)
    model = sj_prune.PruningWrapper(net, methods.Magnitude(sparsity=0.8, interval=2, end=8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.attach(optimizer)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).pow(2).mean().backward()
            optimizer.step()

    train(4)
    now = model.session.run.plan.schedule.at(4)
    assert zeros(net.body, net.first) == pytest.approx(now, abs=0.01)
    assert model.sparsity()["total"] == pytest.approx(zeros(net.body, net.first))
    assert bool(net.second.weight.all())
    status = {row.name: (row.prunable, row.status) for row in model.explain().rows}
    assert status["second"] == status["node.fc"]
    assert status["second"][0] is False
    assert "left out of the sparsity until it does" in status["second"][1]
    assert model.report(x).totals["sparsity"] == pytest.approx(zeros(net.body, net.first))
    # It runs after all: from its first gradient on it counts. The neuron's matrix never does.
    net.task = "second"
    train(4)
    assert zeros(net.body, net.first, net.second) == pytest.approx(0.8, abs=0.01)
    assert model.sparsity()["total"] == pytest.approx(zeros(net.body, net.first, net.second))
    assert bool(net.node.fc.weight.all())
    assert {row.name: row.prunable for row in model.explain().rows}["second"]


def hooks_of(net):
    return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in net.modules()]


@pytest.mark.parametrize("asked_at", [None, 0, 1, 3])
def test_to_ask_changes_nothing_and_the_first_forward_is_the_users(asked_at):
    torch.manual_seed(0)
    net, x, calls = Tasks(), torch.randn(3, 4, 6), []
    net.body.register_forward_hook(lambda *_: calls.append(1))
    model = sj_prune.PruningWrapper(net, methods.Magnitude(sparsity=0.8, interval=2, end=8))
    hooks = hooks_of(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.attach(optimizer)
    for step in range(6):
        if asked_at == step:
            model.explain()
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        optimizer.step()
    assert len(calls) == 6
    assert hooks_of(net) == hooks
    now = model.session.run.plan.schedule.at(6)
    assert zeros(net.body, net.first) == pytest.approx(now, abs=0.01)
    assert bool(net.second.weight.all())
    assert bool(net.node.fc.weight.all())
    other = sj_prune.PruningWrapper(Tasks(), methods.Magnitude(sparsity=0.8, interval=2, end=8))
    other.load_state_dict(model.state_dict())
    other(x)
    assert other.sparsity() == model.sparsity()


def test_a_first_forward_that_raises_tells_nothing():
    net, x = Tasks(), torch.randn(3, 4, 6)
    model = sj_prune.PruningWrapper(net, methods.Magnitude(sparsity=0.8, interval=2, end=8))
    hooks = hooks_of(net)
    with pytest.raises(RuntimeError):
        model(x[..., :5])
    assert hooks_of(net) == hooks
    assert not model.masks.idle
    model(x)
    assert model.masks.idle == {"second", "node.fc"}


def test_a_checkpoint_with_a_layer_that_has_run_since():
    torch.manual_seed(0)
    net, x = Tasks(), torch.randn(3, 4, 6)
    method = methods.Magnitude(sparsity=0.5, interval=2, end=4)
    model = sj_prune.PruningWrapper(net, method, example_input=x)
    net.second.weight.grad = torch.zeros_like(net.second.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model.attach(optimizer)
    for _ in range(2):
        model(x).sum().backward()
        optimizer.step()
    assert (net.second.weight == 0).any()
    other = sj_prune.PruningWrapper(Tasks(), method, example_input=x)
    assert not other.explain().rows[3].prunable
    other.load_state_dict(model.state_dict())
    assert other.sparsity() == model.sparsity()
    assert other.explain().rows[3].prunable


def test_a_trained_network_is_pruned_where_it_runs():
    torch.manual_seed(0)
    net, x = Tasks(), torch.randn(3, 4, 6)
    loader = [(x, torch.zeros(4))]
    net, _ = sj_prune.prune(net, loader, methods.Magnitude(sparsity=0.7))
    assert zeros(net.body, net.first) == pytest.approx(0.7, abs=0.01)
    assert bool(net.second.weight.all())


class ByKeyword(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = layer.Conv2d(2, 3, 3, stride=2), layer.Linear(27, 4)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.fc(self.conv(x=x).flatten(2))


def test_places_of_a_layer_that_is_called_by_keyword():
    model = sj_prune.PruningWrapper(ByKeyword(), methods.Magnitude(sparsity=0.5))
    model(torch.randn(2, 4, 2, 8, 8))
    assert model.session.run.anatomy.places == {"conv": 8 * 8 / 4, "fc": 1.0}


def test_a_refused_checkpoint_tells_nothing_of_what_runs():
    x, method = torch.randn(2, 4, 2, 8, 8), methods.FilterNorm(sparsity=0.3, end=8)
    saved = sj_prune.PruningWrapper(ByKeyword(), method, example_input=x).state_dict()
    saved["_extra_state"]["uncounted"] = ["elsewhere"]
    model = sj_prune.PruningWrapper(ByKeyword(), method)
    with pytest.raises(ValueError, match="uncounted"):
        model.load_state_dict(saved)
    assert not model.session.run.anatomy.places
