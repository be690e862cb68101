"""Arguments of tiny runs, and what makes two runs the same."""

from pathlib import Path

import torch

EXAMPLES = Path(__file__).parents[2] / "examples"

WIDTHS = ["--widths", *["4"] * 13]
TINY = [
    *("--generated", "6", "--batch", "15", "--epochs", "3", "--threads", "1", "--time-steps", "2"),
    *("--lr", "0.05", "--sparsity", "0.8", "--device", "cpu", *WIDTHS),
]
# Everything that has a state: averaged weights, statistics of several batches, mid-epoch saves.
RICH = [*TINY, "--ema", "0.9", "--set", "batches=2", "--interval", "3", "--checkpoint-every", "1"]
STEPS = 3 * 3  # 45 training images, batches of 15


def same(a, b):
    """Tell whether two states are equal to the last bit, times apart."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        a, b = ({k: v for k, v in d.items() if k != "seconds"} for d in (a, b))
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def difference(a, b, path=""):
    """Return where two checkpoints differ, for the message."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for k in a if k != "seconds" for d in difference(a[k], b[k], f"{path}.{k}")]
    return [] if same(a, b) else [path]


def load(path):
    return torch.load(path, weights_only=True)


def assert_same_run(folder, other):
    """Compare everything that two finished runs left."""
    for name in ("last.pt", "best.pt", "final.pt"):
        assert difference(load(folder / name), load(other / name)) == [], name
    rows = [
        [line.rsplit(",", 1)[0] for line in (out / "log.csv").read_text().splitlines()]
        for out in (folder, other)
    ]
    assert rows[0] == rows[1]
