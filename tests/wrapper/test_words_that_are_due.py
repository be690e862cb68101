"""What would be silent or wrong is said: another network, clashing names, computed weights."""

import logging

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from sj_prune import PruningWrapper, methods
from sj_prune.masks import Cubic
from sj_prune.methods import Penalty, Plan
from tests.support.pruning_cases import build, magnitude, same, snapshot, train, wrapped


def said(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_another_network_is_not_taken():
    model, optimizer = wrapped(magnitude())
    net, before = model.net, snapshot(model.net)
    for other in (build(seed=5), None):
        with pytest.raises(RuntimeError, match=r"Expected model\.net to stay .*load_state_dict"):
            model.net = other
    assert model.net is net
    assert same(before, snapshot(net))
    model.net = nn.Sequential(net)  # one around it, as torch.compile and DDP put it
    train(model, optimizer, 2)
    assert model.step == 2


class Named(nn.Module):
    """A norm of the name that sparsity() gives to everything."""

    def __init__(self):
        super().__init__()
        self.conv, self.total = layer.Conv2d(2, 8, 3), layer.BatchNorm2d(8)
        self.node, self.out = neuron.IFNode(), layer.Conv2d(8, 4, 3)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.out(self.node(self.total(self.conv(x))))


def test_a_norm_of_the_name_total_is_refused():
    net = Named()
    before = snapshot(net)
    with pytest.raises(ValueError, match="'total'"):
        PruningWrapper(
            net, methods.FilterNorm(sparsity=0.5), example_input=torch.rand(2, 1, 2, 8, 8)
        )
    assert same(before, snapshot(net))
    assert set(PruningWrapper(net, magnitude()).sparsity()) == {"conv", "out", "total"}


def test_layers_without_weights_are_left_out():
    net = nn.Sequential(layer.Linear(4, 6), neuron.IFNode(), layer.Linear(6, 0))
    functional.set_step_mode(net, "m")
    model = PruningWrapper(net, magnitude(sparsity=0.5))
    model.update_masks()
    assert model.sparsity() == {"0": 0.5, "total": 0.5}
    assert [row.name for row in model.report(torch.rand(2, 3, 4)).rows] == ["0"]


class Quantized(nn.Module):
    """Rounds, with a straight-through gradient."""

    def forward(self, w):
        step = w.abs().max() / 7
        return w + (torch.round(w / step) * step - w).detach()


COMPUTED = {
    "WeightNorm": lambda m: weight_norm(m),
    "_WeightNorm": lambda m: parametrizations.weight_norm(m),
    "SpectralNorm": lambda m: parametrizations.spectral_norm(m),
    "Orthogonal": lambda m: parametrizations.orthogonal(m),
    "Quantized": lambda m: parametrize.register_parametrization(m, "weight", Quantized()),
    "L1Unstructured": lambda m: prune.l1_unstructured(m, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_layers_with_computed_weights_are_named(name, caplog):
    """They stay dense; sparsity() counts the zeros of all that it lists."""
    net = build()
    COMPUTED[name](net[8])
    model, optimizer = wrapped(magnitude(), net=net)
    (message,) = said(caplog)
    assert "8 (parametrized by" in message
    assert name.lstrip("_") in message
    train(model, optimizer, 9)
    sparsity, total, zeros = model.sparsity(), 0, 0
    for key, part in model.layers.items():
        found = int((part.weight == 0).sum())
        assert sparsity[key] == pytest.approx(found / part.weight.numel())
        total, zeros = total + part.weight.numel(), zeros + found
    assert sparsity["total"] == pytest.approx(zeros / total)
    assert "8" not in sparsity
    caplog.clear()
    net = build()
    COMPUTED[name](net[8])
    PruningWrapper(net, magnitude(), skip=("8",))
    assert said(caplog) == []


def test_a_network_of_computed_weights_says_so():
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), neuron.IFNode())
    with pytest.raises(ValueError, match="Expected at least one .* 0 .parametrized by WeightNorm"):
        PruningWrapper(net, magnitude())


def test_finalize_of_a_method_without_a_schedule_is_not_silent(caplog):
    model, optimizer = wrapped(methods.Magnitude(sparsity=0.8))
    train(model, optimizer, 2)
    assert said(caplog) == []
    model.finalize()
    (message,) = said(caplog)
    assert "(end=None), and update_masks() was not called" in message


def test_by_hand_nothing_is_said(caplog):
    model, optimizer = wrapped(methods.Magnitude(sparsity=0.8))
    model.update_masks(0.5)
    train(model, optimizer, 2)
    model.finalize()
    assert said(caplog) == []


def test_a_penalty_is_not_asked_where_there_is_no_gradient():
    asked = []

    def gradient(layer):
        asked.append(layer.name)
        layer.grad.add_(layer.weight)

    plan = Plan(
        schedule=Cubic(final=0.5, interval=2, begin=0, end=8),
        drop=lambda layer: layer.weight.abs(),
        penalties=(Penalty(gradient=gradient),),
    )
    net = build()
    model = PruningWrapper(net, plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.attach(optimizer)
    net[8].weight.requires_grad_(False)
    train(model, optimizer, 1)
    assert asked == ["0", "3", "10"]
