"""Checkpoints written by the tree as it was, and what has to come of them.

Both in float64, so that no other processor's rounding moves a spike.
"""

import gzip
import io
from pathlib import Path

import torch

from sj_prune import PruningWrapper
from tests.recorded.digest import masks_of
from tests.recorded.methods import METHODS
from tests.recorded.nets import build, loss_of

DIRECTORY = Path(__file__).parent / "checkpoints"
_START, _END = ".start.pt.gz", ".end.pt.gz"
SAVED, LAST = 5, 8  # updates happen at 2, 4, 6 and 8


#: where the masks of so few channels would stay as they are from the save to the end
_MOVING = {
    "CriticalityChannels": {"sparsity": 0.6, "regrow": 0.6},
    "NetworkSlimming": {"sparsity": 0.6, "growth": "random"},
}


def wrapped(name, seed, **changed):
    net = build("tiny", seed, torch.float64)
    model = PruningWrapper(net, METHODS[name](**{**_MOVING.get(name, {}), **changed}))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def trained(model, optimizer, first, last, after=None):
    for k in range(first, last + 1):
        optimizer.zero_grad()
        loss_of(model, k).backward()
        optimizer.step()
        if after is not None:
            after(k)


def state_of(model, optimizer):
    """Return masks, weights and slots, each kind in one tensor, in the order of their names."""

    def flat(tensors):
        return torch.cat([tensors[name].detach().flatten() for name in sorted(tensors)])

    slots = [optimizer.state[p]["momentum_buffer"].flatten() for p in model.net.parameters()]
    counts = ("num_batches_tracked",)
    weights = {k: v for k, v in model.net.state_dict().items() if not k.endswith(counts)}
    return {"masks": flat(masks_of(model)), "weights": flat(weights), "slots": torch.cat(slots)}


def names():
    """Return the methods that have a checkpoint."""
    return sorted(path.name.removesuffix(_START) for path in DIRECTORY.glob(f"*{_START}"))


def _read(path):
    # Compressed: most of so small a file is the padding of its tensors.
    return torch.load(io.BytesIO(gzip.decompress(path.read_bytes())), weights_only=True)


def _write(state, path):
    file = io.BytesIO()
    torch.save(state, file)
    path.write_bytes(gzip.compress(file.getvalue(), mtime=0))


def saved(name):
    """Return a checkpoint: the states of the wrapper and of its optimizer."""
    return _read(DIRECTORY / f"{name}{_START}")


def expected(name):
    """Return `state_of` what came of it in the tree that wrote it."""
    return _read(DIRECTORY / f"{name}{_END}")


def load(name, **changed):
    """Return a wrapper and its attached optimizer as they were saved; keywords change settings."""
    state = saved(name)
    model, optimizer = wrapped(name, 9, **changed)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    model.attach(optimizer)
    return model, optimizer


def continued(name, record):
    """Record what comes of a checkpoint, to the bit."""
    model, optimizer = load(name)
    record.run("loaded", model, [optimizer])
    trained(model, optimizer, SAVED + 1, LAST, lambda k: record.run(str(k), model, [optimizer]))


def write(directory):
    """Write one checkpoint a method, between two updates, and the state at the last one."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in METHODS:
        model, optimizer = wrapped(name, 0)
        model.attach(optimizer)
        trained(model, optimizer, 1, SAVED)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        _write(state, directory / f"{name}{_START}")
        trained(model, optimizer, SAVED + 1, LAST)
        _write(state_of(model, optimizer), directory / f"{name}{_END}")
