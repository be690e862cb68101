"""How it is trained: recipes, and the cells that the suites are made of.

A cell is one training: an arm by a recipe with a seed. Cells come seed by seed, all arms of one
before the next, so that whatever has been run when time is up can be compared in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spikingjelly.activation_based import neuron
from torch import nn, optim

from benchmarks.survival.arms import ARMS, TRAINED, Arm, When
from sj_prune import models
from sj_prune.models.blocks import criticality_neuron


@dataclass(frozen=True)
class Recipe:
    """Network, data and schedule that arms share.

    Attributes:
        name: in the CSV.
        title: in tables.
        network: class of `sj_prune.models`.
        options: its arguments, T among them.
        train_images: so many, all classes alike, of the first 10,000; 0: all.
        epochs: of training.
        batch: images of a step.
        optimizer: "adamw" or "sgd", with momentum 0.9.
        lr: the highest rate.
        weight_decay: of the optimizer.
        interval: optimizer steps between updates.
        channel_interval: optimizer steps between updates of channels; 0: an epoch.
        shared: dense epochs before masks, alike in all arms of a seed: trained once, and saved.
        prune_until: part of the training after which masks stay.
        warmup: part of the training in which the rate rises.
        third_from: epoch from which the rate is a third of the highest; 0: never.
        flips_from: epoch from which images are flipped alone, not cropped; 0: never.
        scale: of the outputs before the softmax.
        bfloat16: autocast on a GPU.
        resumable: saved after each epoch.
    """

    name: str
    title: str
    network: str
    options: Mapping[str, Any] = field(hash=False)
    train_images: int
    epochs: int
    batch: int
    optimizer: str
    lr: float
    weight_decay: float
    interval: int
    channel_interval: int = 0
    shared: int = 0
    prune_until: float = 0.75
    warmup: float = 0.0
    third_from: int = 0
    flips_from: int = 0
    scale: float = 1.0
    bfloat16: bool = False
    resumable: bool = False

    def build(self) -> nn.Module:
        """Return the network."""
        return getattr(models, self.network)(10, **self.options)

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        """Return it; fused, which launches least."""
        usual = {"lr": self.lr, "weight_decay": self.weight_decay, "fused": True}
        if self.optimizer == "adamw":
            return optim.AdamW(parameters, **usual)
        return optim.SGD(parameters, momentum=0.9, **usual)

    def stay(self, batches: int) -> int:
        """Return the step of the training from which masks stay, in epochs of so many batches."""
        return round(self.prune_until * self.epochs * batches)

    def when(self, batches: int) -> When:
        """Return when masks change, counted from the end of the shared epochs."""
        end = self.stay(batches) - self.shared * batches
        return When(self.interval, end, self.channel_interval or batches)

    def crops(self, epoch: int) -> bool:
        """Tell whether images of an epoch (from 0) are cropped."""
        return not self.flips_from or epoch < self.flips_from

    def rate(self, step: int, batches: int) -> float:
        """Return the learning rate of step `step` (from 0).

        It rises in the warm-up, stays, is a third from `third_from` on, and falls to 0 as a cosine
        once masks stay.
        """
        steps, falls = self.epochs * batches, self.stay(batches)
        warm = round(self.warmup * steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        lower = self.third_from and step >= self.third_from * batches
        highest = self.lr / 3 if lower else self.lr
        if step < falls:
            return highest
        return highest * 0.5 * (1 + math.cos(math.pi * (step - falls) / (steps - falls)))


def _subset(name: str, title: str, epochs: int, **others: Any) -> Recipe:
    """Return the network and images of the CPU suite of `benchmarks.accuracy`, trained so long."""
    return Recipe(
        **{
            **{"name": name, "title": title, "network": "DVSNet", "options": _narrow(T=2)},
            **{"train_images": 5000, "epochs": epochs, "batch": 50, "interval": 100},
            **{"optimizer": "adamw", "lr": 0.004, "weight_decay": 5e-4},
            **others,
        }
    )


def _narrow(**more: Any) -> dict[str, Any]:
    return {"widths": (16, 32, 64, 64, 128), "pool": "max", "size": 32, "in_channels": 3, **more}


def _paper() -> dict[str, Any]:
    """Return the neurons of arXiv 2311.16141: tau 4/3 without input decay, ATan, T = 4."""
    return _narrow(T=4, spiking_neuron=neuron.LIFNode, **criticality_neuron())


ONCE = _subset("x1", "8 epochs", 8)
LONGER = (
    _subset("x2", "16 epochs", 16, resumable=True),
    _subset("x4", "32 epochs", 32, resumable=True),
    # 0.3 at batches of 128 in the paper.
    _subset(
        *("sgd", "SGD, the paper's neurons, 16 epochs", 16),
        options=_paper(),
        optimizer="sgd",
        lr=0.12,
        weight_decay=1e-4,
        warmup=1 / 16,
        resumable=True,
    ),
)
SIX = Recipe(
    name="cifar",
    title="CIFAR-10",
    network="SixConvTwoFC",
    options={"T": 2, "widths": (16, 16, 32, 32, 64, 64), "hidden": 128, "dropout": 0.1},
    train_images=0,
    epochs=22,
    batch=100,
    optimizer="adamw",
    lr=0.003,
    weight_decay=0.01,
    interval=50,
    channel_interval=100,
    shared=20,
    prune_until=21 / 22,
    warmup=1 / 44,
    third_from=7,
    flips_from=20,
    scale=10.0,
    bfloat16=True,
    resumable=True,
)
TINY = _subset(
    *("quick", "to see that it runs", 3),
    options={**_narrow(T=2), "widths": (4, 4, 8, 8, 8)},
    train_images=0,
    batch=20,
    interval=2,
    shared=1,
    resumable=True,
)


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        suite: that it belongs to.
        recipe: how it is trained.
        arm: name of what is trained.
        seed: of weights, order, augmentation, masks.
    """

    suite: str
    recipe: Recipe
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Unique and stable: what its row is found by."""
        return f"{self.recipe.name}-{self.arm}-s{self.seed}"

    @property
    def what(self) -> Arm:
        """What is trained."""
        return (TRAINED if self.suite == "cifar" else ARMS)[self.arm]


#: suite -> recipes, arms, seeds
SUITES: dict[str, tuple[Sequence[Recipe], Mapping[str, Arm], Sequence[int]]] = {
    "settle": ((ONCE,), ARMS, range(24)),
    "confirm": (LONGER, ARMS, range(100, 112)),  # seeds on which nothing was chosen
    "cifar": ((SIX,), TRAINED, range(2)),
    "quick": ((TINY,), ARMS, range(1)),  # drawn images
}


def cells(
    suite: str,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    recipes: Sequence[str] = (),
) -> list[Cell]:
    """Return the cells of a suite, the most wanted first.

    Args:
        suite: of `SUITES`.
        arms: of them, these; by default all.
        seeds: by default the suite's.
        recipes: of them, these; by default all.

    Raises:
        ValueError: for an arm or recipe that the suite has not.
    """
    made, known, usual = SUITES[suite]
    for what, asked, there in (
        ("arms", arms, list(known)),
        ("recipes", recipes, [recipe.name for recipe in made]),
    ):
        for name in asked:
            if name not in there:
                raise ValueError(f"Expected {what} of {', '.join(there)} but got {name!r}")
    return [
        Cell(suite, recipe, arm, seed)
        for seed in seeds or usual
        for recipe in made
        if not recipes or recipe.name in recipes
        for arm in arms or known
    ]
