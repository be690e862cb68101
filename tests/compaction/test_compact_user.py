"""Masked and compact networks are equal, for networks as users write them."""

import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune.compaction import compact, couple_checked
from sj_prune.compaction.slices import silence
from sj_prune.network.coupling import couple
from tests.support.compaction_cases import (
    as_tuple,
    assert_awake,
    assert_equal,
    assert_same_snapshot,
    awake,
    mask_at_random,
    parameters,
    run,
    snapshot,
)
from tests.support.user_cases import NETWORKS, build
from tests.support.user_networks import (
    IN,
    SIZE,
    Concatenation,
    Depthwise,
    NoNorm,
    Plif,
    PreActivation,
    SharedNeuron,
)
from tests.support.user_networks_staying import HardCodedWidth

DENSITIES = st.sampled_from([0.0, 0.3, 0.5, 0.8])


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_equal_at_half_density(kind):
    net, x = build(kind)
    assert_awake(awake(net, x), x)
    dense = parameters(net)
    assert mask_at_random(net, x, 0, 0.5, couple_checked(net, as_tuple(x)))
    small = compact(net, x)
    assert parameters(small) < dense
    assert_equal(net, small, x)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(NETWORKS),
    seed=st.integers(0, 10_000),
    density=DENSITIES,
)
def test_equal_at_any_mask(kind, seed, density):
    net, x = build(kind, seed)
    awake(net, x, seed)
    mask_at_random(net, x, seed, density, couple_checked(net, as_tuple(x)))
    # One unit a group may let nothing through.
    assert_equal(net, compact(net, x), x, alive=density > 0)


def masked(kind, density=0.5):
    net, x = build(kind)
    awake(net, x)
    mask_at_random(net, x, 0, density)
    return net, x


def test_widths_are_what_was_kept():
    net, x = build(Depthwise)
    awake(net, x)
    for group in couple(net, (x,)).groups:
        silence(net, group, torch.arange(group.units) < 3)
    small = compact(net, x)
    assert (small.a.in_channels, small.a.out_channels) == (IN, 5)
    assert (small.dw.in_channels, small.dw.out_channels, small.dw.groups) == (5, 5, 5)
    assert (small.dw2.in_channels, small.dw2.out_channels, small.dw2.groups) == (5, 10, 5)
    assert small.dw2.weight.shape == (10, 1, 3, 3)
    assert small.bn_dw2.num_features == 10
    assert small.bn_dw2.running_mean.shape == small.bn_dw2.running_var.shape == (10,)
    assert small.fc.in_features == 5
    assert torch.equal(small.a.weight, net.a.weight[3:])


def test_sleeping_filters_do_not_matter_and_bare_ones_do():
    net, x = masked(SharedNeuron)
    assert net.a.weight[net.bn_a.weight == 0].abs().min() > 0, "filters sleep, they are not zero"
    net, x = build(PreActivation)
    awake(net, x)
    with torch.no_grad():  # silent at the norms, but the filter's output is added to others
        net.bn2.weight[:2], net.bn2.bias[:2] = 0, 0
        net.bn1.weight[:2], net.bn1.bias[:2] = 0, 0
    small = compact(net, x)
    assert (small.a.out_channels, small.stem.out_channels) == (4, 8)
    assert_equal(net, small, x)


def test_without_norm_filter_and_bias_have_to_be_zero():
    net, x = build(NoNorm)
    awake(net, x)
    with torch.no_grad():
        net.a.weight[:4] = 0
        net.a.bias[:2] = 0
    assert compact(net, x).a.out_channels == 6


def test_one_unit_of_a_group_stays():
    net, x = build(SharedNeuron)
    awake(net, x)
    (group,) = couple(net, (x,)).groups
    silence(net, group, torch.ones(group.units, dtype=torch.bool))
    small = compact(net, x)
    assert small.a.out_channels == 1
    (expected,), (actual,) = run(net, x, False)[0], run(small, x, False)[0]
    assert torch.equal(expected, actual)


def test_a_dense_network_is_copied():
    net, x = build(SharedNeuron)
    awake(net, x)
    small = compact(net, x)
    assert small is not net
    assert parameters(small) == parameters(net)
    assert {id(p) for p in small.parameters()} & {id(p) for p in net.parameters()} == set()


@pytest.mark.parametrize("kind", [SharedNeuron, Plif, HardCodedWidth])
def test_network_comes_back_as_it_was(kind):
    net, x = masked(kind)
    net.train()
    net.a.weight.requires_grad_(False)
    net.register_forward_hook(lambda *_: None)
    functional.reset_net(net)
    net(x).sum().backward()  # memories are part of a graph now
    grads = {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}
    before = snapshot(net)
    compact(net, x)
    assert_same_snapshot(before, snapshot(net))
    assert all(torch.equal(net.get_parameter(k).grad, g) for k, g in grads.items())


def test_what_is_preserved():
    net, x = masked(Plif)
    calls = []
    net.bn_b.register_forward_hook(lambda m, _, out: calls.append(out.shape[2]))
    net.a.weight.requires_grad_(False)
    net.train()
    net.n_a.eval()
    small = compact(net, x)
    assert {k: m.training for k, m in small.named_modules()} == {
        k: m.training for k, m in net.named_modules()
    }
    assert not small.a.weight.requires_grad
    assert small.b.weight.requires_grad
    assert type(small.n_a) is neuron.ParametricLIFNode
    assert torch.equal(small.n_a.w, net.n_a.w)
    assert not isinstance(small.n_a.v, torch.Tensor)
    calls.clear()
    small(x)
    assert calls == [small.b.out_channels], "hooks go along"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_type_is_preserved(dtype):
    net, x = masked(Concatenation)
    small = compact(net.to(dtype), x.to(dtype))
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small.bn_cat.num_batches_tracked.dtype == torch.int64


def test_memory_format_is_preserved():
    net, x = masked(SharedNeuron)
    small = compact(net, x)
    assert all(p.is_contiguous() for p in small.parameters())
    last = compact(net.to(memory_format=torch.channels_last), x)
    assert last.a.weight.stride() == small.a.weight.to(memory_format=torch.channels_last).stride()
    assert last.a.weight.stride() != small.a.weight.stride()


def test_small_network_trains_on_and_resets():
    net, x = masked(Concatenation)
    functional.reset_net(net)
    small = compact(net, x).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    before = copy.deepcopy(small.state_dict())
    for _ in range(2):
        functional.reset_net(small)
        small(x).square().mean().backward()
        optimizer.step()
    assert any(not torch.equal(v, before[k]) for k, v in small.state_dict().items())
    functional.reset_net(small)
    assert not isinstance(small.n_a.v, torch.Tensor)


def test_recording_nodes_become_stock():
    net, x = masked(SharedNeuron)
    small = compact(sj_prune.to_recording(net), x)
    assert type(small.node) is neuron.IFNode
    assert type(net.node) is not neuron.IFNode
    assert_equal(net, small, x)


def test_a_wrapper_is_refused():
    net, x = build(SharedNeuron)
    model = sj_prune.PruningWrapper(
        net, sj_prune.methods.Criticality(sparsity=0.5, end=10, interval=5)
    )
    with pytest.raises(TypeError, match="finalize"):
        compact(model, x)
    with pytest.raises(TypeError, match="Module"):
        compact([net], x)


def test_skip_keeps_a_layer():
    net, x = masked(Concatenation)
    small = compact(net, x, skip=("a",))
    assert small.a.out_channels == 8
    assert small.b.out_channels < 4
    with pytest.raises(ValueError, match="nowhere"):
        compact(net, x, skip=("nowhere",))


def test_silent_neurons_are_named(caplog):
    net, x = masked(SharedNeuron)
    with caplog.at_level(logging.WARNING, "sj_prune"):
        compact(net, x)
        assert caplog.text == ""
    net.node.v_threshold = 1e6
    with caplog.at_level(logging.WARNING, "sj_prune"):
        compact(net, x)
    assert "no neuron fires in node" in caplog.text


def test_poisson_encoded_inputs():
    """Random numbers in the forward are the same for both networks."""

    class Encoded(SharedNeuron):
        def forward(self, x):
            return super().forward((torch.rand_like(x) < x).to(x))

    net, x = build(Encoded)
    awake(net, x)
    mask_at_random(net, x, 0, 0.5)
    assert parameters(compact(net, x)) < parameters(net)


def test_single_step_mode():
    net = nn.Sequential(
        layer.Conv2d(IN, 6, 3), layer.BatchNorm2d(6), neuron.IFNode(), nn.Flatten(),
        layer.Linear(6 * (SIZE - 2) ** 2, 4),
    )  # fmt: skip
    x = torch.rand(2, IN, SIZE, SIZE)
    awake(net, x)
    mask_at_random(net, x, 0, 0.5)
    small = compact(net, x)
    assert small[4].in_features == small[0].out_channels * (SIZE - 2) ** 2 < net[4].in_features
    assert_equal(net, small, x)


def test_a_compact_network_can_be_compacted_again():
    net, x = masked(Depthwise, 0.7)
    small = compact(net, x)
    mask_at_random(small, x, 1, 0.6)
    assert_equal(small, compact(small, x), x)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Concatenation, Depthwise, HardCodedWidth])
def test_on_a_device(kind):
    net, x = build(kind)
    awake(net, x)
    mask_at_random(net, x, 0, 0.5, couple_checked(net, (x,)))
    small = compact(net.cuda(), x.cuda())
    assert {p.device.type for p in small.parameters()} == {"cuda"}
    assert_equal(net.cpu(), small.cpu(), x)


def test_what_left_and_what_stayed_is_logged(caplog):
    """The removed channels are counted among all groups; at DEBUG what stayed says why."""
    net, x = build(Concatenation)
    awake(net, x)
    coupling = couple_checked(net, as_tuple(x))
    first, second, *others = coupling.groups
    gone = torch.zeros(first.units, dtype=torch.bool)
    gone[:2] = True
    silence(net, first, gone)
    silence(net, second, torch.ones(second.units, dtype=torch.bool))  # all but one can leave
    with caplog.at_level(logging.DEBUG, "sj_prune"):
        compact(net, x)
    said = [(r.levelno, r.getMessage()) for r in caplog.records if "compact" in r.getMessage()]
    total = sum(group.units for group in coupling.groups)
    summary = (
        f"compact: {2 + second.units - 1} of {total} channels removed, in 2 of "
        f"{len(coupling.groups)} groups; {len(coupling.frozen)} layers stay as they are"
    )
    assert [text for level, text in said if level == logging.INFO] == [summary]
    debug = [text for level, text in said if level == logging.DEBUG]
    assert f"compact: one of the {second.units} silent channels of {second.name} stays" in " ".join(
        debug
    )
    for group in others:
        assert (
            f"compact: {group.name} stays whole: none of its {group.units} channels is silent"
            in (debug)
        )
    for layer_name, reason in coupling.frozen.items():
        assert f"compact: {layer_name} stays as it is: {reason}" in debug
    assert coupling.frozen


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_coupled_alike_under_a_foreign_default_device(kind, caplog):
    """ "meta" holds no values: a trial whose tensors were made there would decide nothing."""
    net, x = build(kind)
    expected = couple_checked(net, as_tuple(x))
    usual = caplog.text
    caplog.clear()
    torch.set_default_device("meta")
    try:
        found = couple_checked(net, as_tuple(x))
    finally:
        torch.set_default_device(None)
    assert caplog.text == usual
    assert found.frozen == expected.frozen
    assert [(g.name, g.units) for g in found.groups] == [(g.name, g.units) for g in expected.groups]
