"""tickets(): against the rounds written again on a bare network, and killed in each of them."""

import copy
import random

import numpy as np
import pytest
import torch

from sj_prune import EarlyBird, tickets
from tests.support.pruning_cases import OPTIMIZERS, build, loss_of, same, snapshot
from tests.support.reference import Bare, top_of_all

BATCHES, EPOCHS, FRACTION = 2, 3, 0.3
LAYERS = ("0", "3", "8", "10")


class KilledError(Exception):
    """Somebody has killed the process."""


def trainer(optimizer="sgd_momentum", stop=None, seen=None, noise=False, steps=None, seed=None):
    """Return a user's function: two batches an epoch, a rate that falls; it ends at step `stop`.

    With a seed all trainings draw from one generator.
    """
    steps = [0] if steps is None else steps
    lasting = None if seed is None else torch.Generator().manual_seed(seed)

    def train(training):
        made = OPTIMIZERS[optimizer](training.model.parameters())
        for group in made.param_groups:
            group["lr"] *= training.rate
        schedule = torch.optim.lr_scheduler.StepLR(made, 1, gamma=0.5)
        if seen is not None:
            seen.append(training)
        generator = torch.Generator() if lasting is None else lasting
        for epoch in training.run(made, schedule, generator):
            for k in range(BATCHES):
                if stop is not None and steps[0] == stop:
                    raise KilledError
                steps[0] += 1
                made.zero_grad()
                loss = loss_of(training.model, 10 * epoch + k, torch.float64)
                if noise:
                    loss = loss * (
                        torch.rand((), generator=generator)
                        + torch.rand(())
                        + random.random()
                        + np.random.rand()
                    )
                loss.backward()
                made.step()
            schedule.step()
        return float(loss_of(training.model, 99, torch.float64).detach())

    return train


def bare_epoch(bare, epoch, factor=1.0):
    for k in range(BATCHES):
        for group in bare.optimizer.param_groups:
            group["lr"] = bare.optimizer.defaults["lr"] * factor * 0.5**epoch
        bare.backward(10 * epoch + k)
        bare.step()


def bare_result(bare):
    """Run the forward that `trainer` returns the loss of: it moves running statistics too."""
    loss_of(bare.net, 99, torch.float64)


def parameters(bare):
    return {n: p.detach().clone() for n, p in bare.net.named_parameters()}


def rewind(bare, point, optimizer):
    with torch.no_grad():
        for n, p in bare.net.named_parameters():
            p.copy_(point[n])
    bare.optimizer = OPTIMIZERS[optimizer](bare.net.parameters())
    bare.hold()


def assert_ends_as(found, bare):
    theirs = dict(bare.net.named_parameters())
    theirs |= dict(bare.net.named_buffers())  # running statistics go on from training to training
    for name, value in (*found.net.named_parameters(), *found.net.named_buffers()):
        torch.testing.assert_close(value, theirs[name], rtol=1e-12, atol=1e-12)
    for n, mask in bare.masks.items():
        assert (found.net.get_submodule(n).weight != 0).equal(mask)


@pytest.mark.parametrize("rewind_to", [None, 1])
@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam"])
def test_iterative_magnitude(optimizer, rewind_to):
    seen, rounds = [], 4
    found = tickets(
        build().double(),
        trainer(optimizer, seen=seen),
        epochs=EPOCHS,
        rounds=rounds,
        fraction=FRACTION,
        rewind_to=rewind_to,
        progress=False,
    )
    bare = Bare(optimizer)
    point = parameters(bare)
    left = 760
    for k in range(rounds):
        if k:
            remaining = {n: w.masked_fill(~bare.masks[n], -1.0) for n, w in bare.size().items()}
            left -= int(FRACTION * left)
            bare.masks = top_of_all(remaining, left)
            rewind(bare, point, optimizer)
        for epoch in range(EPOCHS - ((rewind_to or 0) if k else 0)):
            bare_epoch(bare, epoch)
            if k == 0 and epoch == rewind_to:
                point = parameters(bare)
        bare_result(bare)
    assert_ends_as(found, bare)
    assert [t.number for t in seen] == [0, 1, 2, 3]
    assert [r.epochs for r in found.rounds] == [3] + [3 - (rewind_to or 0)] * 3
    assert found.rounds[-1].sparsity == 1 - left / 760
    assert found.rounds[-1].result is not None
    assert str(found).count("\n") == rounds + 1


@pytest.mark.parametrize("time_steps", [None, 1])
def test_early_bird(time_steps):
    """Twice the rate, masks of every epoch's start in a queue, initial weights, the rate itself."""
    seen, bird = [], EarlyBird(sparsity=0.6, distance=0.02, window=3)
    found = tickets(
        build().double(),
        trainer(seen=seen),
        epochs=9,
        early_bird=bird,
        search_time_steps=time_steps,
        progress=False,
    )
    bare, queue = Bare("sgd_momentum"), []
    point = parameters(bare)
    for epoch in range(9):
        queue = [*queue, top_of_all(bare.size(), round(0.4 * 760))][-3:]
        away = [sum(int((old[n] != queue[-1][n]).sum()) for n in LAYERS) for old in queue[:-1]]
        if len(queue) == 3 and max(away) / 760 < 0.02:
            break
        bare_epoch(bare, epoch, factor=2.0)
    bare_result(bare)
    assert 2 < epoch < 8
    assert [r.epochs for r in found.rounds] == [epoch, 9]
    assert [(t.rate, t.time_steps) for t in seen] == [(2.0, time_steps), (1.0, None)]
    bare.masks = queue[-1]
    rewind(bare, point, "sgd_momentum")
    for epoch in range(9):
        bare_epoch(bare, epoch)
    bare_result(bare)
    assert_ends_as(found, bare)
    assert [r.sparsity for r in found.rounds] == [0.0, 1 - round(0.4 * 760) / 760]


def test_masks_that_never_stand_still_are_the_last_ones():
    bird = EarlyBird(sparsity=0.6, distance=1e-9, window=2)
    found = tickets(build().double(), trainer(), epochs=3, early_bird=bird, progress=False)
    bare = Bare("sgd_momentum")
    for epoch in range(2):
        bare_epoch(bare, epoch, factor=2.0)
    wanted = top_of_all(bare.size(), round(0.4 * 760))
    for n, mask in wanted.items():
        assert (found.net.get_submodule(n).weight != 0).equal(mask)


def test_early_time_trains_the_last_masks_once_more_with_all_steps():
    seen = []
    found = tickets(
        build().double(),
        trainer(seen=seen),
        epochs=2,
        rounds=3,
        fraction=0.5,
        search_time_steps=2,
        progress=False,
    )
    assert [t.time_steps for t in seen] == [2, 2, 2, None]
    assert [r.training for r in found.rounds] == ["dense", "search", "search", "ticket"]
    assert found.rounds[2].sparsity == found.rounds[3].sparsity == 0.75


SEARCHES = {
    "iterative": {"epochs": 3, "rounds": 3, "fraction": 0.4, "rewind_to": 0},
    "early bird": {"epochs": 4, "early_bird": EarlyBird(sparsity=0.5, distance=1e-9, window=2)},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_killed_in_every_round_it_goes_on_to_the_same_bits(name, tmp_path):
    """Each process trains one more epoch than was saved and is killed in the next one."""

    def run(seed, path=None, stop=None):
        net = build(seed).double()
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        before, train = snapshot(net), trainer("adam", noise=True, stop=stop)
        try:
            return tickets(net, train, checkpoint=path, progress=False, **SEARCHES[name])
        except KilledError:
            assert same(before, snapshot(net))
            return None

    whole, path = run(0), tmp_path / "tickets.pt"
    runs = [run(0, path, stop=3)]
    while runs[-1] is None:
        runs.append(run(len(runs), path, stop=3))
    found = runs[-1]
    assert len(runs) > 5
    assert same(snapshot(whole.net), snapshot(found.net))
    assert whole.rounds == found.rounds
    again = tickets(
        build(3).double(),
        trainer(stop=0),
        checkpoint=path,
        progress=False,
        **SEARCHES[name],
    )
    assert same(snapshot(again.net), snapshot(found.net))  # done: nothing trains any more


def test_a_generator_that_all_trainings_share_goes_on_in_the_first_epoch_of_a_round(tmp_path):
    """A new process seeds it again, and has to find it where the first round left it."""

    def run(stop=None, **given):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        train = trainer(noise=True, seed=1, stop=stop)
        return tickets(build().double(), train, epochs=2, rounds=2, progress=False, **given)

    with pytest.raises(KilledError):
        run(stop=2 * BATCHES, checkpoint=tmp_path / "t.pt")
    whole, found = run(), run(checkpoint=tmp_path / "t.pt")
    assert same(snapshot(whole.net), snapshot(found.net))


def test_a_checkpoint_that_cannot_be_written_is_said_before_anything_trains(tmp_path):
    with pytest.raises(FileNotFoundError):
        tickets(build(), trainer(stop=0), epochs=1, checkpoint=tmp_path / "none" / "t.pt")


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "Expected epochs of at least 1"),
        ({"rounds": 0}, ValueError, "Expected rounds of at least 1"),
        ({"fraction": 0}, ValueError, r"Expected fraction in \(0, 1\)"),
        ({"rewind_to": 2}, ValueError, r"Expected rewind_to in \[0, 1\]"),
        ({"early_bird": 0.9}, TypeError, r"Expected early_bird to be EarlyBird\(...\)"),
        ({"search_time_steps": 0}, ValueError, "Expected search_time_steps of at least 1"),
        ({"train": 3}, TypeError, "Expected train to be a function of a Training"),
        ({"train": lambda training: None}, ValueError, "at least one of the epochs"),
        ({"train": lambda training: next(training.run())}, TypeError, "Expected the optimizer in"),
        ({"progress": 1}, TypeError, "Expected progress to be True or False"),
    ],
)
def test_wrong_arguments(wrong, error, message):
    net = build()
    before, kinds = snapshot(net), [type(m) for m in net.modules()]
    given = {"train": trainer(), "epochs": 2, "progress": False, **wrong}
    with pytest.raises(error, match=message):
        tickets(net, given.pop("train"), **given)
    assert same(before, snapshot(net))
    assert kinds == [type(m) for m in net.modules()]


def test_a_checkpoint_of_another_search_is_refused(tmp_path):
    path = tmp_path / "tickets.pt"
    given = {"epochs": 1, "rounds": 2, "progress": False, "checkpoint": path}
    tickets(build().double(), trainer(), **given)
    with pytest.raises(ValueError, match="Expected a checkpoint of this search"):
        tickets(build().double(), trainer(), **{**given, "rounds": 3})


def test_a_training_that_ends_before_the_rewind_point_is_refused():
    def train(training):
        optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1)
        for epoch in training.run(optimizer):
            if epoch == 1:
                break

    with pytest.raises(ValueError, match="at least 2, the rewind point, of the epochs"):
        tickets(build(), train, epochs=3, rewind_to=1, progress=False)


def test_what_cannot_be_saved_is_refused(tmp_path):
    def train(training):
        optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1)
        for _ in training.run(optimizer, copy):
            pass

    with pytest.raises(TypeError, match="Expected optimizers, schedules and torch generators"):
        tickets(build(), train, epochs=1, checkpoint=tmp_path / "t.pt", progress=False)


def test_a_second_loop_in_one_training_is_refused():
    def train(training):
        for part in training.model.net[:4], training.model.net[4:]:  # one after the other
            optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
            for _ in training.run(optimizer):
                pass

    net = build()
    before = snapshot(net)
    with pytest.raises(RuntimeError, match=r"called it again in round 0: give it all optimizers"):
        tickets(net, train, epochs=2, rounds=2, progress=False)
    assert same(before, snapshot(net))
