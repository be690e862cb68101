"""Transposed convolutions: counted, scored by their output channels, pruned by single weights."""

import itertools

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import sj_prune
from sj_prune import cost, methods
from sj_prune.compaction import architecture, compact, couple_checked, load_compact, save_compact
from sj_prune.deploy.graph import UnsupportedError
from sj_prune.network.topology import trace
from sj_prune.run.views import view as view_of
from tests.support.compaction_cases import assert_equal, awake, mask_at_random, parameters

KINDS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def brute_force(spikes, conv, sizes):
    """Return (synops, dense): every spike meets every weight whose target lies in the output."""
    rows, columns, *kernel = conv.weight.shape
    sparse = dense = 0
    for n, i, *place in spikes.nonzero().tolist():
        del n
        for taps in itertools.product(*map(range, kernel)):
            target = [
                q * s + t * d - p
                for q, s, t, d, p in zip(
                    place, conv.stride, taps, conv.dilation, conv.padding, strict=True
                )
            ]
            if all(0 <= t < size for t, size in zip(target, sizes, strict=True)):
                dense += columns
                sparse += int((conv.weight[(i, slice(None), *taps)] != 0).sum())
    assert rows == spikes.shape[1]
    return sparse, dense


@pytest.mark.parametrize(
    ("dims", "settings"),
    [
        (1, {"stride": 2, "padding": 1}),
        (2, {}),
        (2, {"stride": (1, 3), "padding": (2, 0), "dilation": (1, 2)}),
        (2, {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
        (2, {"stride": 3, "output_padding": (2, 1), "groups": 4}),
        (3, {"padding": 1, "stride": 2}),
    ],
    ids=str,
)
def test_operations_equal_brute_force(dims, settings):
    conv = KINDS[dims](4, 8, 3, **settings)
    with torch.no_grad():
        conv.weight.mul_(torch.rand_like(conv.weight) < 0.4)
    x = (torch.rand(3, 4, *[5, 4, 3][:dims]) < 0.3).float()
    out = conv(x)
    found = cost.measure(nn.Sequential(conv), x, samples=1)["0"]
    assert (found.synops, found.synops_dense) == brute_force(x, conv, out.shape[2:])
    assert found.binary_input
    # Every input place is multiplied by every weight of its channel, border or not.
    places = x[:, 0].numel()
    assert found.total_macs_dense == places * conv.weight.numel()
    analog = cost.measure(nn.Sequential(conv), x + 0.5, samples=1)["0"]
    assert analog.total_macs == places * int((conv.weight != 0).sum())
    assert (analog.synops, analog.total_macs_dense) == (0, found.total_macs_dense)


def test_an_output_size_that_is_asked_for_counts():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.ConvTranspose2d(2, 3, 3, stride=2)

        def forward(self, x):
            return self.conv(x, output_size=(8, 7))

    net, x = Asking(), (torch.rand(2, 2, 3, 3) < 0.5).float()
    found = cost.measure(net, x, samples=1)["conv"]
    assert found.synops == brute_force(x, net.conv, (8, 7))[0]


def lif():
    return neuron.LIFNode(step_mode="m", surrogate_function=surrogate.ATan())


def up(groups=1):
    return layer.ConvTranspose2d(4, 8, 4, 2, 1, groups=groups, bias=False, step_mode="m")


def network(groups=1):
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, step_mode="m"), layer.BatchNorm2d(4, step_mode="m"), lif(),
        up(groups), layer.BatchNorm2d(8, step_mode="m"), lif(),
        layer.Conv2d(8, 6, 1, step_mode="m"), layer.BatchNorm2d(6, step_mode="m"), lif(),
        layer.Conv2d(6, 2, 1, step_mode="m"),
    )  # fmt: skip
    return net, torch.randn(2, 3, 2, 4, 4) * 2


def test_neurons_and_norm_behind_it_are_found():
    net, x = network()
    sj_prune.to_recording(net)
    found = trace(net, {"3": net[3]}, (x,))
    assert (found.neurons["3"], found.norms["3"]) == (("5",), "4")
    assert found.facts["5"].channels == 8


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_value_of_a_channel_goes_to_the_weights_that_make_it(groups):
    net, x = network(groups)
    method = methods.Magnitude(sparsity=0.5, interval=1, end=1)
    model = sj_prune.PruningWrapper(net, method, example_input=x)
    view = view_of(model.net, model.session.run, "3")
    assert (view.channels, view.transposed) == (8, groups)
    value = torch.rand(8)
    spread = view.per_weight(value).expand_as(view.weight)
    for i, o in itertools.product(range(4), range(8 // groups)):
        one = up(groups)
        with torch.no_grad():
            one.weight.zero_()
            one.weight[i, o, 1, 1] = 1
            reached = one(torch.ones(1, 1, 4, 2, 2)).abs().sum((0, 1, 3, 4)).nonzero().flatten()
        assert len(reached) == 1
        assert torch.equal(spread[i, o], value[reached].expand(4, 4)), (i, o)


def test_criticality_regrows_into_the_most_critical_channels():
    net, x = network()
    method = methods.Criticality(sparsity=0.6, regrow=0.2, interval=1, end=1)
    model = sj_prune.PruningWrapper(net, method, skip=("0", "6", "9"), example_input=x)
    before = net[3].weight.detach().clone()
    with model.recording():
        model(x)
    score = net[5].activity.mean("criticality_max")
    model.update_masks()
    kept = model.masks["3"]
    number = round(0.4 * before.numel())
    assert int(kept.sum()) == number
    survivors = number - int(0.2 * number)
    floor = before.abs().flatten().sort(descending=True).values[survivors - 1]
    grown = kept & (before.abs() < floor)
    left = ~kept
    worst = min(score[c] for c in range(8) if grown[:, c].any())
    assert all(score[c] <= worst for c in range(8) if left[:, c].any())


def test_training_keeps_masks_and_the_report_counts_it():
    net, x = network()
    model = sj_prune.PruningWrapper(net, methods.RigL(sparsity=0.8, interval=2, end=4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        functional.reset_net(model)
        model(x).pow(2).mean().backward()
        optimizer.step()
    weights = [net[i].weight for i in (0, 3, 6, 9)]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zeros == pytest.approx(model.sparsity()["total"])
    (row,) = [row for row in model.explain().rows if row.name == "3"]
    assert row.prunable
    assert row.neurons == ("5",)
    assert model.report(x).rows[1].shape == (4, 8, 4, 4)


def test_channels_of_it_stay_with_the_reason_and_others_are_cut(tmp_path):
    net, x = network()
    awake(net, x)
    coupling = couple_checked(net, (x,))
    assert [set(group.producers) for group in coupling.groups] == [{"6"}]
    reasons = [coupling.frozen[name] for name in ("0", "3")]
    assert all("3 is a transposed convolution" in reason for reason in reasons), reasons
    mask_at_random(net, x, 0, 0.4, coupling)
    small = compact(net, x)
    assert parameters(small) < parameters(net)
    assert_equal(net, small, x)
    save_compact(tmp_path / "small.pt", small)
    assert architecture(load_compact(tmp_path / "small.pt", network()[0])) == architecture(small)
    model = sj_prune.PruningWrapper(
        net, methods.FilterNorm(sparsity=0.3, interval=1, end=1), example_input=x
    )
    status = {row.name: row.status for row in model.explain().rows}
    assert "transposed convolution" in status["3"]


def test_deploy_refuses_it_by_name():
    net, x = network()
    with pytest.raises(UnsupportedError, match=r"deploy but 3 \(ConvTranspose2d\)"):
        sj_prune.deploy(net.eval(), x)
