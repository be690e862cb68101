"""Channel training goes on bit-identically after a checkpoint, saved anywhere."""

import io
import pickle

import pytest
import torch
from channel_cases import CHANNEL_METHODS, channel_net
from pruning_cases import OPTIMIZERS, frozen, same_state, snapshot, train, wrapped

from sj_prune import PruningWrapper

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
        "asleep": model.masks.asleep(),
        "optimizer": frozen(optimizer)["state"],
        "history": [record.to_dict() for record in model.history],
        "state": model.updater.state,
        "statistics": [node.activity.state_dict() for node in model.nodes.values()],
        "step": model.step,
    }


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adamw"])
@pytest.mark.parametrize("name", CHANNEL_METHODS)
def test_resumed_run_is_the_uninterrupted_one(name, optimizer):
    model, opt = wrapped(settings(name), optimizer, net=channel_net())
    saved = {}
    train(model, opt, STEPS, after=lambda k: saved.update({k: save(model, opt)}))
    expected = everything(model, opt)
    for position in POSITIONS:
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
