"""What a review found: each of these failed once."""

import copy
import subprocess

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sj_prune import PruningWrapper, methods
from sj_prune.engines import build as engine_build
from sj_prune.engines import choice, torch_engine
from sj_prune.masks import Cubic
from sj_prune.methods.identity import describe
from sj_prune.neurons import Activity
from tests.support.pruning_cases import (
    assert_masked,
    build,
    criticality,
    loss_of,
    magnitude,
    same,
    snapshot,
    train,
    wrapped,
)


def test_manual_update_inside_a_scheduled_window_keeps_its_statistics():
    model, optimizer = wrapped(criticality(interval=1, end=3))
    loss_of(model, 1).backward()
    model.update_masks(0.3)
    optimizer.step()
    assert model.step == 1


def test_recording_block_serves_methods_that_need_nothing():
    model, optimizer = wrapped(magnitude(interval=4, end=8))
    train(model, optimizer, 1)
    with model.recording():
        loss_of(model, 2)
    assert model.net[2].activity.mean("criticality_max").shape == (4,)
    assert not model.net[2].recording


def test_recording_that_a_user_switched_on_stays_on():
    model, optimizer = wrapped(magnitude(interval=4, end=8))
    loss_of(model, 1)
    model.net[2].recording = True
    train(model, optimizer, 2)
    assert model.net[2].recording
    assert model.net[2].activity.count > 0


def test_nothing_is_recorded_after_the_last_update():
    @methods.reads("firing_rate")
    def drop(layer):
        return layer.weight.abs()

    schedule = Cubic(final=0.5, interval=2, end=2)
    model, optimizer = wrapped(methods.Plan(schedule=schedule, drop=drop))
    train(model, optimizer, 3)
    assert not any(node.recording for node in model.nodes.values())


@pytest.mark.parametrize(
    ("amount", "error", "message"),
    [
        ((), TypeError, "missing .* 'fraction'"),
        ((None,), TypeError, "Expected fraction of growth to be a number but got None"),
        ((1.0,), ValueError, r"Expected fraction of growth in \[0, 1\) but got 1\.0"),
    ],
)
def test_growth_without_an_amount_is_refused(amount, error, message):
    with pytest.raises(error, match=message):
        methods.Growth(lambda layer: layer.weight.abs(), *amount)


def test_statistics_follow_the_network_on_loading():
    model = PruningWrapper(build(), criticality())
    loss_of(model, 1)
    state = model.state_dict()
    for activity in state["_extra_state"]["statistics"].values():
        activity["sums"] = activity["sums"].to("meta")
    other = PruningWrapper(build(), criticality())
    with pytest.raises(ValueError, match="meta"):
        other.load_state_dict(state)  # meta has no data to bring over; any other device has


def test_dense_weights_loaded_into_the_wrapper_are_masked_at_once():
    model, optimizer = wrapped(magnitude(interval=1, end=1))
    train(model, optimizer, 2)
    dense = {f"net.{key}": value for key, value in build(seed=3).state_dict().items()}
    model.load_state_dict(dense, strict=False)
    assert_masked(model, optimizer)


def test_assigning_parameters_under_an_attached_optimizer_is_refused():
    model, _ = wrapped(magnitude())
    before = snapshot(model.net)
    with pytest.raises(ValueError, match="assign=False"):
        model.load_state_dict(model.state_dict(), assign=True)
    assert same(before, snapshot(model.net))


@pytest.mark.parametrize(
    ("key", "value"),
    [("history", [{"a": 1}]), ("masks", None), ("step", "many"), ("method_state", {"x": {}})],
)
def test_damaged_checkpoint_changes_nothing(key, value):
    model, optimizer = wrapped(magnitude(interval=1, end=2))
    train(model, optimizer, 2)
    state = model.state_dict()
    other = PruningWrapper(build(seed=5), magnitude(interval=1, end=2))
    before = snapshot(other.net)
    state["_extra_state"] = {**state["_extra_state"], "step": 99, key: value}
    with pytest.raises(ValueError, match="damaged|not pruned here"):
        other.load_state_dict(state)
    assert other.step == 0
    assert same(before, snapshot(other.net))


def test_lbfgs_sees_masked_weights_at_every_evaluation():
    model = PruningWrapper(build(), magnitude(interval=1, end=1))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    model.attach(optimizer)
    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append(
            sum(int((model.masks.weight(n)[~m] != 0).sum()) for n, m in model.masks.items())
        )
        loss = loss_of(model, 1)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert model.sparsity()["total"] > 0.5
    assert not any(seen)


def test_reentrant_checkpoint_is_named(caplog):
    net = build()
    model = PruningWrapper(net, criticality())

    class Through(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return self.inner[7:](checkpoint(self.inner[:7], x, use_reentrant=True))

    model = PruningWrapper(Through(), criticality())
    loss_of(model, 1)
    assert "use_reentrant" in str(model.explain())


def test_finalized_wrapper_refuses_states_and_blocks():
    model = PruningWrapper(build(), magnitude())
    model.finalize()
    for block in (model.recording, model.dense_gradients):
        with pytest.raises(RuntimeError, match="finalize"), block():
            pass
    with pytest.raises(RuntimeError, match="finalize"):
        model.state_dict()


def test_numpy_numbers_are_numbers():
    method = methods.Magnitude(sparsity=np.float32(0.5), interval=np.int64(2), end=np.int64(4))
    assert method.plan().schedule.due(4)
    plain = methods.Magnitude(sparsity=0.5, interval=2, end=4)
    assert describe(method) == describe(plain)


@pytest.mark.parametrize("skip", [None, 3])
def test_skip_has_to_be_a_sequence(skip):
    with pytest.raises(TypeError, match="skip"):
        PruningWrapper(build(), magnitude(), skip=skip)


def test_layer_of_the_name_total_is_refused():
    net = torch.nn.Sequential()
    net.total = torch.nn.Linear(4, 4)
    with pytest.raises(ValueError, match="'total'"):
        PruningWrapper(net, magnitude())


def test_masks_apply_to_modules_only_and_through_compiled_ones():
    model, optimizer = wrapped(magnitude(interval=1, end=1))
    train(model, optimizer, 1)
    with pytest.raises(TypeError, match="NoneType"):
        model.masks.apply_(None)
    other = copy.deepcopy(model.net)
    with torch.no_grad():
        other[0].weight.fill_(1.0)
    model.masks.apply_(torch.compile(other))
    assert bool((other[0].weight[~model.masks["0"]] == 0).all())


def test_compiler_that_does_not_work_is_as_none(monkeypatch, tmp_path):
    for cached in (engine_build.compiler, engine_build.problem):
        cached.cache_clear()
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "auto")
    monkeypatch.setenv("SJ_PRUNE_CACHE", str(tmp_path))
    try:
        assert subprocess.run(["false"], check=False).returncode
        assert choice.choose(torch.device("cpu"), torch.float32) is torch_engine
        assert "does not work here" in engine_build.problem()
    finally:
        for cached in (engine_build.compiler, engine_build.problem):
            cached.cache_clear()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_network_is_told_where_it_began(value):
    model, _ = wrapped(criticality(interval=1, end=3))
    loss_of(model, 0).backward()  # traced while all is well
    model.update_masks(0.1)
    first = next(iter(model.nodes))
    layers = list(model.masks)
    with torch.no_grad():  # of both: the one that the forward meets first is named
        for name in layers[:2]:
            model.net.get_submodule(name).weight.fill_(value)
    before = {name: mask.clone() for name, mask in model.masks.items()}
    with model.recording():
        loss_of(model, 1).backward()
        with pytest.raises(RuntimeError, match=f"{first}'.*nan or inf.*has diverged") as error:
            model.update_masks(0.3)
    assert "run a forward" not in str(error.value)
    assert same(dict(model.masks.items()), before)


def test_lost_samples_are_counted_until_cleared():
    for value in (float("nan"), float("inf")):
        activity = Activity(["abs_charge"])
        activity.update(torch.tensor([1.0, value, 2.0]).view(3, 1, 1))
        assert (activity.count, activity.lost) == (2, 1)
        activity.clear()
        assert (activity.count, activity.lost) == (0, 0)
