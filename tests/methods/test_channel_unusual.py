"""Channel methods on networks with other neurons, without neurons, and wrapped but not called."""

import logging

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_prune import PruningWrapper, compact, methods, prune
from sj_prune.masks import Channels
from tests.support.channel_cases import CLASSES, N, T, lif
from tests.support.pruning_cases import vary_norms

OTHERS = [
    getattr(neuron, name)
    for name in ("QIFNode", "KLIFNode", "CUBALIFNode", "ComplementaryLIFNode")
    if hasattr(neuron, name)
]


def block(inputs, outputs, node):
    return [layer.Conv2d(inputs, outputs, 3, padding=1), layer.BatchNorm2d(outputs), node]


def build(*blocks):
    torch.manual_seed(0)
    net = nn.Sequential(*blocks, layer.AvgPool2d(2), layer.Flatten(), layer.Linear(32, CLASSES))
    functional.set_step_mode(net, "m")
    vary_norms(net, (1.0, 2.0), (1.0, 2.0))
    return net


X = torch.rand(T, N, 3, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % CLASSES


@pytest.mark.parametrize("kind", OTHERS)
def test_networks_of_other_neurons(kind):
    """None of them hides the layers behind it, and what they carry over is put to rest."""
    net = build(*block(3, 8, kind()), *block(8, 8, kind()))
    model = PruningWrapper(net, methods.RandomChannels(sparsity=0.5), example_input=X)
    assert dict(model.masks.units()) == {"1": 8, "4": 8}
    model.eval()
    with torch.no_grad():
        assert model(X).any()
        model.update_masks()
        spikes = {}
        for name in ("2", "5"):
            net.get_submodule(name).register_forward_hook(
                lambda _m, _a, out, name=name: spikes.update({name: out})
            )
        model(X)  # without a reset
    for norm, name in (("1", "2"), ("4", "5")):
        assert not spikes[name][:, :, model.masks.pruned(norm)].any()
        assert spikes[name].any()


def relu_stem():
    """The stem feeds a ReLU: no neuron says how active its channels are."""
    return build(
        layer.Conv2d(3, 8, 3, padding=1), layer.BatchNorm2d(8), nn.ReLU(), *block(8, 8, lif())
    )


@pytest.mark.parametrize("structure", [Channels(), Channels(linear=False)])
def test_channels_that_no_neuron_scores_stay(structure):
    method = methods.SCA(sparsity=0.4, regrow=0.1, interval=2, end=4, structure=structure)
    model = PruningWrapper(relu_stem(), method, example_input=X)
    rows = {row.name: row for row in model.explain().rows}
    assert rows["0"].status == "no: SCA scores neurons, and none that records follows"
    assert rows["3"].status == "yes"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.attach(optimizer)
    for _ in range(4):
        functional.reset_net(model)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X).mean(0), Y).backward()
        optimizer.step()
    assert int((~model.masks["4"]).sum()) == round(0.4 * 8)
    compact(model.finalize(), X)


def test_nothing_that_a_neuron_scores_is_refused_at_once():
    net = build(layer.Conv2d(3, 8, 3, padding=1), layer.BatchNorm2d(8), nn.ReLU())
    with pytest.raises(ValueError, match="^Expected channels to prune .*APoZ scores neurons"):
        prune(net, [(X, Y)], methods.APoZ())


def test_a_sparsity_out_of_reach_is_not_blamed_on_the_input():
    net = build(*block(3, 8, lif()))
    with pytest.raises(ValueError, match="^Expected a sparsity of at most 0.875"):
        PruningWrapper(net, methods.FilterNorm(sparsity=0.99), example_input=X)


def test_a_network_called_around_its_wrapper_is_noticed(caplog):
    model = PruningWrapper(build(*block(3, 8, lif())), methods.FilterNorm(sparsity=0.5, end=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.attach(optimizer)
    caplog.set_level(logging.WARNING, "sj_prune")

    def step():
        functional.reset_net(model)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.net(X).mean(0), Y).backward()
        optimizer.step()

    step(), step()
    assert [r.message for r in caplog.records if "call model(x), not net(x)" in r.message] == [
        caplog.records[0].message
    ]
    with pytest.raises(RuntimeError, match="^Expected a forward of the wrapper.*are coupled"):
        step()
