"""Channel training goes on bit-identically after a checkpoint, saved anywhere."""

import io
import pickle

import pytest
import torch

from sj_prune import PruningWrapper
from tests.support.channel_cases import CHANNEL_METHODS, channel_net
from tests.support.pruning_cases import OPTIMIZERS, frozen, same_state, snapshot, train, wrapped

STEPS = 9
POSITIONS = (1, 2, 3, 5, 7, 8)


def settings(name):
    """Channels that fall asleep and wake, for every method."""
    return CHANNEL_METHODS[name].make(regrow=0.2)


def save(model, optimizer):
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    return file.getvalue()


def load(model, optimizer, data):
    state = torch.load(io.BytesIO(data), weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


def everything(model, optimizer):
    return {
        "masks": model.masks.masks,
        "weights": snapshot(model.net),
        "aside": model.masks.aside(),
        "optimizer": frozen(optimizer)["state"],
        "history": [record.to_dict() for record in model.history],
        "state": model.session.run.memory,
        "statistics": [node.activity.state_dict() for node in model.nodes.values()],
        "step": model.step,
    }


@pytest.mark.parametrize(
    "part", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["one half", "the other half"]
)
@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adamw"])
@pytest.mark.parametrize("name", CHANNEL_METHODS)
def test_resumed_run_is_the_uninterrupted_one(name, optimizer, part):
    """Every position with one of the optimizers; the other way round is slow."""
    model, opt = wrapped(settings(name), optimizer, net=channel_net())
    saved = {}
    train(model, opt, STEPS, after=lambda k: saved.update({k: save(model, opt)}))
    expected = everything(model, opt)
    for position in POSITIONS[(part + (optimizer == "adamw")) % 2 :: 2]:
        other = PruningWrapper(channel_net(seed=9), settings(name), seed=77)
        fresh = OPTIMIZERS[optimizer](other.parameters())
        other.attach(fresh)
        load(other, fresh, saved[position])
        train(other, fresh, STEPS - position, start=position + 1)
        got = everything(other, fresh)
        wrong = [key for key in expected if not same_state(expected[key], got[key])]
        assert not wrong, position


@pytest.mark.parametrize("name", CHANNEL_METHODS)
def test_loading_rewinds_a_running_wrapper(name):
    model, opt = wrapped(settings(name), "adam", net=channel_net())
    train(model, opt, 3)
    data = save(model, opt)
    train(model, opt, 6, start=4)
    expected = everything(model, opt)
    load(model, opt, data)
    train(model, opt, 6, start=4)
    got = everything(model, opt)
    assert [key for key in expected if not same_state(expected[key], got[key])] == []


@pytest.mark.parametrize("name", ["SCA", "SCA-update", "FilterNorm-1"])
def test_pickled_before_the_first_forward(name):
    """The copy trains as the original does."""
    model = PruningWrapper(channel_net(), settings(name))
    other = pickle.loads(pickle.dumps(model))
    runs = []
    for each in (model, other):
        optimizer = OPTIMIZERS["sgd_momentum"](each.parameters())
        each.attach(optimizer)
        train(each, optimizer, STEPS)
        runs.append(everything(each, optimizer))
    assert [key for key in runs[0] if not same_state(runs[0][key], runs[1][key])] == []
    assert any(runs[0]["history"][-1]["dropped"].values())


def recorded(model):
    """Sums of nothing may have been allocated or not: the trace of a first forward does."""
    nodes = model.nodes.values()
    return [node.activity.state_dict() if node.activity.count else None for node in nodes]


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        pytest.param(name, optimizer, marks=pytest.mark.slow if (i + j) % 2 else [])
        for i, name in enumerate(CHANNEL_METHODS)
        for j, optimizer in enumerate(("sgd_momentum", "adamw"))
    ],
)
def test_rewinds_to_before_the_first_forward(name, optimizer):
    """As lottery tickets are: what was saved of a fresh wrapper has no masks, so nothing pruned."""
    model, opt = wrapped(settings(name), optimizer, net=channel_net())
    data = save(model, opt)
    assert model.session.run.anatomy.inputs is None
    train(model, opt, STEPS)
    expected = everything(model, opt) | {"statistics": recorded(model)}
    assert any(not mask.all() for mask in model.masks.values())
    load(model, opt, data)
    assert all(mask.all() for mask in model.masks.values())
    assert model.step == 0
    assert model.history == []
    first = channel_net().state_dict()
    assert all(value.equal(first[key]) for key, value in snapshot(model.net).items())
    train(model, opt, STEPS)
    got = everything(model, opt) | {"statistics": recorded(model)}
    assert [key for key in expected if not same_state(expected[key], got[key])] == []


def test_masks_of_another_network_are_refused_where_there_are_any():
    model, opt = wrapped(settings("SCA"), net=channel_net())
    train(model, opt, 3)
    state = model.state_dict()
    masks = state["_extra_state"]["masks"]
    masks.pop(next(iter(masks)))
    before = everything(model, opt)
    with pytest.raises(ValueError, match=r"Expected a mask of shape .* but .* has None"):
        model.load_state_dict(state)
    assert same_state(before, everything(model, opt))
