"""Chains of layers without a neuron in between are scored by the neuron that ends them."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import sj_prune
from sj_prune import methods
from sj_prune.compaction import compact, couple_checked
from sj_prune.network.chain import reached
from sj_prune.network.facts import scoring_neurons
from sj_prune.network.topology import trace
from tests.support.compaction_cases import assert_equal, awake, mask_at_random, parameters


def lif():
    return neuron.LIFNode(step_mode="m", surrogate_function=surrogate.ATan())


def conv(i, o, kernel=1, groups=1, bias=False):
    padding = kernel // 2
    return layer.Conv2d(i, o, kernel, padding=padding, groups=groups, bias=bias, step_mode="m")


def norm(channels):
    return layer.BatchNorm2d(channels, step_mode="m")


class RepConv(nn.Sequential):
    """As spike-driven transformers have it."""

    def __init__(self, i, o):
        super().__init__(conv(i, i), norm(i), conv(i, i, 3, i), conv(i, o), norm(o))


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn, self.lif = conv(2, 4, 3), norm(4), lif()
        self.rep, self.end = RepConv(4, 6), lif()
        self.dw = nn.Sequential(conv(6, 6), conv(6, 12, 3, 6), norm(12), lif())
        self.head = conv(12, 2)

    def forward(self, x):
        x = self.lif(self.bn(self.stem(x)))
        return self.head(self.dw(self.end(self.rep(x))))


def build():
    torch.manual_seed(0)
    return Chain(), torch.randn(3, 2, 2, 5, 5) * 2


def reach_by_trying(chain):
    """Return which output channels a unit impulse in each channel of the first layer reaches."""
    found = []
    with torch.no_grad():
        for c in range(chain[0].out_channels):
            x = torch.zeros(1, 1, chain[0].out_channels, 5, 5)
            x[0, 0, c] = 1
            for each in chain[1:]:
                each.weight.fill_(1)
                x = each(x)
            found.append(x.sum((0, 1, 3, 4)).nonzero().flatten().tolist())
    return found


@pytest.mark.parametrize(
    "chain",
    [
        [conv(4, 6), conv(6, 6, 3, 6)],
        [conv(4, 6), conv(6, 12, 3, 6)],
        [conv(4, 6), conv(6, 6, 3, 6), conv(6, 12, 1, 2)],
        [conv(4, 6), conv(6, 6, 3, 2), conv(6, 6, 1, 3)],
        [conv(4, 6), conv(6, 6, 3, 6), conv(6, 3)],
    ],
    ids=lambda chain: "-".join(f"{c.groups}" for c in chain),
)
def test_what_a_channel_reaches(chain):
    expected = reach_by_trying(chain)
    got = reached(chain, chain[-1].out_channels).tolist()
    if len({len(channels) for channels in expected}) == 1:
        assert got == expected
    else:  # not the same number everywhere: all of them
        assert got == [list(range(chain[-1].out_channels))] * chain[0].out_channels


def test_behind_a_flatten_everything_is_reached():
    assert reached([conv(2, 3), nn.Linear(12, 5)], 5).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_neurons_and_norms_of_every_layer_of_a_chain():
    net, x = build()
    sj_prune.to_recording(net)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    found = trace(net, layers, (x,))
    scoring = {name: scoring_neurons(found, None, name) for name in layers}
    every = [[0, 1, 2, 3, 4, 5]] * 4
    assert {name: list(nodes) for name, nodes in scoring.items()} == {
        "stem": ["lif"],
        "rep.0": ["end"],
        "rep.2": ["end"],
        "rep.3": ["end"],
        "dw.0": ["dw.3"],
        "dw.1": ["dw.3"],
        "head": [],
    }
    assert scoring["rep.0"]["end"].tolist() == scoring["rep.2"]["end"].tolist() == every
    assert scoring["rep.3"]["end"] is scoring["dw.1"]["dw.3"] is None
    assert scoring["dw.0"]["dw.3"].tolist() == [[2 * c, 2 * c + 1] for c in range(6)]
    norms = {name: norm for name, norm in found.norms.items() if norm}
    assert norms == {"stem": "bn", "rep.0": "rep.1", "rep.3": "rep.4", "dw.1": "dw.2"}


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Sigmoid(), nn.MaxPool3d((1, 2, 2))])
def test_an_activation_ends_a_chain(between):
    net, x = build()
    net.rep[1] = nn.Sequential(norm(4), between)
    sj_prune.to_recording(net)
    layers = {name: net.get_submodule(name) for name in ("rep.0", "rep.2")}
    assert list(trace(net, layers, (x,)).through) == ["rep.2"]


@pytest.mark.parametrize("trains", [True, False])
def test_a_skipped_layer_still_stands_in_between(trains):
    """What comes before it does not feed the neurons channel by channel."""
    net, x = build()
    net.rep[3] = conv(4, 4)
    net.rep[4], net.dw[0] = norm(4), conv(4, 6)
    net.rep[3].weight.requires_grad_(trains)
    sj_prune.to_recording(net)
    found = trace(net, {"rep.2": net.rep[2]}, (x,))
    assert found.neurons["rep.2"] == ()
    assert found.through["rep.2"]["end"].tolist() == [[0, 1, 2, 3]] * 4


def test_criticality_grows_in_a_chain():
    net, x = build()
    method = methods.Criticality(sparsity=0.6, regrow=0.3, interval=1, end=1)
    model = sj_prune.PruningWrapper(net, method, example_input=x)
    rows = {row.name: row for row in model.explain().rows}
    assert rows["rep.0"].neurons == rows["rep.2"].neurons == ("end",)
    assert rows["rep.0"].status == "yes"
    with model.recording():
        model(x)
    model.update_masks()
    grown = {name for name, number in model.session.run.history[-1].grown.items() if number}
    assert grown & {"rep.0", "rep.2", "dw.0"}


def test_activity_of_a_chain_and_its_compaction():
    """SCA's scores follow through: the mean over the channels that are reached."""
    net, x = build()
    awake(net, x)
    method = methods.SCA(sparsity=0.4, regrow=0.0, interval=1, end=1, score="firing_rate")
    model = sj_prune.PruningWrapper(net, method, example_input=x)
    assert {"rep.0", "rep.2", "dw.0", "dw.1"} <= set(model.masks.layers)
    model.train()
    with model.recording():
        model(x)
    activity = net.dw[3].activity.mean("firing_rate")
    view = model.session.run.anatomy.scoring["dw.0"]["dw.3"]
    assert torch.allclose(activity[view].mean(1), activity.view(6, 2).mean(1))
    model.update_masks()
    masked = model.finalize().eval()
    functional.reset_net(masked)
    small = compact(masked, x)
    assert parameters(small) < parameters(masked)
    assert_equal(masked, small, x)


@pytest.mark.parametrize("density", [0.3, 0.6])
def test_any_mask_of_a_chain_is_compacted(density):
    net, x = build()
    awake(net, x)
    coupling = couple_checked(net, (x,))
    together = [set(group.producers) for group in coupling.groups]
    assert {"rep.0", "rep.2"} in together
    assert {"dw.0", "dw.1"} in together
    mask_at_random(net, x, 3, density, coupling)
    assert_equal(net, compact(net, x), x)
