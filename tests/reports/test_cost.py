"""Operation counts against brute force and against SpikingJelly's own counters."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from sj_prune import cost

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def padded_index(place, size, mode):
    """Return which input a padded place reads, or None for a zero; written without torch."""
    if 0 <= place < size:
        return place
    if mode == "circular":
        return place % size
    if mode == "replicate":
        return min(max(place, 0), size - 1)
    if mode == "reflect":
        return -place if place < 0 else 2 * (size - 1) - place
    return None


def brute_force(spikes, conv):
    """Return (synops, dense) by visiting every weight at every output position of every sample."""
    out_channels, per_group, *kernel = conv.weight.shape
    sizes = spikes.shape[2:]
    positions = [
        range((n + 2 * p - d * (k - 1) - 1) // s + 1)
        for n, p, d, k, s in zip(
            sizes, conv.padding, conv.dilation, kernel, conv.stride, strict=True
        )
    ]
    sparse = dense = 0
    for o, i in itertools.product(range(out_channels), range(per_group)):
        channel = o // (out_channels // conv.groups) * per_group + i
        for taps in itertools.product(*map(range, kernel)):
            alive = conv.weight[(o, i, *taps)].item() != 0
            for place in itertools.product(*positions):
                read = [
                    padded_index(q * s + t * d - p, n, conv.padding_mode)
                    for q, s, t, d, p, n in zip(
                        place, conv.stride, taps, conv.dilation, conv.padding, sizes, strict=True
                    )
                ]
                if None not in read:
                    met = int(spikes[(slice(None), channel, *read)].sum())
                    dense += met
                    sparse += met * alive
    return sparse, dense


def prune(module, keep=0.4):
    with torch.no_grad():
        module.weight.mul_(torch.rand_like(module.weight) < keep)
    return module


def spike_train(*shape, rate=0.3):
    return (torch.rand(*shape) < rate).float()


def one(module, x, samples=1):
    """Return the cost of a single layer."""
    return cost.measure(nn.Sequential(module), x, samples=samples)["0"]


# ---- against brute force -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "settings"),
    [
        (1, {"stride": 2, "padding": 1}),
        (2, {}),
        (2, {"stride": 2, "padding": 1}),
        (2, {"stride": (1, 3), "padding": (2, 0), "dilation": (1, 2)}),
        (2, {"padding": 1, "groups": 2}),
        (2, {"padding": 1, "groups": 4}),
        (2, {"padding": 2, "padding_mode": "circular"}),
        (2, {"padding": 1, "padding_mode": "reflect"}),
        (2, {"padding": 2, "padding_mode": "replicate", "stride": 2}),
        (3, {"padding": 1, "stride": 2}),
    ],
    ids=str,
)
def test_synops_equal_brute_force(dims, settings):
    conv = prune(CONVS[dims](4, 4, 3, **settings))
    x = spike_train(2, 4, *[6, 5, 4][:dims])
    found = one(conv, x)
    assert (found.synops, found.synops_dense) == brute_force(x, conv)
    assert found.binary_input
    assert (found.macs, found.macs_dense) == (0, 0)
    assert found.energy == pytest.approx(0.9 * found.synops)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_synops_equal_brute_force_on_any_shape(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    groups, kernel, dilation = draw(1, 3), draw(1, 3), draw(1, 2)
    conv = nn.Conv2d(
        groups * draw(1, 2),
        groups * draw(1, 2),
        kernel,
        stride=draw(1, 3),
        padding=draw(0, 2),
        dilation=dilation,
        groups=groups,
    )
    reach = dilation * (kernel - 1) + 1
    torch.manual_seed(draw(0, 2**16))
    prune(conv, keep=data.draw(st.sampled_from([0.0, 0.3, 1.0])))
    x = spike_train(draw(1, 2), conv.in_channels, reach + draw(0, 3), reach + draw(0, 3))
    found = one(conv, x)
    assert (found.synops, found.synops_dense) == brute_force(x, conv)
    assert found.synops <= found.synops_dense


def test_padding_same_is_that_of_its_numbers():
    x = spike_train(2, 3, 7, 7)
    same = prune(nn.Conv2d(3, 4, 3, padding="same"))
    numbers = nn.Conv2d(3, 4, 3, padding=1)
    numbers.load_state_dict(same.state_dict())
    assert one(same, x).synops == brute_force(x, numbers)[0]


def test_borders_lower_the_count_below_the_fan_out():
    conv = nn.Conv2d(1, 2, 3, padding=1)
    corner, middle = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)
    corner[..., 0, 0] = middle[..., 2, 2] = 1
    assert one(conv, corner).synops == 2 * 4
    assert one(conv, middle).synops == 2 * 9


def test_linear_counts_nonzero_columns():
    linear = prune(nn.Linear(6, 5))
    x = spike_train(3, 2, 4, 6)  # [T, N, tokens, F]
    expected = sum(int((linear.weight[:, i] != 0).sum()) * int(x[..., i].sum()) for i in range(6))
    found = one(linear, x)
    assert found.synops == expected
    assert found.synops_dense == 5 * x.sum()


def test_analog_input_costs_macs():
    conv = prune(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2))
    x = torch.rand(3, 4, 7, 7)
    found = one(conv, x)
    positions = 3 * 4 * 4
    assert found.macs_dense == conv.weight.numel() * positions
    assert found.macs == int((conv.weight != 0).sum()) * positions
    assert not found.binary_input
    assert (found.synops, found.synops_dense) == (0, 0)
    assert found.energy == pytest.approx(4.6 * found.macs)
    assert found.energy_dense == pytest.approx(4.6 * found.macs_dense)


def test_counts_are_exact_where_single_precision_is_not():
    linear = nn.Linear(1, 3)
    nn.init.ones_(linear.weight)
    assert one(linear, torch.ones(2**24 + 1, 1)).synops == 3 * (2**24 + 1)


def test_autocast_does_not_round_counts():
    conv = nn.Conv2d(3, 64, 3)
    x = torch.ones(5, 3, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert one(conv, x).synops == 5 * 7 * 7 * 27 * 64


@pytest.mark.parametrize("dtype", [torch.bool, torch.float64, torch.bfloat16])
def test_input_types(dtype):
    class Binary(nn.Linear):
        def forward(self, input):
            return super().forward(input.float())

    x = spike_train(2, 4).to(dtype)
    assert one(Binary(4, 3), x).synops == 3 * int(x.sum())


# ---- networks ----------------------------------------------------------------------------------


def small_net():
    net = nn.Sequential(
        layer.Conv2d(2, 8, 3, padding=1, bias=False),
        layer.BatchNorm2d(8),
        neuron.IFNode(),
        layer.Conv2d(8, 6, 3, stride=2, padding=1, groups=2),
        neuron.LIFNode(),
        layer.Flatten(),
        layer.Linear(6 * 16, 10),
    )
    functional.set_step_mode(net, "m")
    return net


def awake(net):
    """Return `net` with norms that make its neurons fire."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.8)
    return net


def counters(net, x):
    """Return SpikingJelly's SynOps and MACs of the weights of `net` on the whole batch."""
    op_counter = pytest.importorskip("spikingjelly.activation_based.op_counter")
    if not hasattr(op_counter, "SynOpCounter"):
        pytest.skip("this release counts no SynOps")
    # Norms multiply too; what is compared here are the weights.
    synops, macs = op_counter.SynOpCounter(), op_counter.MACCounter()
    functional.reset_net(net)
    with torch.no_grad(), op_counter.DispatchCounterMode([synops, macs]):
        net.eval()(x)
    functional.reset_net(net)
    weights = ("convolution", "addmm", "mm")
    return synops.get_total(), sum(
        value for op, value in macs.records["Global"].items() if any(w in str(op) for w in weights)
    )


@pytest.mark.parametrize("samples", [None, 1, 3])
def test_dense_network_equals_spikingjelly(samples):
    net, x = awake(small_net()), torch.rand(4, 3, 2, 8, 8)
    synops, macs = counters(net, x)
    found = cost.measure(net, x, samples=samples).values()
    divisor = samples or 3
    assert synops > 0
    assert sum(c.synops for c in found) == pytest.approx(synops / divisor, rel=1e-12)
    assert sum(c.macs for c in found) == pytest.approx(macs / divisor, rel=1e-12)


def test_sew_resnet_equals_spikingjelly():
    from spikingjelly.activation_based.model import sew_resnet

    torch.manual_seed(3)
    net = sew_resnet.sew_resnet18(
        cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=10, detach_reset=True
    )
    functional.set_step_mode(net, "m")
    awake(net)
    x = torch.rand(2, 1, 3, 32, 32)
    synops, macs = counters(net, x)
    found = cost.measure(net, x, samples=1)
    assert len(found) == 21
    assert sum(c.synops for c in found.values()) == synops
    assert sum(c.macs for c in found.values()) == macs
    assert {c.binary_input for c in found.values()} == {True, False}


def test_pruning_lowers_only_what_is_pruned():
    net, x = awake(small_net()), torch.rand(4, 3, 2, 8, 8)
    before = cost.measure(net, x)
    prune(net[6], keep=0.1)  # the last layer changes no spike
    after = cost.measure(net, x)
    assert after["0"] == before["0"]
    assert after["3"] == before["3"]
    assert after["6"].synops_dense == before["6"].synops
    assert after["6"].synops < 0.3 * before["6"].synops
    assert after["6"].parameters_nonzero == int((net[6].weight != 0).sum())
    assert after["6"].parameters == net[6].weight.numel()


class Repeats(nn.Module):
    """Takes static images ``[N, C, H, W]`` and repeats them over time inside."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.repeat(4, 1, 1, 1, 1))


def test_samples_are_those_of_the_neurons():
    net, x = awake(small_net()), torch.rand(3, 2, 8, 8)
    inside = cost.measure(Repeats(net), x)["net.3"]
    outside = cost.measure(net, x.repeat(4, 1, 1, 1, 1))["3"]
    assert (inside.synops, inside.macs) == (outside.synops, outside.macs)
    assert outside.synops == cost.measure(net, x.repeat(4, 1, 1, 1, 1), samples=3)["3"].synops


def test_samples_in_single_step_mode():
    net, x = awake(small_net()), torch.rand(3, 2, 8, 8)
    functional.set_step_mode(net, "s")
    found = cost.measure(net, x)
    assert found["0"].macs == 8 * 2 * 9 * 64


def test_samples_without_neurons():
    x = spike_train(4, 2, 6)
    assert one(nn.Linear(6, 5), x, samples=None).synops == 5 * x.sum() / 2


@pytest.mark.parametrize("samples", [0, -1])
def test_samples_must_be_positive(samples):
    with pytest.raises(ValueError, match="at least 1"):
        cost.measure(small_net(), torch.rand(4, 3, 2, 8, 8), samples=samples)


def test_unknown_samples():
    class Makes(nn.Module):
        def forward(self, size):
            return torch.ones(size)

    with pytest.raises(TypeError, match="pass samples="):
        cost.measure(Makes(), 3)
    assert cost.measure(Makes(), 3, samples=2) == {}


class Twice(nn.Module):
    """One convolution used twice, once on an image and once on spikes; and one never used."""

    def __init__(self):
        super().__init__()
        self.conv = layer.Conv2d(3, 3, 3, padding=1, step_mode="m")
        self.node = neuron.IFNode(v_threshold=0.2, step_mode="m")
        self.unused = nn.Linear(3, 2)

    def forward(self, x_seq, scale):
        return self.conv(self.node(self.conv(x_seq * scale)))


def test_calls_accumulate():
    net = Twice()
    x, scale = torch.rand(4, 2, 3, 5, 5), torch.tensor(3.0)
    found = cost.measure(net, (x, scale), samples=1)
    conv = found["conv"]
    with torch.no_grad():
        spikes = net.node(net.conv(x * scale))
    assert conv.calls == 2
    assert not conv.binary_input
    assert conv.macs == 81 * 4 * 2 * 25
    assert conv.synops == brute_force(spikes.flatten(0, 1), net.conv)[0] > 0
    assert found["unused"].calls == 0
    assert not found["unused"].binary_input
    assert found["unused"].energy == 0


def test_tied_weights_count_in_both_places():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
    second.weight = first.weight
    x = spike_train(3, 4)
    found = cost.measure(nn.ModuleDict({"a": nn.Sequential(first)})["a"], x, samples=1)
    assert found["0"].synops == 4 * x.sum()

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x):
            return self.first(x) + self.second(input=x)

    found = cost.measure(Both(), x, samples=1)
    assert list(found) == ["first"]
    assert found["first"].synops == 2 * 4 * x.sum()


def test_parametrized_layers_count():
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    x = torch.ones(1, 2, 4, 4)
    assert one(conv, x).synops == conv.weight.numel() * 4


def test_only_the_layers_asked_for():
    net, x = small_net(), torch.rand(4, 3, 2, 8, 8)
    assert list(cost.measure(net, x)) == ["0", "3", "6"]
    assert list(cost.measure(net, x, layers={"6": net[6]})) == ["6"]


def test_compiled_network_is_measured_eagerly():
    net, x = awake(small_net()), torch.rand(4, 3, 2, 8, 8)
    expected = cost.measure(net, x)
    compiled = torch.compile(net, backend="eager")
    found = cost.measure(compiled, x)
    assert [c.synops for c in found.values()] == [c.synops for c in expected.values()]


# ---- nothing changes ---------------------------------------------------------------------------


def test_network_is_untouched():
    net, x = awake(small_net()).train(), torch.rand(4, 3, 2, 8, 8)
    net[6].eval()
    loss = net(x).sum()
    v = [net[2].v.detach().clone(), net[4].v.detach().clone()]
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    random = torch.get_rng_state()
    cost.measure(net, torch.rand(4, 5, 2, 8, 8, generator=torch.Generator()))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(net[2].v, v[0])
    assert torch.equal(net[4].v, v[1])
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    assert [m.training for m in net] == [True] * 6 + [False]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    loss.backward()  # the graph of before is whole
    assert net[0].weight.grad.abs().sum() > 0


def test_memories_with_a_tensor_to_reset_to():
    """SpikingJelly 2.0.0 resets such a memory in place."""
    net = nn.Sequential(nn.Linear(3, 3), neuron.IFNode(step_mode="m"))
    net[1].set_reset_value("v", torch.zeros(2, 3))
    net(torch.rand(4, 2, 3))
    v, live = net[1].v.detach().clone(), net[1].v
    cost.measure(net, torch.rand(4, 2, 3))
    assert net[1].v is live
    assert torch.equal(net[1].v, v)
    assert net[1].v.requires_grad


def test_hooks_go_when_the_forward_fails():
    net = small_net()
    with pytest.raises((RuntimeError, ValueError)):
        cost.measure(net, torch.rand(4, 3, 5, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert net.training


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="Expected example_input to hold at least one sample"):
        cost.measure(small_net(), torch.zeros(3, 0, 2, 8, 8))
