"""What cannot be observed says why."""

import pytest
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from sj_prune.neurons import observe, sense
from tests.support.neuron_cases import LEGACY, current

X = current(4, 3, 2, dtype=torch.float64)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.out = surrogate.ATan(), surrogate.ATan()


class Holder(nn.Module):
    """Holds a function that only its neuron calls."""

    def __init__(self):
        super().__init__()
        self.act = surrogate.ATan()
        self.spike = neuron.KLIFNode(surrogate_function=self.act, step_mode="m")

    def forward(self, x):
        return self.spike(x)


def test_what_cannot_be_observed_says_why():
    net = nn.ModuleDict(
        {
            "two": Two(),
            "container": nn.Sequential(nn.Linear(2, 2), surrogate.ATan()),
            "bare": nn.Linear(2, 2),
        }
    )
    found = observe(net)
    assert {name: each.how for name, each in found.items()} == {"two": "none", "container": "none"}
    assert "2 surrogate functions (gate, out)" in found["two"].why
    assert "no neuron layer" in found["container"].why
    assert not found["two"].listens()
    holder = Holder().double()
    found = observe(holder)
    holder(X)
    assert (found[""].how, found["spike"].how) == ("none", "observed")
    assert "without a call" in found[""].why


@pytest.mark.skipif(LEGACY, reason="0.0.0.0.14 has no such nodes")
def test_nodes_of_the_host_without_a_single_threshold():
    ternary, precise = neuron.TernaryLIFNode(), neuron.KLIFNode()
    precise._neuron_precision = (torch.float16, "fp32", "fp32")
    found = observe(nn.ModuleList([ternary, precise, neuron.DSRIFNode()]))
    assert [each.how for each in found.values()] == ["none"] * 3
    assert "either sign" in found["0"].why
    assert "precision" in found["1"].why
    assert "no surrogate function" in found["2"].why


@pytest.mark.parametrize(("cls", "mode"), [("KLIFNode", "s"), ("QIFNode", "m"), ("LIFNode", "s")])
def test_compiled_nodes_say_that_they_keep_nothing(cls, mode):
    if LEGACY and cls != "QIFNode":
        pytest.skip("TorchScript of 0.0.0.0.14 does not compile")
    node = getattr(neuron, cls)(step_mode=mode)
    sensor = sense(node)[""]
    x = X.float() if mode == "m" else X[0].float()
    torch.compile(node, backend="eager")(x)
    assert sensor.how == "none"
    assert "torch.compile" in sensor.why
    assert sensor.activity.count == 0
    functional.reset_net(node)
    node(x)  # not compiled: it is observed again
    assert sensor.how == "observed"
    assert sensor.activity.count == 3
