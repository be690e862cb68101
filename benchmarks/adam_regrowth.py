"""How far a regrown weight moves in its first steps, next to one that has trained since long.

python -m benchmarks.adam_regrowth

Half of the weights get fresh slots after 4,000 steps, as a weight that is regrown does; all see
gradients of the same kind: always 1, normal around 1, or normal around 0. Printed is the mean
length of a step of the regrown ones over that of the others. Adam keeps one step count for the
whole tensor, so its bias correction is that of an old weight.
"""

from __future__ import annotations

import torch
from tabulate import tabulate
from torch import Tensor

WEIGHTS, BEFORE = 4096, 4000
STEPS = (1, 2, 3, 5, 10, 20, 50, 100, 300)
OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam([p], lr=1e-3),
    "SGD, momentum 0.9": lambda p: torch.optim.SGD([p], lr=1e-3, momentum=0.9),
}
GRADIENTS = {"always 1": (1.0, 0.0), "1 +- 1": (1.0, 1.0), "0 +- 1": (0.0, 1.0)}


def ratios(optimizer: str, mean: float, spread: float) -> list[float]:
    """Return regrown over old, in steps of `STEPS` after the slots were cleared."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(WEIGHTS))
    made = OPTIMIZERS[optimizer](weight)
    new = torch.arange(WEIGHTS) % 2 == 0
    found = []
    for step in range(BEFORE + STEPS[-1] + 1):
        if step == BEFORE + 1:
            for slot in made.state[weight].values():
                if isinstance(slot, Tensor) and slot.shape == weight.shape:
                    slot.masked_fill_(new, 0)
        before = weight.detach().clone()
        weight.grad = mean + spread * torch.randn(WEIGHTS, generator=generator)
        made.step()
        if step - BEFORE in STEPS:
            moved = (weight.detach() - before).abs()
            found.append(float(moved[new].mean() / moved[~new].mean()))
    return found


def main() -> None:
    """Print the table."""
    rows = [
        [optimizer, name, *(f"{ratio:.2f}" for ratio in ratios(optimizer, *kind))]
        for optimizer in OPTIMIZERS
        for name, kind in GRADIENTS.items()
    ]
    print(tabulate(rows, headers=["", "gradient", *map(str, STEPS)], disable_numparse=True))  # noqa: T201


if __name__ == "__main__":
    main()
