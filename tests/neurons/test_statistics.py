"""The five statistics of a recording node against loops over the stock node's steps."""

import copy
import pickle

import pytest
import torch
from spikingjelly.activation_based import functional, surrogate
from torch.utils.checkpoint import checkpoint

from sj_prune.neurons import STATISTICS, RecordingIFNode, RecordingLIFNode
from tests.support.neuron_cases import (
    LEGACY,
    RECORDING,
    STOCK,
    SURROGATES,
    brute_force,
    current,
    settings,
)

SHAPES = {
    "T,N": (5, 3),
    "T,N,F": (5, 3, 4),
    "T,N,C,L": (4, 2, 3, 6),
    "T,N,C,H,W": (4, 2, 3, 4, 5),
    "one step": (1, 2, 3, 2, 2),
    "one sample": (4, 1, 3, 2, 2),
}


def per_sample(steps, name):
    """Return one statistic ``[N, C]`` from S, V, H and g', channel by channel."""
    s, v, h, g = (x if x.ndim > 2 else x.unsqueeze(-1) for x in steps)
    samples, channels = s.shape[1:3]
    result = torch.zeros(samples, channels, dtype=torch.float64)
    for n in range(samples):
        for c in range(channels):
            if name == "firing_rate":
                value = s[:, n, c].mean()
            elif name == "abs_potential":
                value = v[:, n, c].abs().mean()
            elif name == "abs_charge":
                value = h[:, n, c].abs().mean()
            else:
                over_time = g[:, n, c].sum(0) / len(g)
                value = over_time.max() if name == "criticality_max" else over_time.mean()
            result[n, c] = value
    return result


def expected(batches, kind="LIF", **kwargs):
    kwargs.setdefault("surrogate_function", surrogate.ATan())
    steps = [brute_force(kind, x, **kwargs) for x in batches]
    return {
        name: torch.cat([per_sample(batch, name) for batch in steps]).mean(0) for name in STATISTICS
    }


def assert_activity(node, values, tolerance=1e-6):
    assert node.activity.names == STATISTICS
    for name, value in values.items():
        mean = node.activity.mean(name)
        assert mean.dtype == torch.float64
        torch.testing.assert_close(mean, value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_every_shape(kind, v_reset, shape):
    kwargs = {"v_reset": v_reset, "surrogate_function": surrogate.ATan()}
    node = RECORDING[kind](**settings(kind, **kwargs))
    x = current(*shape)
    node(x)
    assert node.activity.count == shape[1]
    assert node.activity.channels == (shape[2] if len(shape) > 2 else 1)
    assert_activity(node, expected([x], kind, **kwargs))


@pytest.mark.parametrize("name", SURROGATES)
def test_every_surrogate(name):
    function = SURROGATES[name]()
    node = RecordingLIFNode(**settings("LIF", surrogate_function=function))
    x = current(4, 3, 2, 3, dtype=torch.float64)
    node(x)
    assert_activity(node, expected([x], surrogate_function=function), 1e-12)


def test_the_order_of_criticality_max():
    """Time mean first, then the maximum over the map, then the mean over samples."""
    node = RecordingIFNode(step_mode="m", v_reset=None, surrogate_function=surrogate.ATan())
    near, away = -1e-6, -0.5  # distances to the threshold; none of them fires
    u = torch.full((2, 3, 1, 2), away)  # [T, N, C, L]: two places of one channel
    u[0, 0, 0, 0] = u[1, 0, 0, 1] = near  # sample 0: each place once
    u[:, 1, 0, 0] = near  # sample 1: the first place always
    u[:, 2, 0, 1] = near  # sample 2: the second place always
    charge = 1.0 + u
    node(torch.stack([charge[0], charge[1] - charge[0]]))  # an IF node adds up its input
    far = 1.0 / (1.0 + (torch.pi * away) ** 2)
    right = ((1.0 + far) / 2 + 1.0 + 1.0) / 3
    assert node.activity.mean("criticality_max").item() == pytest.approx(right, rel=1e-5)
    # Every other order is well away from it: the maximum before the time mean or over samples ...
    assert abs(right - 1.0) > 0.1
    # ... and the mean over samples, or over the map, before the maximum.
    mean = (1.0 + far) / 2
    assert abs(right - mean) > 0.1
    assert node.activity.mean("criticality_mean").item() == pytest.approx(mean, rel=1e-5)


def test_several_batches_of_different_size():
    batches = [current(4, n, 3, 2, 2, seed=n) for n in (3, 1, 4)]
    node = RecordingLIFNode(**settings("LIF", surrogate_function=surrogate.ATan()))
    for x in batches:
        functional.reset_net(node)
        node(x)
    assert node.activity.count == 8
    assert_activity(node, expected(batches))


def test_a_second_call_without_reset_measures_the_carried_state():
    node = RecordingLIFNode(**settings("LIF", surrogate_function=surrogate.ATan()))
    first, second = current(4, 2, 3, high=1.2), current(4, 2, 3, high=1.2, seed=1)
    node(first)
    v = node.v
    node.activity.clear()
    node(second)
    steps = brute_force("LIF", second, v=v, surrogate_function=surrogate.ATan())
    assert_activity(node, {name: per_sample(steps, name).mean(0) for name in STATISTICS})
    from_rest = expected([second])
    assert (node.activity.mean("abs_charge") - from_rest["abs_charge"]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_features_last(kind):
    """``[T, N, L, D]`` as after a linear layer over tokens: D counts the channels."""
    kwargs = settings(kind, surrogate_function=surrogate.ATan(), store_v_seq=True)
    node, stock, moved = RECORDING[kind](**kwargs), STOCK[kind](**kwargs), RECORDING[kind](**kwargs)
    node.channel_dim = -1
    node.trace = moved.trace = True
    for seed in range(2):  # the state is carried over
        x = current(4, 2, 5, 3, seed=seed)
        assert torch.equal(node(x), stock(x))
        moved(x.movedim(-1, 2))
        assert node.v.shape == (2, 5, 3)
        assert torch.equal(node.v, stock.v)
        assert torch.equal(node.v_seq, stock.v_seq)
        assert torch.equal(node.h_seq, moved.h_seq.movedim(2, -1))
        assert torch.equal(node.g_seq, moved.g_seq.movedim(2, -1))
    assert node.activity.channels == 3
    for name in STATISTICS:
        torch.testing.assert_close(
            node.activity.mean(name), moved.activity.mean(name), rtol=1e-6, atol=1e-7
        )


def test_features_last_gradients_and_detach():
    kwargs = settings("LIF", surrogate_function=surrogate.ATan(), store_v_seq=True)
    node, stock = RecordingLIFNode(**kwargs), STOCK["LIF"](**kwargs)
    node.channel_dim = -1
    gradients = []
    for layer in (node, stock):
        x = current(4, 2, 5, 3).requires_grad_()
        layer(x)
        functional.detach_net(layer)  # in place on the host's memories, so none may be a view
        assert not layer.v.requires_grad
        (layer(x) * torch.linspace(-1, 1, 3)).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


def test_features_last_of_a_plain_linear_layer():
    node = RecordingLIFNode(**settings("LIF", surrogate_function=surrogate.ATan()))
    node.channel_dim = -1
    x = current(4, 3, 5)
    node(x)
    assert_activity(node, expected([x]))


def test_reset_keeps_them_and_clear_forgets_them():
    node = RecordingLIFNode(**settings("LIF", surrogate_function=surrogate.ATan()))
    x = current(4, 3, 2)
    node(x)
    functional.reset_net(node)
    functional.detach_net(node)
    assert node.activity.count == 3
    assert_activity(node, expected([x]))
    node.activity.clear()
    assert node.activity.count == 0
    functional.reset_net(node)
    node(x)
    assert_activity(node, expected([x]))


def test_only_in_train_mode_unless_asked_for():
    node, x = RecordingLIFNode(step_mode="m"), current(4, 3, 2)
    node.eval()
    node(x)
    assert node.activity.count == 0
    node.record_in_eval = True
    node(x)
    assert node.activity.count == 3
    node.recording = False
    node(x)
    node.train()
    node(x)
    assert node.activity.count == 3
    node.recording = True
    node(x)
    assert node.activity.count == 6


def test_narrowed_statistics():
    full, narrow = RecordingLIFNode(step_mode="m"), RecordingLIFNode(step_mode="m")
    narrow.statistics = ["criticality_max", "firing_rate"]
    assert narrow.statistics == ("firing_rate", "criticality_max")
    x = current(4, 3, 2, 5)
    assert torch.equal(full(x), narrow(x))
    for name in narrow.statistics:
        assert torch.equal(full.activity.mean(name), narrow.activity.mean(name))
    with pytest.raises(ValueError, match="recorded statistics .* but got abs_charge"):
        narrow.activity.mean("abs_charge")
    kept = narrow.activity
    narrow.statistics = ("firing_rate", "criticality_max")
    assert narrow.activity is kept  # the same names forget nothing
    narrow.statistics = "abs_charge"
    assert narrow.activity.count == 0
    narrow.statistics = ()
    narrow(x)
    assert narrow.activity.count == 0
    with pytest.raises(ValueError, match=r"Expected statistics among .* but got \['rate'\]"):
        narrow.statistics = ["rate"]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("function", [surrogate.ATan(), surrogate.S2NN()], ids=["known", "unknown"])
def test_a_checkpoint_counts_once(use_reentrant, function):
    plain = RecordingLIFNode(step_mode="m", surrogate_function=function)
    stock = STOCK["LIF"](step_mode="m", surrogate_function=function)
    node = copy.deepcopy(plain)
    x = current(4, 3, 2)
    plain(x)
    gradients = []
    # The scripted resets of 0.0.0.0.14 cannot be recomputed without reentrance; ours can.
    layers = (node, plain) if LEGACY and not use_reentrant else (node, stock)
    plain.recording = False
    functional.reset_net(plain)
    for layer in layers:
        leaf = x.clone().requires_grad_()
        checkpoint(layer, leaf, use_reentrant=use_reentrant).sum().backward()
        gradients.append(leaf.grad)
    assert node.activity.count == 3
    for name in STATISTICS:
        assert torch.equal(node.activity.mean(name), plain.activity.mean(name))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("store_v_seq", [False, True])
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(clone, store_v_seq):
    kwargs = settings("LIF", surrogate_function=surrogate.ATan(), store_v_seq=store_v_seq)
    node = RecordingLIFNode(**kwargs)
    first, second = current(4, 3, 2), current(4, 2, 2, seed=1)
    node(first.clone().requires_grad_())
    twin = clone(node)  # although its potential still hangs on the graph
    assert twin.activity.count == 3
    assert not twin.v.requires_grad
    assert torch.equal(twin.v, node.v)
    assert node.v.requires_grad
    functional.reset_net(twin)
    stock = STOCK["LIF"](**kwargs)
    assert torch.equal(twin(second), stock(second))
    assert torch.equal(twin.v, stock.v)
    if store_v_seq:
        assert torch.equal(twin.v_seq, stock.v_seq)
    assert_activity(twin, expected([first, second]))
    assert_activity(node, expected([first]))
    functional.reset_net(twin)
    assert twin.v == 0.0
    assert getattr(twin, "v_seq", None) is None


def test_a_module_that_changes_its_type_keeps_float64_sums():
    node, x = RecordingLIFNode(step_mode="m"), current(4, 3, 2)
    node(x)
    before = node.activity.mean("abs_charge")
    for change in (node.half, node.bfloat16, node.double, lambda: node.to(torch.float16)):
        change()
        assert node.activity.sums.dtype == torch.float64
        assert node.activity.samples.dtype == torch.int64
        assert torch.equal(node.activity.mean("abs_charge"), before)
    node.to("meta")
    assert node.activity.sums.device.type == "meta"


def test_a_node_shared_by_layers_of_different_width():
    node = RecordingLIFNode(step_mode="m")
    node(current(4, 3, 2))
    with pytest.raises(ValueError, match="Expected 2 channels .* but got 5: a neuron layer shared"):
        node(current(4, 3, 5))
    assert node.activity.count == 3
    node.recording = False
    assert node(current(4, 3, 5)).shape == (4, 3, 5)
