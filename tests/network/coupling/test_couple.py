"""Which channels live and die together, and why others stay."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_prune.compaction import couple_checked
from sj_prune.network.coupling import couple
from tests.support.compaction_cases import as_tuple, assert_same_snapshot, awake, snapshot
from tests.support.user_cases import NETWORKS, build
from tests.support.user_networks import (
    IN,
    SIZE,
    Concatenation,
    Depthwise,
    Grouped,
    Net,
    NoNorm,
    NormAfterAddition,
    PreActivation,
    Separable,
    SharedNeuron,
    TwoHeads,
    conv,
    lif,
)
from tests.support.user_networks_other import Inputs
from tests.support.user_networks_staying import HardCodedWidth


def coupled(kind, **kwargs):
    net, x = build(kind)
    return couple(net, as_tuple(x), **kwargs)


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_free_layers_are_found_and_others_have_a_reason(kind):
    net, x = build(kind)
    found = couple_checked(net, as_tuple(x))
    free = {name for group in found.groups for name in group.producers}
    assert set(kind.free) <= free
    assert not set(kind.free) & set(found.frozen)
    for name, reason in kind.stays.items():
        assert name not in free
        assert reason in found.frozen[name]
    layers = {n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert layers <= free | set(found.frozen), "every layer is in a group or has a reason"


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_every_channel_is_in_one_unit(kind):
    net, x = build(kind)
    found = couple(net, as_tuple(x))
    assert len({group.name for group in found.groups}) == len(found.groups)
    for table in ("producers", "norms", "consumers", "neurons"):
        seen = {}
        for group in found.groups:
            for name, index in getattr(group, table).items():
                assert index.shape[0] == group.units
                seen.setdefault(name, []).extend(index.flatten().tolist())
        for name, channels in seen.items():
            assert len(set(channels)) == len(channels), (table, name)


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("function", [couple, couple_checked])
def test_network_comes_back_as_it_was(kind, function):
    net, x = build(kind)
    net.train()
    functional.reset_net(net)
    net(*as_tuple(x))
    before = snapshot(net)
    function(net, as_tuple(x))
    assert_same_snapshot(before, snapshot(net))


def test_depthwise_layers_follow_their_input():
    group = coupled(Depthwise).group_of("a")
    assert set(group.producers) == {"a", "dw", "dw2"}
    assert set(group.norms) == {"bn_a", "bn_dw", "bn_dw2"}
    assert group.producers["dw2"].tolist() == [[2 * i, 2 * i + 1] for i in range(8)]
    assert group.consumers["pw"].tolist() == [[2 * i, 2 * i + 1] for i in range(8)]
    assert group.bare == frozenset()


def test_a_filter_that_no_norm_follows_is_bare():
    assert coupled(Separable).group_of("a").bare == {"dw"}
    group = coupled(NoNorm).group_of("b")
    assert (group.bare, group.norms) == ({"b"}, {})
    assert group.consumers["hidden"].shape == (6, SIZE * SIZE // 4)
    assert group.consumers["hidden"][1].tolist() == list(range(16, 32))


def test_groups_of_a_grouped_convolution_lose_the_same():
    found = coupled(Grouped)
    assert found.group_of("a").producers["a"].tolist() == [[i, i + 6] for i in range(6)]
    assert found.group_of("g").producers["g"].tolist() == [[i, i + 4] for i in range(4)]


def test_a_norm_over_a_concatenation_has_two_groups():
    found = coupled(Concatenation)
    b, c = found.group_of("b"), found.group_of("c")
    assert b.norms["bn_cat"].flatten().tolist() == list(range(4))
    assert c.norms["bn_cat"].flatten().tolist() == list(range(4, 10))
    assert c.consumers["d"].flatten().tolist() == list(range(4, 10))
    assert found.group_of("a").consumers["d"].flatten().tolist() == list(range(10, 18))
    assert b.norm_of == {"b": "bn_cat"}


def test_residual_branches_are_one_group():
    assert set(coupled(PreActivation).group_of("stem").producers) == {"stem", "b"}
    assert set(coupled(NormAfterAddition).group_of("a").producers) == {"a", "b"}
    assert set(coupled(SharedNeuron).group_of("a").producers) == {"a", "b"}
    assert set(coupled(TwoHeads).group_of("a").producers) == {"a"}


def test_skipped_layers_say_so():
    found = coupled(TwoHeads, skip=("b",))
    assert found.frozen["b"] == "skipped by name"
    assert found.group_of("b") is None


class Custom(Net):
    """One block, to be changed by a test."""

    def __init__(self, between):
        super().__init__()
        self.a, self.bn, self.n = conv(IN, 8), layer.BatchNorm2d(8), lif()
        self.between = between
        self.b, self.n_b = conv(8, 6), lif()
        self.head(6)

    def forward(self, x):
        x = self.between(self.n(self.bn(self.a(x))))
        return self.finish(self.n_b(self.b(x)))


def reason_of(between):
    net = Custom(between)
    functional.set_step_mode(net, "m")
    found = couple_checked(net, (torch.rand(2, 2, IN, SIZE, SIZE),))
    return found.frozen.get("a")


def average_with_channels_last(x):
    x = x.flatten(0, 1).to(memory_format=torch.channels_last)
    return nn.functional.adaptive_avg_pool2d(x, 1).unflatten(0, (2, -1))


@pytest.mark.parametrize(
    ("name", "between"),
    [
        ("relu", torch.relu),
        ("tanh", torch.tanh),
        ("gelu", nn.functional.gelu),
        ("double", lambda x: 2 * x),
        ("square", lambda x: x * x),
        ("minus its mean over time", lambda x: x - x.mean(0, keepdim=True)),
        ("gate", lambda x: x * torch.sigmoid(x)),
        ("in place", lambda x: x.relu_()),
        ("max pool", lambda x: layer.MaxPool2d(3, 1, 1, step_mode="m")(x)),
        ("average pool", lambda x: layer.AvgPool2d(3, 1, 1, step_mode="m")(x)),
        ("adaptive pool", lambda x: layer.AdaptiveAvgPool2d(4, step_mode="m")(x)),
        ("average over a map with channels last", average_with_channels_last),
        ("pad", lambda x: nn.functional.pad(x, (1, 1, 1, 1))),
        ("roll over time", lambda x: torch.cat((x[1:], x[:1]))),
        ("stack and sum", lambda x: torch.stack((x, x)).sum(0)),
        ("flip twice", lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)),
        ("channels last and back", lambda x: x.movedim(2, -1).movedim(-1, 2)),
        ("split over time", lambda x: torch.cat(x.chunk(2, 0))),
        ("fold time", lambda x: x.flatten(0, 1).unflatten(0, (2, -1))),
        ("where", lambda x: torch.where(x > 0, x, torch.zeros_like(x))),
        ("temporal weights", lambda x: x * torch.rand(2, 1, 1, 1, 1)),
        ("clamp", lambda x: x.clamp(-1, 1)),
        ("half", lambda x: x.half().to(x.dtype)),
    ],
)
def test_operations_that_keep_channels_apart(name, between):
    assert reason_of(between) is None


def fill_a_part(x):
    x[0] = 1.0
    return x


@pytest.mark.parametrize(
    ("reason", "between"),
    [
        ("would not read 0", lambda x: x + 1),
        ("would not read 0", torch.sigmoid),
        ("would not read 0", torch.exp),
        ("would not read 0", lambda x: 1 - x),
        ("would not read 0", lambda x: torch.where(x > 0, x, torch.ones_like(x))),
        ("would not read 0", lambda x: x.clamp(0.1, 1)),
        ("value for every channel", lambda x: x * torch.rand(8, 1, 1)),
        ("value for every channel", lambda x: x + torch.rand_like(x)),
        ("reduced over", lambda x: x * x.mean(2, keepdim=True)),
        ("mixes", lambda x: x * torch.softmax(x, 2)),
        ("mixes", lambda x: x.flip(2)),
        ("mixes", lambda x: torch.roll(x, 1, 2)),
        ("mixes", lambda x: x[:, :, torch.randperm(8)]),
        ("sliced", lambda x: torch.cat((x[:, :, 4:], x[:, :, :4]), 2)),
        ("split", lambda x: torch.cat(x.chunk(2, 2)[::-1], 2)),
        ("padded with", lambda x: nn.functional.pad(x, (1, 1, 1, 1), value=1.0)),
        ("mixes", fill_a_part),
        ("mixes", lambda x: x.clone().as_strided_(x.shape, (0,) * 5)),
    ],
)
def test_operations_that_do_not(reason, between):
    found = reason_of(between)
    assert found is not None
    assert reason in found, found


def test_a_voting_layer_is_left_whole():
    net = nn.Sequential(
        layer.Linear(6, 20), neuron.IFNode(), layer.Linear(20, 20), neuron.IFNode(),
        layer.VotingLayer(4),
    )  # fmt: skip
    functional.set_step_mode(net, "m")
    found = couple(net, (torch.rand(2, 2, 6),))
    assert [group.name for group in found.groups] == ["0"]
    assert "voting" in found.frozen["2"]


def test_parametrized_and_foreign_layers_stay():
    class Mine(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n = nn.Conv2d(IN, 6, 1), nn.BatchNorm2d(6)
            self.b = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1))
            self.c, self.d = Mine(6, 6, 1), nn.ConvTranspose2d(6, 6, 1)
            self.e = nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.e(self.d(self.c(self.b(self.n(self.a(x)))))).mean((2, 3))

    found = couple_checked(Net(), (torch.rand(2, IN, 4, 4),))
    assert found.groups == ()
    assert set(found.frozen) >= {"a", "b", "c", "e"}


# ---- the trial -----------------------------------------------------------------------------------


def test_trial_says_what_is_wrong_and_frees_the_rest():
    net, x = build(HardCodedWidth)
    assert len(couple(net, (x,)).groups) == 3
    found = couple_checked(net, (x,))
    assert [set(group.producers) for group in found.groups] == [{"b"}]
    assert found.frozen["a"].startswith("its width is written into the forward of the network: ")
    assert "invalid for input of size" in found.frozen["a"]
    assert found.frozen["c"] == "removing one of its channels changes the output"


def test_trial_sees_through_norms_that_start_at_zero_and_through_masks():
    class Hidden(SharedNeuron):
        def forward(self, x):
            x = self.node(self.bn_a(self.a(x)))
            return self.finish(self.node(self.bn_b(self.b(x) * (8 / x.shape[2]))))

    net, x = build(Hidden)
    nn.init.zeros_(net.bn_b.weight)
    nn.init.zeros_(net.fc.weight)
    assert "a" in couple_checked(net, (x,)).frozen


def test_trial_opens_gates_that_start_at_zero():
    class Gated(SharedNeuron):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            x = self.node(self.bn_a(self.a(x)))
            return self.finish(self.node(self.bn_b(self.b(x)))) + self.gate * x.shape[2]

    net, x = build(Gated)
    assert (
        couple_checked(net, (x,)).frozen["a"] == "removing one of its channels changes the output"
    )


def test_a_network_that_cannot_be_copied_is_taken_as_traced(caplog):
    class NoCopy(SharedNeuron):
        def __deepcopy__(self, memo):
            raise TypeError("not this one")

    net, x = build(NoCopy)
    assert len(couple_checked(net, (x,)).groups) == 1
    assert "could not be tried out" in caplog.text
    assert "not this one" in caplog.text


def test_keyword_inputs():
    net, (x, index) = build(Inputs)
    awake(net, (x, index))
    found = couple_checked(net, (x,), {"index": index})
    assert {g.name for g in found.groups} == {"bn_a", "bn_b"}


class Conv3x3(layer.Conv2d):
    """Fills in kernel and padding, computes nothing itself."""

    def __init__(self, i, o):
        super().__init__(i, o, 3, padding=1, step_mode="m")


class Standardised(Conv3x3):
    """The weight that it computes with is another one."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Doubled(Conv3x3):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [Conv3x3, Standardised, Doubled])
def test_a_subclass_is_plain_if_it_computes_nothing_itself(kind):
    net = nn.Sequential(
        kind(2, 6),
        layer.BatchNorm2d(6, step_mode="m"),
        neuron.LIFNode(step_mode="m"),
        Conv3x3(6, 2),
    )
    found = couple(net, (torch.randn(2, 2, 2, 5, 5),))
    if kind is Conv3x3:
        assert [group.units for group in found.groups] == [6]
    else:
        assert found.groups == ()
        assert found.frozen["0"].startswith(f"{kind.__name__} has a forward or a weight of its own")
