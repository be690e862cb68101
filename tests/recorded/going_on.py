"""Runs that stop in the middle: a checkpoint, a copy, another optimizer."""

import copy
import io
import pickle

import torch

from tests.recorded.loops import OPTIMIZERS
from tests.recorded.nets import batch


def _saved(model, *optimizers):
    file = io.BytesIO()
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, file)
    return file.getvalue()


def resumed(at, optimizer="sgd", *, attached_first=False, example=False):
    """Save after step `at`, and go on with a new network, wrapper and optimizer."""

    def loop(case):
        model, opt = case.start(optimizer)
        case.steps(model, opt, last=at)
        data = _saved(model, opt)
        torch.manual_seed(5)
        kwargs = {"example_input": batch(0)[0]} if example else {}
        other = case.wrapped(seed=3, **kwargs)
        again = OPTIMIZERS[optimizer](other.parameters())
        if attached_first:
            other.attach(again)
        state = torch.load(io.BytesIO(data), weights_only=True)
        other.load_state_dict(state["model"])
        again.load_state_dict(state["optimizers"][0])
        other.attach(again)
        case.record.run("loaded", other, [again])
        case.steps(other, again, first=at + 1, tag="again ")

    return loop


def copied(way):
    """Go on with a copy made in mid-run, and then with the original."""

    def loop(case):
        model, opt = case.start("adam")
        case.steps(model, opt, last=5)
        state = copy.deepcopy(opt.state_dict())
        other = way(model)
        again = OPTIMIZERS["adam"](other.parameters())
        again.load_state_dict(state)
        other.attach(again)
        case.steps(other, again, first=6, tag="copy ")
        case.steps(model, opt, first=6)

    return loop


def _pickled(model):
    return pickle.loads(pickle.dumps(model))  # noqa: S301 (its own bytes)


def handed_over(case):
    """One optimizer is released and another goes on."""
    model, opt = case.start()
    case.steps(model, opt, last=5)
    model.release(opt)
    other = OPTIMIZERS["adam"](model.parameters())
    model.attach(other)
    case.steps(model, other, first=6)


GOING_ON = {
    "resumed-4": resumed(4),
    "resumed-5": resumed(5),
    "resumed-5-adam": resumed(5, "adam", attached_first=True),
    "resumed-7": resumed(7, example=True),
    "deepcopy": copied(copy.deepcopy),
    "pickle": copied(_pickled),
    "handed-over": handed_over,
}
