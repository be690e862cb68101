"""Wrong arguments: the type of error, what it says, and that nothing was touched."""

import importlib.util

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_prune import PruningWrapper, methods
from sj_prune.masks import Uniform
from tests.support.pruning_cases import (
    batch,
    build,
    criticality,
    frozen,
    is_stock,
    magnitude,
    rigl,
    same,
    same_state,
    snapshot,
)

WRONG = {
    "class": ({"method": methods.Magnitude}, TypeError, r": write Magnitude\(\.\.\.\)"),
    "method": ({"method": "magnitude"}, TypeError, r"Expected method to be an instance .* 'magnit"),
    "none": ({"method": None}, TypeError, "Expected method to be an instance"),
    "seed": ({"seed": 1.5}, TypeError, r"Expected seed to be an integer but got 1\.5"),
    "bool": ({"seed": True}, TypeError, "Expected seed to be an integer but got True"),
    "string": ({"skip": "10"}, TypeError, "sequence of names but got '10'"),
    "unknown": ({"skip": ("100",)}, ValueError, r"but got '100'; did you mean '10'\?"),
    "norm": ({"skip": ("1",)}, ValueError, r"among \['0', '3', '8', '10'\], but got '1'"),
    "number": ({"skip": (3,)}, ValueError, "but got 3"),
    "all": ({"skip": ("0", "3", "8", "10")}, ValueError, "the network has none outside skip"),
    "not iterable": ({"skip": 3}, TypeError, "sequence of names but got 3"),
    "too sparse": (
        {"method": magnitude(sparsity=0.999)},
        ValueError,
        r"sparsity of at most 0\.994737, which leaves the 4 weights .* but got 0\.999",
    ),
    "dense first layer": (
        {"method": rigl(sparsity=0.95, allocation=Uniform(first_dense=True))},
        ValueError,
        r"sparsity of at most 0\.901316, which leaves the 75 .*first_dense=True.* but got 0\.95",
    ),
    "dense first layer, later": (
        {"method": magnitude(sparsity=0.95, allocation=Uniform(first_dense=True))},
        ValueError,
        r"sparsity of at most 0\.901316, which leaves the 75 .*first_dense=True.* but got 0\.95",
    ),
    "shape": ({"example_input": torch.rand(3, 2, 5, 6, 6)}, ValueError, "Expected example_input"),
    "example": ({"example_input": "cat.png"}, ValueError, "Expected example_input"),
    "too many": ({"example_input": (torch.rand(3, 2, 2, 6, 6), 1)}, ValueError, "example_input"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_argument_leaves_everything_untouched(case):
    arguments, error, message = WRONG[case]
    net = build()
    optimizer = torch.optim.Adam(net.parameters())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    weights, state, modes = snapshot(net), frozen(optimizer), [m.training for m in net.modules()]
    settings = [dict(vars(m)) for m in net.modules()]
    classes = [type(m) for m in net.modules()]
    with pytest.raises(error, match=message):
        PruningWrapper(net, **{"method": magnitude(), **arguments})
    assert same(weights, snapshot(net))
    assert same_state(state, frozen(optimizer))
    assert [type(m) for m in net.modules()] == classes
    assert [m.training for m in net.modules()] == modes
    assert [set(vars(m)) for m in net.modules()] == [set(s) for s in settings]
    assert is_stock(net)
    # It can be wrapped right after.
    PruningWrapper(net, magnitude())


@pytest.mark.parametrize("net", ["net", None, build, [build()]])
def test_network_must_be_a_module(net):
    with pytest.raises(TypeError, match=r"Expected net to be a torch\.nn\.Module but got"):
        PruningWrapper(net, magnitude())


def test_network_without_layers():
    net = nn.Sequential(layer.BatchNorm2d(3), neuron.IFNode())
    with pytest.raises(ValueError, match="at least one convolution or linear layer"):
        PruningWrapper(net, magnitude())
    assert is_stock(net)


@pytest.mark.parametrize("nest", [lambda m: m, lambda m: nn.Sequential(m, nn.Linear(5, 2))])
def test_wrapped_network_is_not_wrapped_again(nest):
    model = PruningWrapper(build(), magnitude())
    with pytest.raises(ValueError, match=r"wrapped already: finalize\(\)"):
        PruningWrapper(nest(model), magnitude())


@pytest.mark.skipif(
    importlib.util.find_spec("spikingjelly.clock_driven") is None, reason="0.0.0.0.14 only"
)
def test_clock_driven_nodes_are_refused():
    from spikingjelly.clock_driven import neuron as legacy

    net = nn.Sequential(nn.Linear(3, 3), neuron.IFNode(), nn.Linear(3, 3), legacy.LIFNode())
    with pytest.raises(ValueError, match=r"'3' comes from spikingjelly\.clock_driven"):
        PruningWrapper(net, magnitude())
    assert is_stock(net)


# ---- skip ----------------------------------------------------------------------------------------


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(layer.Linear(4, 6), neuron.IFNode(), layer.Linear(6, 6))
        self.features2 = layer.Linear(6, 6)
        self.head = nn.ModuleDict({"fc": layer.Linear(6, 3)})

    def forward(self, x):
        return self.head["fc"](self.features2(self.features(x)))


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ((), ["features.0", "features.2", "features2", "head.fc"]),
        (("features",), ["features2", "head.fc"]),
        (("features.0", "head"), ["features.2", "features2"]),
        (["head.fc"], ["features.0", "features.2", "features2"]),
        ({"features2"}, ["features.0", "features.2", "head.fc"]),
        ((n for n in ("head", "features")), ["features2"]),
    ],
)
def test_skip_names_layers_or_what_holds_them(skip, left):
    net = Blocks()
    model = PruningWrapper(net, magnitude(sparsity=0.5), skip=skip)
    assert list(model.masks) == list(model.layers) == left
    model.update_masks()
    assert list(model.sparsity()) == [*left, "total"]
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear) and name not in left:
            assert module.weight.all()


def test_skip_counts_towards_nothing():
    model = PruningWrapper(build(), magnitude(sparsity=0.5), skip=("8",))
    model.update_masks()
    assert sum(model.masks.kept().values()) == 164  # half of 72 + 216 + 40


@pytest.mark.parametrize("example", [batch(0)[0], (batch(0)[0],)])
def test_example_input_is_learned_from_and_leaves_no_trace(example):
    net = build()
    before = snapshot(net)
    state = torch.get_rng_state()
    model = PruningWrapper(net, criticality(), example_input=example)
    assert model.session.run.anatomy.topology.neurons == {
        "0": ("2",),
        "3": ("5",),
        "8": ("9",),
        "10": (),
    }
    assert model.session.run.anatomy.topology.norms == {"0": "1", "3": "4", "8": None, "10": None}
    assert same(before, snapshot(net))
    assert torch.get_rng_state().equal(state)
    assert net.training
    assert all(isinstance(m.v, float) for m in (net[2], net[5], net[9]))
