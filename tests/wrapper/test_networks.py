"""Networks of other shapes: residual, reused, tied, frozen, without neurons."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import (
    assert_masked,
    build,
    criticality,
    loss_of,
    magnitude,
    rigl,
    same,
    snapshot,
    train,
    wrapped,
)

METHODS = {
    "Magnitude": magnitude,
    "Criticality": criticality,
    "RigL": rigl,
    "SET": lambda: methods.SET(sparsity=0.7, interval=2, end=9),
}


class Residual(nn.Module):
    """Two convolutions and a shortcut meet before a neuron; one block is used twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.sn0 = layer.Conv2d(2, 4, 3, padding=1), neuron.IFNode()
        self.conv1, self.bn1 = layer.Conv2d(4, 6, 3, padding=1), layer.BatchNorm2d(6)
        self.sn1 = neuron.IFNode()
        self.conv2, self.bn2 = layer.Conv2d(6, 6, 3, padding=1), layer.BatchNorm2d(6)
        self.down = layer.Conv2d(4, 6, 1)
        self.sn2 = neuron.IFNode()
        self.again = layer.Conv2d(6, 6, 3, padding=1)
        self.sn3, self.sn4 = neuron.IFNode(), neuron.IFNode(v_threshold=0.5)
        self.flat, self.fc = layer.Flatten(), layer.Linear(6 * 36, 5)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.sn0(self.stem(x))
        y = self.bn2(self.conv2(self.sn1(self.bn1(self.conv1(x)))))
        x = self.sn2(y + self.down(x))
        x = self.sn3(self.again(x))
        x = x + self.sn4(self.again(x))  # the same weight, another neuron
        return self.fc(self.flat(x))


def residual():
    torch.manual_seed(0)
    net = Residual()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.mul_(2)
    return net


def test_topology_of_a_residual_network():
    model = PruningWrapper(residual(), criticality())
    loss_of(model, 0)
    assert model.session.run.anatomy.topology.neurons == {
        "stem": ("sn0",),
        "conv1": ("sn1",),
        "conv2": ("sn2",),
        "down": ("sn2",),
        "again": ("sn3", "sn4"),
        "fc": (),
    }
    assert model.session.run.anatomy.topology.norms == {
        "stem": None,
        "conv1": "bn1",
        "conv2": "bn2",
        "down": None,
        "again": None,
        "fc": None,
    }


@pytest.mark.parametrize("name", METHODS)
def test_training_a_residual_network(name):
    model, optimizer = wrapped(METHODS[name](), "adam", net=residual())
    train(model, optimizer, 9, after=lambda k: assert_masked(model, optimizer))
    assert model.sparsity()["total"] == pytest.approx(model.method.sparsity, abs=1e-3)
    if name == "Criticality":
        assert all(record.grown["fc"] == 0 for record in model.history)


class Tied(nn.Module):
    """Two linear layers share one weight; a convolution's module appears under two names."""

    def __init__(self):
        super().__init__()
        self.conv = layer.Conv2d(2, 2, 3, padding=1)
        self.alias = self.conv
        self.sn0 = neuron.IFNode(v_threshold=0.5)
        self.flat = layer.Flatten()
        self.fc1, self.sn1 = layer.Linear(72, 72, bias=False), neuron.IFNode(v_threshold=0.5)
        self.fc2 = layer.Linear(72, 72, bias=False)
        self.fc2.weight = self.fc1.weight
        self.sn2 = neuron.IFNode(v_threshold=0.5)
        self.out = layer.Linear(72, 5)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.flat(self.sn0(self.alias(x)))
        return self.out(self.sn2(self.fc2(self.sn1(self.fc1(x)))))


@pytest.mark.parametrize("name", METHODS)
def test_shared_weights_have_one_mask(name):
    torch.manual_seed(0)
    net = Tied()
    model, optimizer = wrapped(METHODS[name](), "adam", net=net)
    assert list(model.masks) == ["conv", "fc1", "out"]
    train(model, optimizer, 9, after=lambda k: assert_masked(model, optimizer))
    model.explain()  # what a method has no need of is learnt when asked for
    assert model.session.run.anatomy.topology.neurons == {
        "conv": ("sn0",),
        "fc1": ("sn1", "sn2"),
        "out": (),
    }
    kept = sum(model.masks.kept().values())
    assert kept == round((1 - model.method.sparsity) * (36 + 72 * 72 + 360))
    done = model.finalize()
    assert done.fc1.weight is done.fc2.weight
    stock = Tied()
    stock.load_state_dict(done.state_dict(), strict=True)
    assert (stock.fc2.weight == 0).sum() == (done.fc1.weight == 0).sum() > 0


class OneNeuron(nn.Module):
    """One neuron layer behind layers of different width."""

    def __init__(self):
        super().__init__()
        self.flat = layer.Flatten()
        self.fc1, self.fc2, self.out = (layer.Linear(i, o) for i, o in ((72, 9), (9, 4), (4, 5)))
        self.sn = neuron.IFNode(v_threshold=0.3)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.sn(self.fc1(self.flat(x)))
        functional.reset_net(self.sn)
        return self.out(self.sn(self.fc2(x)))


def test_neuron_shared_by_layers_of_different_width():
    model, optimizer = wrapped(magnitude(), net=OneNeuron())
    train(model, optimizer, 4)
    model.explain()
    problem = "shared by layers of different width; give each layer its own"
    assert model.session.run.anatomy.topology.facts["sn"].problem == problem
    assert model.session.run.anatomy.topology.neurons == dict.fromkeys(("fc1", "fc2", "out"), ())
    assert model.session.run.anatomy.topology.problems == {
        "fc1": f"sn: {problem}",
        "fc2": f"sn: {problem}",
    }
    torch.manual_seed(0)
    model, _ = wrapped(criticality(), net=OneNeuron())
    for _ in range(2):  # at the first forward already, and at every other
        with pytest.raises(RuntimeError, match=r"Expected neurons with .* \(sn: shared by layers"):
            loss_of(model, 1)


@pytest.mark.parametrize("name", ["Magnitude", "RigL", "SET"])
def test_network_without_neurons(name):
    model, optimizer = wrapped(METHODS[name](), net=build(spiking=False))
    train(model, optimizer, 9, after=lambda k: assert_masked(model, optimizer))
    assert model.sparsity()["total"] == pytest.approx(model.method.sparsity)
    model.explain()
    assert set(model.session.run.anatomy.topology.neurons.values()) == {()}


def test_plain_torch_network():
    """No module of SpikingJelly at all."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    model = PruningWrapper(net, magnitude(interval=1, end=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.rand(5, 2, 4)), torch.randint(3, (5,))).backward()
        optimizer.step()
    assert sum(model.masks.kept().values()) == round(0.2 * 66)


# ---- frozen layers -------------------------------------------------------------------------------


def freeze(net):
    net[3].weight.requires_grad_(False)
    return net


@pytest.mark.parametrize("name", ["Magnitude", "Criticality", "SET"])
def test_frozen_layer_is_pruned_but_not_trained(name):
    model, optimizer = wrapped(METHODS[name](), net=freeze(build()))
    before = snapshot(model.net)["3.weight"]
    train(model, optimizer, 9, after=lambda k: assert_masked(model, optimizer))
    mask, weight = model.masks["3"], model.net[3].weight
    assert not mask.all()
    assert not weight.requires_grad
    kept = weight[mask & (weight != 0)]
    assert kept.equal(before[mask & (weight != 0)])
    assert model.sparsity()["total"] == pytest.approx(model.method.sparsity)
    if name == "Criticality":
        assert model.session.run.anatomy.topology.neurons["3"] == ("5",)


def test_frozen_layer_has_no_gradient_to_grow_by_and_keeps_its_mask():
    model, optimizer = wrapped(rigl(), net=freeze(build()))
    train(model, optimizer, 1)
    masks = model.masks.masks
    train(model, optimizer, 8, start=2)
    assert torch.equal(masks["3"], model.masks["3"])
    assert not torch.equal(masks["8"], model.masks["8"])  # the others go on
    assert model.sparsity()["total"] == pytest.approx(model.method.sparsity)
    skipped, optimizer = wrapped(rigl(), net=freeze(build()), skip=("3",))
    train(skipped, optimizer, 9)
    assert "3" not in skipped.masks


def test_layer_frozen_later_stays_as_it_is():
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 3)
    model.net[3].weight.requires_grad_(False)
    model.net[3].weight.grad = None
    before = model.net[3].weight.detach().clone()
    train(model, optimizer, 5, start=4, after=lambda k: assert_masked(model, optimizer))
    mask = model.masks["3"]
    assert model.net[3].weight[mask].equal(before[mask])


def test_user_subclass_without_dynamics_of_its_own_counts():
    class Mine(neuron.LIFNode):
        pass

    nodes = iter((neuron.LIFNode, Mine, neuron.LIFNode))
    net = build(node=lambda: next(nodes)(tau=2.0, v_threshold=0.5))
    model, optimizer = wrapped(criticality(), net=net)
    train(model, optimizer, 4, after=lambda k: assert_masked(model, optimizer))
    assert isinstance(net[5], Mine)
    assert model.session.run.anatomy.topology.neurons == {
        "0": ("2",),
        "3": ("5",),
        "8": ("9",),
        "10": (),
    }
    assert any(record.grown["3"] > 0 for record in model.history)
    assert type(model.finalize()[5]) is Mine


def test_user_subclass_of_a_node_is_observed():
    class Mine(neuron.LIFNode):
        def neuronal_reset(self, spike):
            super().neuronal_reset(spike)

    nodes = iter((neuron.LIFNode, Mine, neuron.LIFNode))
    net = build(node=lambda: next(nodes)(tau=2.0, v_threshold=0.5))
    model, optimizer = wrapped(criticality(), net=net)
    train(model, optimizer, 4, after=lambda k: assert_masked(model, optimizer))
    assert type(net[5]) is Mine
    assert model.session.run.anatomy.topology.neurons == {
        "0": ("2",),
        "3": ("5",),
        "8": ("9",),
        "10": (),
    }
    assert [row.how for row in model.explain().neurons] == ["fused", "observed", "fused"]
    assert any(record.grown["3"] > 0 for record in model.history)
    assert type(model.finalize()[5]) is Mine


# ---- memory formats and types --------------------------------------------------------------------


@pytest.mark.parametrize("name", [*METHODS, "Random"])
def test_channels_last(name):
    """The order of strides has no say in which weights are pruned."""
    make = {**METHODS, "Random": lambda: methods.Random(sparsity=0.8, interval=2, end=9)}[name]
    masks = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net = build().to(memory_format=layout)
        model, optimizer = wrapped(make(), net=net)
        train(model, optimizer, 2, after=lambda k, m=model, o=optimizer: assert_masked(m, o))
        assert net[3].weight.is_contiguous(memory_format=layout)
        masks.append(model.masks.masks)
    assert same(*masks)


@pytest.mark.parametrize("name", METHODS)
def test_autocast(name):
    """Casts of weights hide neither the layers from the topology nor the pruned from the masks."""
    model, optimizer = wrapped(METHODS[name](), "adam")
    for k in range(1, 10):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, k)
        loss.backward()
        optimizer.step()
        assert_masked(model, optimizer)
    model.explain()
    assert model.session.run.anatomy.topology.neurons == {
        "0": ("2",),
        "3": ("5",),
        "8": ("9",),
        "10": (),
    }
    assert model.sparsity()["total"] == pytest.approx(model.method.sparsity)


def test_bfloat16_network():
    model, optimizer = wrapped(criticality(), net=build().bfloat16())
    train(
        model, optimizer, 9, dtype=torch.bfloat16, after=lambda k: assert_masked(model, optimizer)
    )
    assert model.sparsity()["total"] == pytest.approx(0.8)
