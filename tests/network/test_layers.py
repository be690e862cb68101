"""What counts as a weighted layer and as a norm, and who is taken for a module or a wrapper."""

import pytest
import torch
from spikingjelly.activation_based import layer
from torch import nn
from torch.nn.utils import parametrizations

import sj_prune
from sj_prune import _host
from sj_prune.network.layers import is_weighted, prunable_layers, weighted_layers
from sj_prune.network.norms import is_channel_norm, is_norm, norms_by_weight


class Net(nn.Module):
    """A shared weight, a parametrized one, a reused module, and norms of all kinds."""

    def __init__(self):
        super().__init__()
        self.conv = layer.Conv2d(4, 4, 3)
        self.again = self.conv
        self.twin = layer.Conv2d(4, 4, 3)
        self.twin.weight = self.conv.weight
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)
        self.batch, self.bare = layer.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.instance = nn.InstanceNorm1d(4, affine=True)
        self.group, self.layer = nn.GroupNorm(2, 4), nn.LayerNorm(4)


def test_each_weight_is_listed_once():
    net = Net()
    assert list(weighted_layers(net)) == ["conv", "normed", "head"]
    assert list(prunable_layers(net)) == ["conv", "head"]
    assert weighted_layers(net)["conv"] is net.conv


@pytest.mark.parametrize("kind", [nn.Embedding, nn.Bilinear])
def test_other_layers_with_a_weight_are_not_pruned(kind):
    arguments = {nn.Embedding: (3, 2), nn.Bilinear: (2, 2, 2)}
    assert not is_weighted(kind(*arguments[kind]))


def test_norms_are_found_by_gamma():
    net = Net()
    names = {"batch", "instance", "group", "layer"}
    found = norms_by_weight(net)
    assert set(found.values()) == names
    assert all(found[id(net.get_submodule(name).weight)] == name for name in names)
    assert {n for n, m in net.named_modules() if is_norm(m)} == names | {"bare"}
    channels = {"batch", "bare", "instance"}
    assert {n for n, m in net.named_modules() if is_channel_norm(m)} == channels


@pytest.mark.parametrize("value", [None, nn.Linear, "net", [nn.Linear(2, 2)]])
def test_what_is_no_module_is_refused(value):
    expected = f"Expected net to be a torch.nn.Module but got {type(value).__name__}"
    for call in (_host.check_module, sj_prune.to_recording):
        with pytest.raises(TypeError, match=expected):
            call(value)
    with pytest.raises(TypeError, match=expected):
        sj_prune.compact(value, torch.zeros(1))


def test_compact_knows_a_wrapper_by_what_it_says_of_itself():
    class Wrapping(nn.Sequential):
        is_pruning_wrapper = True

    with pytest.raises(TypeError, match="got a Wrapping: call net = model.finalize"):
        sj_prune.compact(Wrapping(nn.Linear(2, 2)), torch.zeros(1, 2))
