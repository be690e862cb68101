"""Neurons that count other channels than a layer makes: behind a flatten or a concatenation."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_prune import PruningWrapper, methods
from tests.support.channel_cases import CLASSES, N, T, lif, pruner
from tests.support.pruning_cases import train

POSITIONS = 16  # of a 4x4 map, behind the flatten


class Flattened(nn.Module):
    """The neurons are features, 16 for every channel."""

    def __init__(self):
        super().__init__()
        self.conv = layer.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = layer.BatchNorm2d(6)
        self.flatten = layer.Flatten()
        self.lif = lif()
        self.fc = layer.Linear(6 * POSITIONS, CLASSES)

    def forward(self, x_seq):
        return self.fc(self.lif(self.flatten(self.norm(self.conv(x_seq)))))


class Concatenated(nn.Module):
    """One neuron layer over the channels of two convolutions."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(layer.Conv2d(2, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6))
        self.b = nn.Sequential(layer.Conv2d(2, 3, 1, bias=False), layer.BatchNorm2d(3))
        self.lif = lif()
        self.flatten = layer.Flatten()
        self.fc = layer.Linear(9 * POSITIONS, CLASSES)

    def forward(self, x_seq):
        return self.fc(self.flatten(self.lif(torch.cat([self.a(x_seq), self.b(x_seq)], 2))))


NETWORKS = {"flatten": Flattened, "concatenation": Concatenated}


def build(name, method):
    torch.manual_seed(3)
    net = NETWORKS[name]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.0, 1.0)
    functional.set_step_mode(net, "m")
    x_seq = torch.rand(T, N, 2, 4, 4) * 2
    return PruningWrapper(net, method, example_input=x_seq), x_seq


def rates_of(model, x_seq):
    """Return the firing rate of every channel of every convolution, counted from the spikes."""
    spikes = []
    handle = model.net.lif.register_forward_hook(lambda _m, _i, out: spikes.append(out.detach()))
    functional.reset_net(model)
    model(x_seq)
    handle.remove()
    mean = spikes[0].double().mean((0, 1))
    if mean.ndim == 1:
        return {"conv": mean.reshape(6, POSITIONS).mean(1)}
    return {"a.0": mean.mean((1, 2))[:6], "b.0": mean.mean((1, 2))[6:]}


@pytest.mark.parametrize("name", NETWORKS)
def test_scores_are_those_of_the_layers_own_neurons(name):
    model, x_seq = build(name, methods.APoZ(sparsity=0.5))
    with model.recording():
        expected = rates_of(model, x_seq)
    for conv, rates in expected.items():
        assert 0 < float(rates.min()) < float(rates.max())
        found = model.method.drop_score(model.updater.view(conv))
        torch.testing.assert_close(found, rates)
    model.update_masks()
    for conv, rates in expected.items():
        mask = model.masks.layer_mask(conv)
        assert rates[mask].min() >= rates[~mask].max()


@pytest.mark.parametrize("name", NETWORKS)
def test_explained_as_neurons_that_count(name):
    model, _ = build(name, methods.SCA(sparsity=0.4, regrow=0.2, interval=2, end=4))
    rows = {row.name: row for row in model.explain().rows}
    for conv in ("conv",) if name == "flatten" else ("a.0", "b.0"):
        assert rows[conv].neurons == ("lif",)
        assert rows[conv].status == "yes"


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_channels_stay_silent_in_training(name):
    model, x_seq = build(name, methods.SCA(sparsity=0.4, regrow=0.2, interval=2, end=4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.attach(optimizer)
    for _ in range(5):
        functional.reset_net(model)
        optimizer.zero_grad()
        model(x_seq).square().mean().backward()
        optimizer.step()
    for conv, rates in rates_of(model, x_seq).items():
        mask = model.masks.layer_mask(conv)
        assert not mask.all()
        assert not rates[~mask].any()


def test_single_weights_are_not_scored_by_what_they_do_not_feed():
    """Of an element mask's layer the neurons have to be its own, one by one."""
    model, _ = build("flatten", methods.Criticality(sparsity=0.5, interval=2, end=4))
    rows = {row.name: row for row in model.explain().rows}
    assert rows["conv"].neurons == ()
    assert "never regrown" in rows["conv"].status


def test_loaded_within_a_larger_module():
    """A LightningModule loads its children: filters sleep as the checkpoint has them."""

    def build_pair(seed):
        model, optimizer = pruner(
            methods.SCA(sparsity=0.4, regrow=0.2, interval=2, end=8), "sgd_momentum", seed=seed
        )
        return nn.ModuleDict({"inner": model}), model, optimizer

    outer, model, optimizer = build_pair(0)
    train(model, optimizer, 4)
    state = outer.state_dict()
    other, twin, fresh = build_pair(1)
    for parameter in twin.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(state)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # else they share momentum
    train(model, optimizer, 4, start=5)
    train(twin, fresh, 4, start=5)
    for (key, mine), theirs in zip(
        model.net.named_parameters(), twin.net.parameters(), strict=True
    ):
        assert mine.equal(theirs), key


@pytest.mark.parametrize("name", NETWORKS)
def test_reported_with_the_rate_of_the_layers_own_neurons(name):
    model, x_seq = build(name, methods.APoZ(sparsity=0.5))
    model.eval()
    expected = rates_of(model, x_seq)
    functional.reset_net(model)
    rows = {row.name: row for row in model.report(x_seq).rows}
    for conv, rates in expected.items():
        assert float(rates.mean()) > 0
        assert rows[conv].firing_rate == pytest.approx(float(rates.mean()))
        assert rows[conv].criticality > 0
    assert rows["fc"].firing_rate is None


@pytest.mark.parametrize("name", NETWORKS)
def test_reported_as_single_weights_are_scored(name):
    """A method on single weights reads no such neurons, so its report shows none."""
    model, x_seq = build(name, methods.Criticality(sparsity=0.5, interval=2, end=4))
    assert all(row.firing_rate is None for row in model.report(x_seq).rows)
