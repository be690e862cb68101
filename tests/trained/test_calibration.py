"""What is calibrated, against statistics, gradients and norms computed by hand."""

import copy
from dataclasses import replace

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import _host, methods
from sj_prune.methods.taylor import SquaredGate
from sj_prune.neurons.statistics import STATISTICS
from sj_prune.trained.calibration import batches_of, calibrate, mean_cross_entropy
from tests.support.trained_cases import (
    Residual,
    batches,
    gradients_by_hand,
    loss_of,
    snapshot,
    statistics_by_hand,
    trained_like,
)
from tests.support.trained_cases import assert_untouched as untouched


def as_found(number, **kwargs):
    return [((x,), y) for x, y in batches(number, **kwargs)]


def wrapper(method, net=None, dtype=torch.float64):
    net = trained_like(dtype=dtype) if net is None else net
    return sj_prune.PruningWrapper(net, method, example_input=batches(1, dtype=dtype)[0][0])


# ---- statistics and gradients --------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("number", [1, 4])
def test_statistics_are_those_of_all_batches_in_eval_mode(number, training):
    net = trained_like(dtype=torch.float64)
    expected = statistics_by_hand(net, batches(number, dtype=torch.float64))
    model = wrapper(methods.SCA(sparsity=0.4), net)
    for node in model.nodes.values():
        node.statistics = STATISTICS
    model.train(training)
    calibrate(model, as_found(number, dtype=torch.float64), loss_of)
    assert set(model.nodes) == set(expected) == {"node0", "node1", "node2", "node3"}
    for name, node in model.nodes.items():
        assert node.activity.count == 6 * number
        for kind in STATISTICS:
            found = node.activity.mean(kind)
            torch.testing.assert_close(found, expected[name][kind], rtol=1e-9, atol=1e-12)
            assert found.min() < found.max()
    assert model.training is training
    assert not any(node.record_in_eval for node in model.nodes.values())


def test_statistics_from_before_are_forgotten():
    model = wrapper(methods.APoZ())
    calibrate(model, as_found(1, dtype=torch.float64), loss_of)
    calibrate(model, as_found(3, dtype=torch.float64), loss_of)
    assert {node.activity.count for node in model.nodes.values()} == {18}


def test_only_what_is_needed_is_recorded():
    model = wrapper(methods.APoZ())
    calibrate(model, as_found(1, dtype=torch.float64), loss_of)
    assert {node.activity.names for node in model.nodes.values()} == {("firing_rate",)}


@pytest.mark.parametrize(
    "method",
    [methods.GraNet(sparsity=0.8, interval=1), methods.FilterNorm(regrow=0.2)],
    ids=["weights", "channels"],
)
@pytest.mark.parametrize("number", [1, 3])
def test_gradients_are_the_mean_over_batches(method, number):
    net = trained_like(dtype=torch.float64)
    by_hand = gradients_by_hand(net, batches(number, dtype=torch.float64))
    model = wrapper(method, net)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)  # old gradients do not count
    calibrate(model, as_found(number, dtype=torch.float64), loss_of)
    for name, parameter in model.net.named_parameters():
        expected = sum(grads[name] for grads in by_hand) / number
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)
    assert net.stem.weight.grad.any()


class WatchingGate(SquaredGate):
    """Notes the gradient of every batch."""

    seen = []

    def add(self, layer):
        assert not torch.is_grad_enabled()
        self.seen.append((layer.name, layer.gamma_grad.clone() if layer.norm else None))
        super().add(layer)


class Watching(methods.TaylorChannels):
    def plan(self):
        return replace(super().plan(), drop=WatchingGate())


def test_observe_sees_the_gradient_of_each_batch():
    net, found = trained_like(dtype=torch.float64), batches(3, dtype=torch.float64)
    by_hand = gradients_by_hand(net, found)
    model = wrapper(Watching(), net)
    WatchingGate.seen.clear()
    calibrate(model, as_found(3, dtype=torch.float64), loss_of)
    seen = [grad for name, grad in WatchingGate.seen if name == "conv1"]
    assert len(seen) == 3
    for grad, expected in zip(seen, by_hand, strict=True):
        torch.testing.assert_close(grad, expected["norm1.weight"], rtol=1e-9, atol=1e-12)
    assert {name for name, _ in WatchingGate.seen} == {"stem", "conv1", "conv2", "fc1"}
    assert int(model.session.run.memory["conv1"]["terms"]) == 3


def test_methods_that_need_nothing_run_nothing():
    model = wrapper(methods.Magnitude(sparsity=0.5))

    def never():
        raise AssertionError("a batch was drawn")
        yield

    calibrate(model, never(), loss_of)


def test_statistics_alone_need_no_gradient():
    net = trained_like()
    outputs = []
    net.register_forward_hook(lambda _m, _i, out: outputs.append(out.requires_grad))
    model = wrapper(methods.APoZ(), net, torch.float32)
    outputs.clear()
    calibrate(model, as_found(2), loss_of)
    assert outputs == [False, False]


@pytest.mark.parametrize("shape", [(3, 6, 5), (6, 5)])
def test_default_loss(shape):
    output, target = torch.randn(shape, dtype=torch.float64), torch.randint(0, 5, (6,))
    mean = output.mean(0) if len(shape) == 3 else output
    expected = -(mean - mean.exp().sum(1, keepdim=True).log()).gather(1, target[:, None]).mean()
    torch.testing.assert_close(mean_cross_entropy(output, target), expected)


@pytest.mark.parametrize("name", ["OTTTLIFNode", "SLTTLIFNode", "ComplementaryLIFNode", "LIFNode"])
def test_neurons_that_cut_gradients_in_eval_mode(name):
    """In eval mode as the host leaves it there may be no gradient; with ours there is one."""
    if not hasattr(neuron, name):
        pytest.skip("this release has no such neuron")
    net = nn.Sequential(nn.Linear(4, 4), getattr(neuron, name)(), nn.BatchNorm1d(4), nn.Dropout())
    _host.eval_with_gradients(net)
    assert [net.training, *(m.training for m in net)].count(True) <= 1
    assert not net[2].training
    assert not net[3].training
    spikes = net[1](net[0](2 * torch.rand(6, 4)))
    # OTTT returns its trace too.
    (spikes[0] if isinstance(spikes, list) else spikes).sum().backward()
    assert net[0].weight.grad.any()


# ---- norms ---------------------------------------------------------------------------------------


def norms_by_hand(net, found):
    """Return norm name -> mean over batches of the mean and of the unbiased variance it sees."""
    twin = copy.deepcopy(net).eval()
    seen, handles = {}, []
    for name, module in twin.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, inputs, name=name: seen.setdefault(name, []).append(
                        inputs[0].detach().double().transpose(0, 2).flatten(1)
                    )
                )
            )
    for x, _ in found:
        functional.reset_net(twin)
        twin(x)
    return {
        name: (
            torch.stack([x.mean(1) for x in xs]).mean(0),
            torch.stack(
                [((x - x.mean(1, keepdim=True)) ** 2).sum(1) / (x.shape[1] - 1) for x in xs]
            ).mean(0),
        )
        for name, xs in seen.items()
    }


@pytest.mark.parametrize("number", [1, 5])
@pytest.mark.parametrize("training", [True, False])
def test_norms_are_the_mean_of_batch_statistics(number, training):
    net, found = trained_like(dtype=torch.float64), batches(number, dtype=torch.float64)
    expected = norms_by_hand(net, found)
    net.train(training)
    net.norm1.momentum, net.norm2.momentum = None, 0.3
    before = snapshot(net)
    sj_prune.renormalize(net, ((x,) for x, _ in found))
    assert set(expected) == {"norm0", "norm1", "norm2"}
    for name, (mean, var) in expected.items():
        norm = net.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-9, atol=1e-12)
        assert int(norm.num_batches_tracked) == number
    untouched(net, before, but=("values",))
    after = net.state_dict()
    for key, value in before["values"].items():
        changed = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert changed or torch.equal(after[key], value)


def test_uses_no_gradient_and_resets():
    net = trained_like()
    sj_prune.renormalize(net, [(batches(1)[0][0],)])
    assert net.norm0.running_mean.grad_fn is None
    assert net.node0.v == 0.0


def test_a_norm_that_does_not_run_stays():
    net = trained_like()
    net.spare = layer.BatchNorm2d(4)
    nn.init.constant_(net.spare.running_mean, 3.0)
    net.spare.num_batches_tracked.fill_(9)
    sj_prune.renormalize(net, [(batches(1)[0][0],)])
    assert net.spare.running_mean.tolist() == [3.0] * 4
    assert int(net.spare.num_batches_tracked) == 9
    assert int(net.norm0.num_batches_tracked) == 1


class Instance(Residual):
    """With an instance norm that keeps running statistics."""

    def __init__(self):
        super().__init__()
        self.extra = nn.InstanceNorm2d(10, track_running_stats=True)

    def forward(self, x_seq):
        out = self.node0(self.norm0(self.stem(x_seq)))
        inner = self.norm1(self.conv1(out))
        inner = self.node1(self.extra(inner.flatten(0, 1)).view_as(inner))
        out = self.node2(self.norm2(self.conv2(inner))) + out
        return self.fc2(self.node3(self.fc1(self.flat(self.pool(out)))))


def test_instance_norms_stay():
    net = trained_like(Instance())
    mean, var = net.extra.running_mean.clone(), net.extra.running_var.clone()
    assert mean.any()
    sj_prune.renormalize(net, [(x,) for x, _ in batches(2)])
    # Early releases of torch write the mean over the samples back in eval mode, too: it rounds.
    torch.testing.assert_close(net.extra.running_mean, mean, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(net.extra.running_var, var, rtol=1e-6, atol=0.0)


def test_without_norms_nothing_runs():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))

    def never():
        raise AssertionError("an input was drawn")
        yield

    sj_prune.renormalize(net, never())


def test_no_input_is_an_error():
    net = trained_like()
    before = snapshot(net)
    with pytest.raises(ValueError, match="at least one input"):
        sj_prune.renormalize(net, [])
    untouched(net, before)


def test_norms_come_back_when_a_forward_fails():
    net = trained_like().train()
    before = snapshot(net)
    with pytest.raises(Exception, match=r"channels|shape|size"):
        sj_prune.renormalize(net, [(batches(1)[0][0],), (torch.rand(3, 6, 3, 6, 6),)])
    untouched(net, before)


# ---- data that norms cannot be estimated on -----------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_an_error(bad):
    net = trained_like()
    before = snapshot(net)
    found = batches(2)
    found[1][0].view(-1)[5] = bad
    with pytest.raises(ValueError, match="input 0 of batch 1 .from 0. holds nan or infinite"):
        sj_prune.prune(net, found, methods.Magnitude(sparsity=0.5))
    untouched(net, before)


def test_statistics_that_are_not_finite_are_an_error():
    net = trained_like()
    before = snapshot(net)
    huge = [((torch.full_like(x, 1e38),)) for x, _ in batches(1)]
    with pytest.raises(ValueError, match=r"batch norm '.+', the first .* after batch 0"):
        sj_prune.renormalize(net, huge)
    untouched(net, before)


def _of_one_value():
    """Norms that get one value a channel, sample and time step, as behind linear layers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(layer.Conv2d(6, 8, 1), layer.BatchNorm2d(8), neuron.IFNode()),
        *(layer.Conv2d(8, 8, 1), layer.BatchNorm2d(8), neuron.IFNode()),
        *(layer.Flatten(), layer.Linear(8, 4)),
    )
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.parametrize(("samples", "says"), [(1, True), (15, True), (16, False)])
def test_batches_too_small_for_a_variance_are_named(samples, says, caplog):
    x = torch.randn(4, samples, 6, 1, 1)
    sj_prune.renormalize(_of_one_value(), [(x,), (x,)])
    assert (f"batch norm '1' (and 1 more) got {samples} values" in caplog.text) == says


def test_a_short_last_batch_is_none_of_these(caplog):
    sj_prune.renormalize(_of_one_value(), [(torch.randn(4, n, 6, 1, 1),) for n in (32, 32, 3)])
    assert "too few" not in caplog.text


def test_a_search_warns_once(caplog):
    found = [(torch.rand(4, 8, 6, 1, 1) * 4, torch.randint(4, (8,)))]
    sj_prune.prune(_of_one_value(), found, methods.Magnitude(), budget={"synops": 0.5})
    assert caplog.text.count("too few to estimate") == 1


class _Keywords(nn.Module):
    """Calls its norm by keyword, and has another that never runs and was spoilt."""

    def __init__(self):
        super().__init__()
        self.norm, self.unused = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.unused.running_var.fill_(torch.nan)

    def forward(self, x, mask):
        return self.norm(input=x) + mask


def test_only_norms_that_run_are_looked_at():
    net, x = _Keywords(), torch.randn(40, 6)
    sj_prune.renormalize(net, [(x, torch.zeros(6))])
    torch.testing.assert_close(net.norm.running_mean, x.mean(0))
    assert net.unused.running_var.isnan().all()


def test_a_mask_that_is_added_may_be_infinite():
    x, mask = torch.randn(4, 6), torch.tensor([0.0, -torch.inf])
    ((args, _),) = batches_of([((x, mask), None)], None, torch.device("cpu"))
    assert args[1] is mask
    with pytest.raises(ValueError, match="input 1 of batch 0"):
        list(batches_of([((x, mask * torch.nan), None)], None, torch.device("cpu")))


def test_zeros_of_a_pruned_network_are_said(caplog):
    net, found = trained_like(), batches(2)
    sj_prune.prune(net, found, methods.Magnitude(sparsity=0.5))
    assert "are 0 already" not in caplog.text
    sj_prune.prune(net, found, methods.Magnitude(sparsity=0.7))
    assert "are 0 already, which budgets and the report count as kept" in caplog.text
