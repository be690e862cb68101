"""Checkpoints that are whole or not there, and every random state that a run depends on."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import torch

FORMAT = 1


def write_atomically(text, path):
    """As `sj_prune.save`, for text."""
    new = Path(f"{path}.new")
    with new.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def load(path, settings):
    """Return a checkpoint, its tensors on the CPU.

    Exits with a message if it is none of this run's.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SystemExit(f"Expected a checkpoint at {path} but there is none") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise SystemExit(f"Expected a training checkpoint of format {FORMAT} at {path}")
    before = state["settings"]
    names = sorted(set(before) | set(settings))
    differ = [
        f"--{name.replace('_', '-')} is {settings.get(name)!r}, was {before.get(name)!r}"
        for name in names
        if settings.get(name) != before.get(name)
    ]
    if differ:
        raise SystemExit(
            f"Expected the settings of {path} but {'; '.join(differ)}: pass the same ones, another "
            "--out, or --resume never to start anew"
        )
    return state


def random_state():
    """Return the state of every global generator, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(internal), gauss_next],
    }


def set_random_state(state):
    """Undo whatever was drawn since `random_state`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


def seed_everything(seed):
    """Seed every global generator."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
