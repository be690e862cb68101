"""Copies of a wrapper, averages of its weights, and the way back to a stock network."""

import copy
import io
import pickle

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sj_prune import PruningWrapper, methods
from sj_prune.neurons import RecordingIFNode
from tests.support.pruning_cases import (
    assert_masked,
    batch,
    build,
    criticality,
    is_stock,
    loss_of,
    magnitude,
    rigl,
    same,
    snapshot,
    train,
    wrapped,
)

METHODS = {
    "Magnitude": magnitude,
    "Criticality": criticality,
    "RigL": rigl,
    "GradR": lambda: methods.GradR(sparsity=0.9, alpha=0.05, interval=2, end=9),
}


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": by_pickle, "torch.save": by_torch_save}


# ---- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("how", COPIES)
def test_copy_is_detached_and_independent(name, how):
    model, optimizer = wrapped(METHODS[name](), "adam")
    train(model, optimizer, 3)
    masks, weights = model.masks.masks, snapshot(model.net)
    other = COPIES[how](model)
    assert other.optimizers == []
    assert (other.step, other.history, other.method) == (3, model.history, model.method)
    assert same(other.masks.masks, masks)
    assert same(snapshot(other.net), weights)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
    # What happens to one does not happen to the other.
    train(model, optimizer, 3, start=4)
    assert other.step == 3
    assert same(other.masks.masks, masks)
    assert same(snapshot(other.net), weights)
    now, trained = model.masks.masks, snapshot(model.net)
    assert not same(now, masks)
    mine = torch.optim.SGD(other.parameters(), lr=0.1)
    other.attach(mine)
    train(other, mine, 3, start=4)
    assert (other.step, model.step) == (6, 6)
    assert same(model.masks.masks, now)
    assert same(snapshot(model.net), trained)
    if name != "GradR":
        assert_masked(other, mine)


@pytest.mark.parametrize("how", COPIES)
def test_copy_masks_its_own_gradients(how):
    model, _ = wrapped(magnitude())
    model.update_masks(0.5)
    other = COPIES[how](model)
    loss_of(other, 1).backward()
    for n, mask in other.masks.items():
        assert not other.masks.weight(n).grad[~mask].any()
    assert all(p.grad is None for p in model.parameters())


def test_copy_goes_on_as_the_original():
    """With the optimizer's state loaded, the copy makes the same run."""
    model, optimizer = wrapped(rigl(), "adam")
    train(model, optimizer, 3)
    other = copy.deepcopy(model)
    mine = torch.optim.Adam(other.parameters(), lr=0.01)
    mine.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.attach(mine)
    train(model, optimizer, 6, start=4)
    train(other, mine, 6, start=4)
    assert same(snapshot(model.net), snapshot(other.net))
    assert same(model.masks.masks, other.masks.masks)


def test_copy_between_forward_and_backward():
    model, _ = wrapped(criticality())
    loss = loss_of(model, 1)
    other = copy.deepcopy(model)
    loss.backward()
    loss_of(other, 1).backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.grad.equal(q.grad)


# ---- averages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["mean", "ema"])
def test_average_of_weights_takes_the_masks(average):
    model, optimizer = wrapped(criticality(interval=1, end=6, regrow=0.4))
    how = get_ema_multi_avg_fn(0.9) if average == "ema" else None
    ema = AveragedModel(model, multi_avg_fn=how)
    assert ema.module.optimizers == []

    def after(k):
        ema.update_parameters(model)
        assert_masked(model, optimizer)

    train(model, optimizer, 6, after=after)
    assert ema.module.step == 0  # it counts nothing, it was never attached
    own = snapshot(model.net)
    dirty = [n for n, m in model.masks.items() if ema.module.net.get_submodule(n).weight[~m].any()]
    assert dirty  # masks changed on the way, so the average is not sparse by itself
    model.masks.apply_(ema)
    for n, mask in model.masks.items():
        weight = ema.module.net.get_submodule(n).weight
        assert not weight[~mask].any()
        assert weight[mask].any()
    assert same(own, snapshot(model.net))


def test_masks_apply_to_a_bare_copy():
    model, optimizer = wrapped(magnitude())
    bare = build(seed=9)
    train(model, optimizer, 4)
    model.masks.apply_(bare)
    for n, mask in model.masks.items():
        assert (bare.get_submodule(n).weight != 0).equal(mask)


# ---- finalize ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_finalized_network_is_stock(name):
    net = build()
    classes = {n: type(m) for n, m in net.named_modules()}
    attributes = {n: set(vars(m)) for n, m in net.named_modules()}
    model, optimizer = wrapped(METHODS[name](), "adam", net=net)
    train(model, optimizer, 8)
    masks = model.masks.masks
    done = model.finalize()
    assert done is net
    assert {n: type(m) for n, m in net.named_modules()} == classes
    assert {n: set(vars(m)) for n, m in net.named_modules()} == attributes
    assert is_stock(net)
    for n, mask in masks.items():
        assert not net.get_submodule(n).weight[~mask].any()
    stock = build(seed=5)
    stock.load_state_dict(net.state_dict(), strict=True)
    assert list(net.state_dict()) == list(stock.state_dict())
    functional.reset_net(net)
    functional.reset_net(stock)
    assert net(batch(3)[0]).equal(stock(batch(3)[0]))
    # The optimizer is free again: it moves everything, and nobody counts.
    optimizer.zero_grad()
    loss_of(net, 20).backward()
    grads = {n: net.get_submodule(n).weight.grad for n in masks}
    assert any(grads[n][~mask].any() for n, mask in masks.items())
    optimizer.step()
    assert any(net.get_submodule(n).weight[~mask].any() for n, mask in masks.items())
    assert model.step == 8
    # And it can be wrapped anew.
    PruningWrapper(net, magnitude())


def test_finalize_burns_zeros_in():
    """Also into weights that were written over since the last step."""
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 8)
    model.net.load_state_dict(build().state_dict())
    masks = model.masks.masks
    net = model.finalize()
    for n, mask in masks.items():
        assert (net.get_submodule(n).weight != 0).equal(mask)


def test_finalized_network_computes_the_same():
    net = build(node=lambda: neuron.IFNode(v_threshold=1.5))
    model, optimizer = wrapped(magnitude(), net=net)
    train(model, optimizer, 8)
    model.eval()
    functional.reset_net(model)
    expected = model(batch(1)[0])
    assert expected.abs().sum() > 0
    done = model.finalize()
    functional.reset_net(done)
    assert done(batch(1)[0]).equal(expected)


def test_finalized_wrapper_refuses_further_use():
    model, optimizer = wrapped(magnitude())
    state = model.state_dict()
    model.finalize()
    uses = {
        "forward": lambda: model(batch(0)[0]),
        "attach": lambda: model.attach(optimizer),
        "update_masks": lambda: model.update_masks(),
        "finalize": lambda: model.finalize(),
        "load_state_dict": lambda: model.load_state_dict(state),
        "explain": lambda: model.explain(batch(0)[0]),
        "report": lambda: model.report(batch(0)[0]),
    }
    for use in uses.values():
        with pytest.raises(RuntimeError, match=r"finalize\(\) was called.*PruningWrapper"):
            use()
    again = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match=r"finalize\(\) was called"):
        again(batch(0)[0])


# ---- the host's functions ------------------------------------------------------------------------


def test_reset_net_reaches_the_nodes_at_any_time():
    net = build()
    functional.reset_net(net)  # 2.0.0 remembers now which modules to reset
    functional.set_step_mode(net, "m")
    net(batch(0)[0])
    assert isinstance(net[2].v, torch.Tensor)
    model = PruningWrapper(net, criticality())
    functional.reset_net(model)
    assert [net[i].v for i in (2, 5, 9)] == [0.0] * 3
    loss_of(model, 1)
    counts = [node.activity.count for node in (net[2], net[5], net[9])]
    functional.reset_net(model)
    assert [net[i].v for i in (2, 5, 9)] == [0.0] * 3
    assert [node.activity.count for node in (net[2], net[5], net[9])] == counts == [6] * 3
    done = model.finalize()
    done(batch(0)[0])
    functional.reset_net(done)
    assert [net[i].v for i in (2, 5, 9)] == [0.0] * 3


def test_detach_net():
    model = PruningWrapper(build(), magnitude())
    loss_of(model, 1)
    assert model.net[2].v.requires_grad
    functional.detach_net(model)
    assert not model.net[2].v.requires_grad
    model(batch(2)[0]).sum().backward()  # carried-over state, no second pass through the graph


def test_set_step_mode():
    model = PruningWrapper(build(), magnitude())
    functional.set_step_mode(model, "s")
    x_seq = batch(0)[0]
    functional.reset_net(model)
    single = torch.stack([model(x) for x in x_seq])
    functional.set_step_mode(model, "m")
    functional.reset_net(model)
    assert single.shape == model(x_seq).shape
    assert isinstance(model.net[2], neuron.LIFNode)


def test_device_and_type_moves():
    net = build(node=lambda: neuron.IFNode(v_threshold=1.5))
    model = PruningWrapper(net, criticality()).double()
    assert isinstance(net[2], RecordingIFNode)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.attach(optimizer)
    train(model, optimizer, 3, dtype=torch.float64)
    assert_masked(model, optimizer)
    assert net[0].weight.dtype == torch.float64
    assert model.masks["0"].dtype == torch.bool
