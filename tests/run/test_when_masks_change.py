"""When updates happen, and updates by hand."""

import copy
import logging

import pytest
import torch
from spikingjelly.activation_based import functional

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import (
    N,
    T,
    assert_masked,
    batch,
    build,
    criticality,
    frozen,
    loss_of,
    magnitude,
    rigl,
    same,
    same_state,
    snapshot,
    train,
    wrapped,
)


@pytest.mark.parametrize(
    ("begin", "interval", "end"),
    [(0, 1, 3), (0, 2, 9), (0, 5, 5), (3, 2, 10), (4, 3, 7), (4, 3, 9), (0, 7, 13)],
)
def test_update_runs_inside_step_calls_of_the_schedule(begin, interval, end):
    # Random changes its masks at every update.
    method = methods.Random(sparsity=0.8, begin=begin, interval=interval, end=end)
    model, optimizer = wrapped(method)
    masks, changed = model.masks.masks, []

    def after(k):
        nonlocal masks
        assert model.step == k
        if not same(masks, model.masks.masks):
            changed.append(k)
        masks = model.masks.masks

    train(model, optimizer, 16, after=after)
    due = [k for k in range(1, 17) if begin < k <= end and (k - begin) % interval == 0]
    assert changed == due
    assert [record.step for record in model.history] == due
    assert model.sparsity()["total"] == pytest.approx(0.8)


@pytest.mark.parametrize("make", [methods.SET, methods.RigL])
def test_constant_sparsity_starts_when_wrapped(make):
    model = PruningWrapper(build(), make(sparsity=0.7, interval=2, end=8))
    assert model.sparsity()["total"] == pytest.approx(0.7)
    assert model.step == 0
    assert_masked(model)


def test_one_line_is_logged_an_update(caplog):
    model, optimizer = wrapped(magnitude(interval=2, end=4))
    with caplog.at_level(logging.INFO, logger="sj_prune"):
        train(model, optimizer, 5)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[1].startswith("step 4: Magnitude, sparsity 0.8000 (target 0.8000), kept 152")


# ---- by hand -------------------------------------------------------------------------------------


def test_update_before_attaching():
    model = PruningWrapper(build(), magnitude())
    model.update_masks()
    assert model.sparsity()["total"] == pytest.approx(0.8)
    assert model.step == 0
    assert_masked(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.attach(optimizer)
    masks = model.masks.masks
    train(model, optimizer, 1, after=lambda k: assert_masked(model, optimizer))
    assert same(masks, model.masks.masks)


def test_update_leaves_the_counter_alone():
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 3)
    model.update_masks(0.5)
    assert model.step == 3
    assert model.sparsity()["total"] == pytest.approx(0.5)
    assert_masked(model, optimizer)
    assert (model.history[-1].step, model.history[-1].target) == (3, 0.5)


def test_manual_update_ahead_of_the_schedule():
    """The scheduled updates go on from there; what is gone does not come back without growth."""
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 1)
    model.update_masks(0.75)
    kept = []
    train(model, optimizer, 8, start=2, after=lambda k: kept.append(model.sparsity()["total"]))
    # The schedule asks for 0.4625, 0.7, 0.7875 and 0.8 at steps 2, 4, 6 and 8.
    assert kept[:4] == [0.75] * 4
    assert kept[4:] == pytest.approx([0.7875, 0.7875, 0.8, 0.8], abs=1e-3)


def test_less_sparse_than_now_needs_growth():
    model, optimizer = wrapped(magnitude())
    model.update_masks(0.8)
    before, state = snapshot(model.net), frozen(optimizer)
    with pytest.raises(ValueError, match="Expected at least 380 units alive .* only 152 are"):
        model.update_masks(0.5)
    assert same(before, snapshot(model.net))
    assert same_state(state, frozen(optimizer))
    grower, _ = wrapped(methods.SET(sparsity=0.8, interval=2, end=8))
    grower.update_masks(0.5)
    assert grower.sparsity()["total"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("sparsity", "error", "message"),
    [
        ("0.5", TypeError, "Expected sparsity to be a number but got '0.5'"),
        (1.0, ValueError, r"Expected sparsity in \[0, 1\) but got 1.0"),
        (-0.5, ValueError, r"Expected sparsity in \[0, 1\) but got -0.5"),
        (0.999, ValueError, r"sparsity of at most 0\.994737, .* 4 layers .* but got 0\.999"),
    ],
)
def test_wrong_sparsity_changes_nothing(sparsity, error, message):
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 3)
    before, state = snapshot(model.net), frozen(optimizer)
    masks = model.masks.masks
    with pytest.raises(error, match=message):
        model.update_masks(sparsity)
    assert same(before, snapshot(model.net))
    assert same(masks, model.masks.masks)
    assert same_state(state, frozen(optimizer))


def test_reachable_maximum_can_be_reached():
    model = PruningWrapper(build(), magnitude())
    model.update_masks(1 - 4 / 760)
    assert model.masks.kept() == {"0": 1, "3": 1, "8": 1, "10": 1}


# ---- what an update needs ------------------------------------------------------------------------


@pytest.mark.parametrize("example", [True, False])
def test_update_without_statistics_names_the_node(example):
    example_input = batch(0)[0] if example else None
    model = PruningWrapper(build(), criticality(), example_input=example_input)
    with pytest.raises(RuntimeError, match="Expected statistics .*neuron layers? .*'2'"):
        model.update_masks()
    assert model.sparsity()["total"] == 0
    loss_of(model, 1)
    model.update_masks()
    assert model.sparsity()["total"] == pytest.approx(0.8)
    with pytest.raises(RuntimeError, match="neuron layer '2'"):
        model.update_masks()  # what was recorded is used up


def test_evaluation_does_not_count_as_statistics():
    model = PruningWrapper(build(), criticality())
    loss_of(model.eval(), 1)
    with pytest.raises(RuntimeError, match="neuron layer '2'.* train mode"):
        model.update_masks()


def test_step_outside_the_window_records_nothing():
    model, optimizer = wrapped(criticality(interval=4, end=8))
    train(model, optimizer, 1)
    loss_of(model, 2)
    with pytest.raises(RuntimeError, match=r"criticality_max.*neuron layer '2'"):
        model.update_masks()


def test_failed_update_inside_a_step_changes_nothing():
    """A NaN in a weight is found before any mask is touched, and the layer is named."""
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 1)
    with torch.no_grad():
        model.net[8].weight[0, 0] = float("nan")
    loss_of(model, 2).backward()
    before = snapshot(model.net)
    with pytest.raises(ValueError, match="drop scores for layer '8' but found NaN"):
        optimizer.step()
    after = snapshot(model.net)
    assert all(torch.equal(before[k].nan_to_num(7), after[k].nan_to_num(7)) for k in before)
    assert all(mask.all() for mask in model.masks.values())
    assert model.step == 1


def test_nan_gradient_names_the_layer():
    model, optimizer = wrapped(rigl(interval=1))
    loss_of(model, 1).backward()
    model.net[3].weight.grad[0, 0, 0, 0] = float("inf")
    masks = model.masks.masks
    with pytest.raises(ValueError, match="growth scores for layer '3' but found NaN or inf"):
        optimizer.step()
    assert same(masks, model.masks.masks)


# ---- attaching -----------------------------------------------------------------------------------


def test_attaching_twice_changes_nothing():
    model, optimizer = wrapped(magnitude())
    assert model.attach(optimizer) is model
    assert model.optimizers == [optimizer]
    train(model, optimizer, 3)
    assert model.step == 3


def test_attaching_masks_the_slots_of_a_used_optimizer():
    model = PruningWrapper(build(), rigl())
    optimizer = torch.optim.Adam(model.parameters())
    with model.dense_gradients():
        loss_of(model, 1).backward()
    optimizer.step()
    model.attach(optimizer)
    assert_masked(model, optimizer)
    assert model.step == 0


@pytest.mark.parametrize("wrong", ["adam", None, torch.optim.SGD, build()])
def test_attaching_something_else(wrong):
    model, optimizer = wrapped(magnitude())
    with pytest.raises(TypeError, match=r"Expected a torch\.optim\.Optimizer to attach but got"):
        model.attach(wrong)
    assert model.optimizers == [optimizer]


class Around(torch.optim.Optimizer):
    """A Lookahead as public ones are written: it shares the groups and never calls super()."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state


def test_attaching_one_that_is_not_initialized():
    model, optimizer = wrapped(magnitude())
    with pytest.raises(TypeError, match=r"Around never called super\(\).__init__\(\): attach the"):
        model.attach(Around(optimizer))
    assert model.optimizers == [optimizer]


def test_attaching_a_foreign_optimizer():
    model, _ = wrapped(rigl())
    other = build()
    foreign = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    train(other, foreign, 1)
    before, state = snapshot(other), frozen(foreign)
    with pytest.raises(ValueError, match="holds none of them"):
        model.attach(foreign)
    assert same(before, snapshot(other))
    assert same_state(state, frozen(foreign))
    assert len(model.optimizers) == 1


def test_optimizer_without_masked_weights_never_counts():
    model = PruningWrapper(build(), magnitude())
    norms = torch.optim.SGD([p for p in model.parameters() if p.ndim == 1], lr=0.1)
    model.attach(norms)
    train(model, norms, 4)
    assert (model.step, model.history) == (0, [])
    weights = torch.optim.SGD([p for p in model.parameters() if p.ndim > 1], lr=0.1)
    model.attach(weights)
    train(model, [norms, weights], 4)
    assert model.step == 4
    assert [record.step for record in model.history] == [2, 4]


def test_statistics_for_a_manual_update_between_scheduled_ones():
    """Recorded afresh: as an unattached twin that saw the same batch alone."""
    model, optimizer = wrapped(criticality(interval=4, end=8))
    train(model, optimizer, 1)
    twin = copy.deepcopy(model)
    with model.recording():
        loss_of(model, 2)
    loss_of(model, 3)  # after the block: not counted
    model.update_masks(0.5)
    loss_of(twin, 2)
    twin.update_masks(0.5)
    assert same(model.masks.masks, twin.masks.masks)
    assert model.step == 1


def test_a_batch_that_overflowed_is_not_counted():
    """As under AMP, where the step of such a batch is skipped and training goes on."""
    model = PruningWrapper(build(), criticality())
    twin = copy.deepcopy(model)
    loss_of(model, 2)
    loss_of(twin, 2)
    functional.reset_net(model)
    model(torch.full((T, N, 2, 6, 6), float("inf")))
    # The layer that overflowed; those behind it saw no spikes, which is finite.
    mine, theirs = (m.net[2].activity.mean("criticality_max") for m in (model, twin))
    assert torch.equal(mine, theirs)
    model.update_masks(0.5)
    assert model.sparsity()["total"] == 0.5


def test_neurons_that_tell_nothing_are_said_at_the_first_trace(caplog):
    with caplog.at_level("WARNING", logger="sj_prune"):
        PruningWrapper(build(spiking=False), criticality(), example_input=batch(1)[0])
    assert "Criticality reads neurons but none that records" in caplog.text
