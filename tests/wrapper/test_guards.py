"""What a review found: each of these failed once."""

import copy
import subprocess
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sj_prune import PruningWrapper, methods
from sj_prune.engines import build as engine_build
from sj_prune.engines import choice, torch_engine
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
    @dataclass(frozen=True, kw_only=True)
    class Always(methods.ScheduledMethod):
        needs = frozenset({"firing_rate"})

        def drop_score(self, view):
            return view.weight.abs()

    model, optimizer = wrapped(Always(sparsity=0.5, interval=2, end=2))
    train(model, optimizer, 3)
    assert not any(node.recording for node in model.nodes.values())


def test_growth_without_an_amount_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Grows(methods.Magnitude):
        def grow_score(self, view):
            return view.weight.abs()

    with pytest.raises(ValueError, match="Grows with a grow_score .* regrow_schedule is None"):
        PruningWrapper(build(), Grows(sparsity=0.5, interval=1, end=1))


def test_statistics_follow_the_network_on_loading():
    model = PruningWrapper(build(), criticality())
    loss_of(model, 1)
    state = model.state_dict()
    for activity in state["_extra_state"]["statistics"].values():
        activity["sums"] = activity["sums"].to("meta")
    other = PruningWrapper(build(), criticality())
    with pytest.raises(NotImplementedError, match="meta"):
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
    for use in (model.state_dict, model.recording().__enter__, model.dense_gradients().__enter__):
        with pytest.raises(RuntimeError, match="finalize"):
            use()


def test_numpy_numbers_are_numbers():
    method = methods.Magnitude(sparsity=np.float32(0.5), interval=np.int64(2), end=np.int64(4))
    assert method.schedule.due(4)
    plain = methods.Magnitude(sparsity=0.5, interval=2, end=4)
    assert method.describe() == plain.describe()


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
