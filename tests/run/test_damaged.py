"""A damaged checkpoint is refused by name, nothing changed, or trains on as the whole one does."""

import copy
import io
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from sj_prune import PruningWrapper, methods
from sj_prune.masks import Constant
from sj_prune.methods import Growth, Plan
from sj_prune.methods.parts import Reads, magnitude, noise
from tests.support.channel_cases import CHANNEL_METHODS, channel_net
from tests.support.foreign_neurons import Bare
from tests.support.pruning_cases import OPTIMIZERS, build, frozen, same_state, snapshot, train

TIMING = {"interval": 4, "end": 12}
GRACE = Plan(
    schedule=Constant(final=0.7, interval=4, begin=0, end=12),
    drop=magnitude,
    grow=Growth(noise, 0.3, grace=1),
)
CASES = {
    "Magnitude": (build, lambda: methods.Magnitude(sparsity=0.8, **TIMING)),
    "Criticality": (
        build,
        lambda: methods.Criticality(sparsity=0.8, regrow=0.4, batches=3, **TIMING),
    ),
    "grace": (build, lambda: GRACE),
    "RigL": (build, lambda: methods.RigL(sparsity=0.7, regrow=0.4, **TIMING)),
    "GradR": (build, lambda: methods.GradR(sparsity=0.9, alpha=0.05, **TIMING)),
    "SCA": (channel_net, CHANNEL_METHODS["SCA"].make),
    "TaylorChannels": (channel_net, CHANNEL_METHODS["TaylorChannels-cubic"].make),
    "GReg": (channel_net, CHANNEL_METHODS["GReg-2"].make),
}
POSITION, STEPS = 6, 3  # after one update at least, in the middle of a window; another one follows


class Run:
    """A method's checkpoint, how training goes on from it, and who is to load it."""

    def __init__(self, name):
        self.net, self.method = CASES[name]
        model, optimizer = self.fresh()
        train(model, optimizer, POSITION)
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        self.saved = file.getvalue()
        self.receivers = {trained: self.receiver(trained) for trained in (False, True)}
        self.before = {trained: everything(*r) for trained, r in self.receivers.items()}
        model, optimizer = self.fresh(seed=5)
        model.load_state_dict(self.states()[0])
        self.expected = self.after(model, optimizer)

    def fresh(self, seed=0):
        model = PruningWrapper(self.net(seed=seed), self.method())
        optimizer = OPTIMIZERS["sgd_momentum"](model.parameters())
        return model.attach(optimizer), optimizer

    def receiver(self, trained):
        found = self.fresh(seed=3)
        train(*found, 1 if trained else 0)
        return found

    def states(self):
        return torch.load(io.BytesIO(self.saved), weights_only=True)

    def after(self, model, optimizer):
        optimizer.load_state_dict(self.states()[1])
        train(model, optimizer, STEPS, start=POSITION + 1)
        return [model.masks.masks, snapshot(model.net), frozen(optimizer)["state"]]

    def load(self, state, trained):
        """Load into a wrapper that has trained, or not; return what it was refused with, if so."""
        model, optimizer = self.receivers[trained]
        try:
            model.load_state_dict(state)
        except ValueError as error:
            refused = str(error)
        else:
            refused = None
        if refused is not None:
            assert same_state(self.before[trained], everything(model, optimizer)), refused
            return refused
        assert same_state(self.expected, self.after(model, optimizer))
        self.receivers[trained] = self.receiver(trained)
        return None


def everything(model, optimizer):
    run = model.session.run
    kept = [run.memory, run.network_memory, run.previous, run.step, run.seed, run.draws]
    statistics = [node.activity.state_dict() for node in model.nodes.values()]
    history = [record.to_dict() for record in run.history]
    parts = [snapshot(model.net), run.masks.state_dict(), run.masks.aside(), statistics]
    return copy.deepcopy([*kept, *parts, history, frozen(optimizer)["state"]])


def places(value, path=()):
    """Yield the paths to all that a nested state holds."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        yield (*path, key)
        if isinstance(part, (dict, list)):
            yield from places(part, (*path, key))


def other_values(value, rng):
    """Return damaged forms of a value, of which each is to be noticed or to do no harm."""
    found = [None, "x", -5, 2.7, [1], {"x": 1}, torch.zeros(2, 1, 7), float("nan")]
    if isinstance(value, torch.Tensor):
        found += [value.new_zeros((3, *value.shape)), value[None], value.flatten()[:-1]]
        found += [value.tolist()]
        if value.is_floating_point():
            found += [value.double(), value.long(), torch.full_like(value, float("nan"))]
        if value.dtype == torch.bool:
            found += [torch.zeros_like(value), ~value]
    if type(value) is int:
        found += [-value - 1, value + 0.5, value + 50, float(value), torch.tensor(value)]
    if isinstance(value, str):
        found += [value + "x", ""]
    if isinstance(value, (dict, list)):
        found += [type(value)(), copy.deepcopy(value) if rng.random() < 0.1 else 7]
    return found


def damage(state, rng):
    """Damage a state somewhere, each part of it as often; return what was done and where."""
    extra = rng.random() < 0.85
    paths = [p for p in places(state) if (p[0] == "_extra_state") == extra]
    part = rng.choice(sorted({p[:2] for p in paths}))
    path = rng.choice([p for p in paths if p[:2] == part])
    owner, last = state, path[-1]
    for key in path[:-1]:
        owner = owner[key]
    if rng.random() < 0.25:
        del owner[last]
        return "dropped", path
    if isinstance(owner, dict) and rng.random() < 0.1:
        owner[f"{last}x"] = owner.pop(last)
        return "renamed", path
    owner[last] = rng.choice(other_values(owner[last], rng))
    if (last == "seed" and type(owner[last]) is int) or last == "chosen":
        owner[last] = "x"  # others would be as good
    return "replaced", path, owner[last]


@pytest.fixture(scope="module")
def runs():
    return {}


def fuzz(runs, name, number, seed=0):
    run, rng, refused = runs.setdefault(name, Run(name)), random.Random(f"{name} {seed}"), 0
    for _ in range(number):
        state = run.states()[0]
        done = damage(state, rng)
        message = run.load(state, rng.random() < 0.5)
        refused += message is not None
        if message is not None:  # mask or statistic of a name
            assert any(str(key).rstrip("s") in message for key in done[1]), (done, message)
    return refused


@pytest.mark.parametrize("name", CASES)
def test_ten_of_each_method(runs, name):
    assert fuzz(runs, name, 10) >= 5, "most damage shows"


def test_all_masks_are_gone(runs):
    run = runs.setdefault("SCA", Run("SCA"))
    for trained in (False, True):
        state = run.states()[0]
        assert state["_extra_state"]["history"]
        state["_extra_state"]["masks"] = {}
        assert "_extra_state.masks" in (run.load(state, trained) or "")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_three_hundred(runs, name):
    fuzz(runs, name, 300 // len(CASES) + 1, seed=1)


# ---- whole checkpoints are not refused -----------------------------------------------------------


def by_rate(layer):
    """Score nothing but layers that feed neurons."""
    return None if layer.activity is None else layer.weight.abs()


by_rate.reads = Reads(frozenset({"firing_rate"}))


def test_grace_beside_a_layer_that_nothing_scores():
    plan = replace(GRACE, drop=by_rate)
    model = PruningWrapper(build(), plan)
    train(model.attach(OPTIMIZERS["sgd"](model.parameters())), model.optimizers[0], POSITION)
    assert "10" in model.masks.uncounted
    other = PruningWrapper(build(seed=3), plan)
    other.load_state_dict(model.state_dict())
    assert same_state(other.masks.masks, model.masks.masks)


def by_potential(layer):
    return None if layer.activity is None else layer.weight.abs()


by_potential.reads = Reads(frozenset({"abs_potential"}))


@pytest.mark.parametrize("position", [3, 4, 5])
def test_a_neuron_without_a_statistic(position):
    plan = replace(GRACE, drop=by_potential, grow=None)

    def net(seed=0):
        made = build(seed=seed)
        made[2] = Bare()
        return made

    model = PruningWrapper(net(), plan)
    train(model.attach(OPTIMIZERS["sgd"](model.parameters())), model.optimizers[0], position)
    other = PruningWrapper(net(seed=3), plan)
    other.load_state_dict(model.state_dict())
    train(other.attach(OPTIMIZERS["sgd"](other.parameters())), other.optimizers[0], 5, start=6)
    assert len(other.history) == 2


def test_numbers_of_numpy_are_plain_in_a_checkpoint():
    method = methods.Magnitude(sparsity=np.float64(0.8), **TIMING)
    model = PruningWrapper(build(), method)
    train(model.attach(OPTIMIZERS["sgd"](model.parameters())), model.optimizers[0], POSITION)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = PruningWrapper(build(seed=3), method)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.history == model.history


def test_a_step_that_fails_behind_its_update():
    model = PruningWrapper(build(), CASES["Magnitude"][1]())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model.attach(optimizer), optimizer, 3)
    handle = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(model, optimizer, 1, start=4)
    handle.remove()
    other = PruningWrapper(build(seed=3), CASES["Magnitude"][1]())
    other.load_state_dict(model.state_dict())
    assert (other.session.run.step, other.history[-1].step) == (3, 4)
    again = OPTIMIZERS["sgd"](other.parameters())
    train(other.attach(again), again, 1, start=4)
    train(model, optimizer, 1, start=4)
    assert same_state(other.masks.masks, model.masks.masks)
    assert other.sparsity()["total"] == pytest.approx(model.history[-1].target, abs=1e-2)
