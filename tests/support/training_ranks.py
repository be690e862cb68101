"""What runs in every rank for `tests/run/test_ranks.py`."""

import torch

from sj_prune import methods
from tests.support.rank_cases import (
    METHODS,
    bounds,
    loss_of,
    masks_of,
    network,
    norm_free,
    own_hash,
    ready,
    samples,
    train,
    world,
)
from tests.support.spies import spied_growth

FIRST = {
    "Criticality": {"interval": 1, "batches": 1},
    "Magnitude": {"interval": 1},
    "RigL": {"interval": 1},
    "GraNet": {"interval": 1},
    "SET": {"interval": 1},
    "SCA": {"interval": 1},
    "TaylorChannels": {"interval": 1},
}


def every_check(folder):
    return {
        "methods": {name: every_step(name) for name in METHODS},
        "first": {name: first_update(name) for name in FIRST},
        "statistics": statistics(),
        "gradients": gradients(),
        "gates": gates(),
        "accumulated": {
            name: first_update(name, accumulate=True) for name in ("Criticality", "RigL", "SCA")
        },
    }


def every_step(name):
    """Return a hash of masks and weights after every step, and what the updates did."""
    called, model, optimizer = ready(METHODS[name](), network(name))
    hashes = [own_hash(model)]
    zero = []

    def after(step):
        hashes.append(own_hash(model))
        for key, parameter in model.masks.parameters().items():
            grad = parameter.grad
            if grad is not None and not model.method.plan().emergent:
                zero.append(torch.equal(model.masks.zero_pruned(key, grad), grad))

    train(called, optimizer, range(1, 8), after=after)
    return {"hashes": hashes, "zero": zero, "history": [r.to_dict() for r in model.history]}


def first_update(name, *, accumulate=False):
    """Return the masks after an update in the first step, of a norm-free network in float64."""
    called, model, optimizer = ready(METHODS[name](**FIRST[name]), norm_free())
    before = masks_of(model)
    if accumulate and world() > 1:
        start, end = bounds()
        middle = (start + end) // 2
        with called.no_sync():
            loss_of(called, *samples(1, torch.float64, (start, middle))).backward()
        loss_of(called, *samples(1, torch.float64, (middle, end))).backward()
        optimizer.step()
    else:
        train(called, optimizer, [1], dtype=torch.float64)
    return {"before": before, "after": masks_of(model), "history": len(model.history)}


class Watched(methods.Criticality):
    """Notes what it is shown."""

    def plan(self):
        def note(layer, score):
            shown = None if score is None else score.flatten().clone()
            SEEN.setdefault(layer.name, []).append(shown)

        return spied_growth(super().plan(), note)


class WatchedRigL(methods.RigL):
    def plan(self):
        def note(layer, _):
            SEEN.setdefault(layer.name, []).append(layer.dense_grad().clone())

        return spied_growth(super().plan(), note)


SEEN = {}


def statistics():
    """Return what each rank has recorded before an update, and what the method is shown."""
    SEEN.clear()
    settings = {"sparsity": 0.5, "regrow": 0.25, "interval": 3, "end": 6, "batches": 2}
    called, model, optimizer = ready(Watched(**settings), norm_free())
    local = []
    train(called, optimizer, [1, 2], dtype=torch.float64)
    loss_of(called, *samples(3, torch.float64)).backward()
    local = {name: node.activity.state_dict() for name, node in model.nodes.items()}
    optimizer.step()
    return {"local": local, "seen": dict(SEEN), "cleared": model.nodes["1"].activity.count}


def gates():
    """Return the gates of neurons after three steps of a norm-free network in float64."""
    called, model, optimizer = ready(METHODS["UPR"](), norm_free())
    train(called, optimizer, [1, 2, 3], dtype=torch.float64)
    return model.session.run.network_memory


def gradients():
    """Return the gradients that growth is scored by, and the local ones of the same batch."""
    SEEN.clear()
    settings = {"sparsity": 0.5, "regrow": 0.25, "interval": 1, "end": 3}
    called, model, optimizer = ready(WatchedRigL(**settings), norm_free())
    before = masks_of(model)
    train(called, optimizer, [1], dtype=torch.float64)
    return {"seen": {name: grads[0] for name, grads in SEEN.items()}, "before": before}
