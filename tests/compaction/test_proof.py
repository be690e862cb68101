"""A smaller network that is wrong does not pass, and the message says where and what to do."""

import pytest
import torch
from torch import nn

from sj_prune.compaction import CompactionError, compact, couple_checked, network
from tests.support.compaction_cases import awake, mask_at_random
from tests.support.user_cases import build
from tests.support.user_networks import Plif, SharedNeuron
from tests.support.user_networks_staying import HardCodedWidth


@pytest.fixture
def unchecked(monkeypatch):
    """Take the traced groups without the trial, to see that the proof catches it too."""
    monkeypatch.setattr(network, "tried_out", lambda traced, *_, **__: traced)


def test_a_width_in_the_forward_is_named(unchecked):
    net, x = build(HardCodedWidth)
    awake(net, x)
    with torch.no_grad():
        net.bn_a.weight[0] = net.bn_a.bias[0] = 0
    with pytest.raises(CompactionError, match=r"shape '\[2, 2, 8, 8, 8\]'.*The width of bn_a"):
        compact(net, x)


def test_a_width_that_is_read_is_found(unchecked):
    net, x = build(HardCodedWidth)
    awake(net, x)
    with torch.no_grad():
        net.bn_c.weight[0] = net.bn_c.bias[0] = 0
    with pytest.raises(CompactionError, match="outputs or input gradients differ"):
        compact(net, x)


@pytest.mark.parametrize("silent", [False, True])
def test_a_wrong_slice_is_found_even_in_a_silent_network(monkeypatch, silent):
    """As a mistake of ours would be: the wrong input channels are kept."""
    original = network.shrink

    def wrong(net, cut):
        kept = original(net, cut)
        net.b.weight.data = net.b.weight.data.flip(1)
        return kept

    net, x = build(Plif)
    awake(net, x)
    mask_at_random(net, x, 0, 0.5)
    if silent:
        net.n_a.v_threshold = net.n_b.v_threshold = 1e9
    monkeypatch.setattr(network, "shrink", wrong)
    with pytest.raises(CompactionError, match="the output of b differs first"):
        compact(net, x)


def test_a_neuron_that_adds_for_every_channel_is_found(unchecked):
    """A module that is no neuron and turns zeros into something stays unseen by the trace."""

    class Leak(nn.Module):
        def forward(self, x):
            return torch.where(x.sum((0, 1, 3, 4), keepdim=True) == 0, x + 1, x)

    class Leaking(SharedNeuron):
        def __init__(self):
            super().__init__()
            self.leak = Leak()

        def forward(self, x):
            x = self.node(self.leak(self.bn_a(self.a(x))))
            return self.finish(self.node(self.bn_b(self.b(x))))

    net, x = build(Leaking)
    awake(net, x)
    assert "a" in couple_checked(net, (x,)).frozen


def test_outputs_that_are_not_finite_prove_nothing():
    net, x = build(SharedNeuron)
    awake(net, x)
    with pytest.raises(CompactionError, match="finite"):
        compact(net, torch.full_like(x, float("nan")))


def test_a_network_that_cannot_run_in_float64_says_so():
    class Casting(SharedNeuron):
        def forward(self, x):
            return super().forward(x.float())

    net, x = build(Casting)
    awake(net, x)
    with pytest.raises(CompactionError, match="a: RuntimeError.*keep the type of its input"):
        compact(net, x)


def test_a_network_that_cannot_be_copied_says_so():
    class NoCopy(SharedNeuron):
        def __deepcopy__(self, memo):
            raise TypeError("not this one")

    net, x = build(NoCopy)
    with pytest.raises(CompactionError, match=r"copy.deepcopy.*not this one"):
        compact(net, x)


def test_outputs_that_are_no_tensors_are_refused():
    class Output:
        def __init__(self, x):
            self.x = x

    class Wrapped(SharedNeuron):
        def forward(self, x):
            return Output(super().forward(x))

    net, x = build(Wrapped)
    with pytest.raises(CompactionError, match="returned but got Output"):
        compact(net, x)
