"""Every method of the catalogue on scikit-learn's digits: one small network, the same seeds.

    OMP_NUM_THREADS=1 nice python -m benchmarks.catalogue [--only REGEX] [--seeds 0 1 2]

A cell is one method, sparsity and seed. Its row goes to results/catalogue_cpu.csv once it is done,
and a cell with a row is not run again. Every training sees the same images in the same order with
the same learning rates; those that take several trainings say so in the column of epochs. What was
set by hand for a training of so few steps is in the column of settings.
"""

from __future__ import annotations

import argparse
import csv
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import sj_prune
from benchmarks.accuracy.cells import IMP_RATE, imp_rounds
from benchmarks.measure import RESULTS, environment
from sj_prune import EarlyBird, cost, methods
from sj_prune.masks import ERK, NM, Global, Uniform

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quickstart import load_data, shift

T, EPOCHS, BATCH, BATCHES = 4, 10, 64, 21
STEPS = EPOCHS * BATCHES
END = int(0.6 * STEPS)  # masks change until here
WHEN = {"interval": BATCHES, "end": END}  # 6 updates
OFTEN = {"interval": 7, "end": int(0.75 * STEPS)}  # of those that train sparse: 22 updates
LR, MOMENTUM, DECAY, SMOOTHING = 0.2, 0.9, 5e-4, 0.1
TAU = 4 / 3
WEIGHTS, CHANNELS = (0.9, 0.95), (0.5, 0.75)


def over_time(images: torch.Tensor, steps: int = T) -> torch.Tensor:
    return images.unsqueeze(0).repeat(steps, 1, 1, 1, 1)


def network(seed: int) -> nn.Sequential:
    """Return two convolutions, a hidden layer and a classifier: 13,584 weights."""
    torch.manual_seed(seed)

    def lif() -> neuron.LIFNode:
        return neuron.LIFNode(
            tau=TAU, decay_input=False, detach_reset=True, surrogate_function=surrogate.ATan()
        )

    net = nn.Sequential(
        *(layer.Conv2d(1, 16, 3, padding=1, bias=False), layer.BatchNorm2d(16), lif()),
        layer.MaxPool2d(2),
        *(layer.Conv2d(16, 32, 3, padding=1, bias=False), layer.BatchNorm2d(32), lif()),
        layer.MaxPool2d(2),
        layer.Flatten(),
        *(layer.Linear(128, 64, bias=False), layer.BatchNorm1d(64), lif()),
        layer.Linear(64, 10),
    )
    functional.set_step_mode(net, "m")
    return net


class Digits:
    """The data, and a training loop of the user's own."""

    def __init__(self) -> None:
        self.images, self.labels, self.test_images, self.test_labels = load_data()

    def batches(self, generator: torch.Generator, steps: int) -> Iterable[tuple]:
        order = torch.randperm(len(self.labels), generator=generator)
        for batch in order.split(BATCH)[:BATCHES]:
            yield over_time(shift(self.images[batch], generator), steps), self.labels[batch]

    def epoch(self, model, optimizer, schedule, generator, steps: int = T) -> None:  # noqa: ANN001
        model.train()
        for x_seq, y in self.batches(generator, steps):
            functional.reset_net(model)
            loss = F.cross_entropy(model(x_seq).mean(0), y, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def accuracy(self, net: nn.Module) -> float:
        net.eval()
        functional.reset_net(net)
        found = net(over_time(self.test_images)).mean(0).argmax(1)
        return 100.0 * (found == self.test_labels).sum().item() / len(found)


def optimizer_of(model: nn.Module, epochs: int, rate: float = 1.0) -> tuple:
    found = torch.optim.SGD(model.parameters(), lr=rate * LR, momentum=MOMENTUM, weight_decay=DECAY)
    return found, torch.optim.lr_scheduler.CosineAnnealingLR(found, epochs * BATCHES)


def train(digits: Digits, method: object, seed: int) -> tuple[nn.Module, dict[str, object]]:
    """Train once, and prune meanwhile unless the method is None."""
    net, generator = network(seed), torch.Generator().manual_seed(seed)
    model = (
        net
        if method is None
        else sj_prune.PruningWrapper(
            net, method, seed=seed, example_input=over_time(digits.images[:2])
        )
    )
    optimizer, schedule = optimizer_of(model, EPOCHS)
    if method is not None:
        model.attach(optimizer)
    for _ in range(EPOCHS):
        digits.epoch(model, optimizer, schedule, generator)
    sparsity = 0.0 if method is None else model.sparsity()["total"]
    found = {"sparsity_reached": sparsity, "epochs": EPOCHS, "settings": repr(method or "")}
    return (net if method is None else model.finalize()), found


def at_once(digits: Digits, method: object, seed: int) -> tuple[nn.Module, dict[str, object]]:
    """Train a dense network, and prune it afterwards, without any training more."""
    net, found = train(digits, None, seed)
    generator = torch.Generator().manual_seed(seed)
    batches = list(digits.batches(generator, T))
    net, report = sj_prune.prune(net, batches, method, batches=8, seed=seed)
    return net, found | {"sparsity_reached": report.totals["sparsity"], "settings": repr(method)}


def tickets(digits: Digits, seed: int, **search: object) -> tuple[nn.Module, dict[str, object]]:
    """Search for a ticket."""

    def one(training: sj_prune.Training) -> None:
        generator = torch.Generator().manual_seed(seed)
        steps = training.time_steps or T
        optimizer, schedule = optimizer_of(training.model, training.epochs, training.rate)
        for _ in training.run(optimizer, schedule):
            digits.epoch(training.model, optimizer, schedule, generator, steps)

    found = sj_prune.tickets(network(seed), one, epochs=EPOCHS, seed=seed, progress=False, **search)
    epochs = sum(r.epochs for r in found.rounds)
    settings = ", ".join(f"{key}={value!r}" for key, value in search.items())
    row = {"sparsity_reached": found.rounds[-1].sparsity, "epochs": epochs}
    return found.net, row | {"settings": f"tickets({settings})"}


# ---- methods -------------------------------------------------------------------------------------

Runner = Callable[[Digits, float, int], tuple[nn.Module, dict[str, object]]]


def trained(kind: type, **settings: object) -> Runner:
    """Return what trains with a method; a dictionary among the settings goes by sparsity."""

    def run(digits: Digits, sparsity: float, seed: int) -> tuple[nn.Module, dict[str, object]]:
        own = {k: v[sparsity] if isinstance(v, dict) else v for k, v in settings.items()}
        return train(digits, kind(**{"sparsity": sparsity, **own}), seed)

    return run


def pruned(kind: type, **settings: object) -> Runner:
    return lambda digits, sparsity, seed: at_once(digits, kind(sparsity=sparsity, **settings), seed)


def iterative(digits: Digits, sparsity: float, seed: int) -> tuple[nn.Module, dict[str, object]]:
    rounds = imp_rounds(sparsity) + 1
    return tickets(digits, seed, rounds=rounds, fraction=IMP_RATE, rewind_to=1)


def early_bird(steps: int | None = None) -> Runner:
    return lambda digits, sparsity, seed: tickets(
        digits, seed, early_bird=EarlyBird(sparsity=sparsity), search_time_steps=steps
    )


def channels(kind: type, **settings: object) -> Runner:
    return trained(kind, **{"end": END, **settings})


BLOCKS = {0.5: NM(2, 4), 0.875: NM(1, 8)}
REGROW = {0.9: 0.2, 0.95: 0.1, 0.5: 0.2, 0.875: 0.2}
#: group -> sparsities -> name -> how a cell is run
CATALOGUE: dict[str, tuple[tuple[float, ...], dict[str, Runner]]] = {
    "weights": (
        WEIGHTS,
        {
            "Magnitude": trained(methods.Magnitude, **WHEN),
            "Random": trained(methods.Random, **WHEN),
            "LAMP": trained(methods.LAMP, **WHEN),
            "CQP": trained(methods.CQP, aggregate="mean", **WHEN),
            "CQP, max": trained(methods.CQP, **WHEN),
            "Criticality": trained(methods.Criticality, regrow=REGROW, **WHEN),
            "Criticality, keeps_value": trained(
                methods.Criticality, regrow=REGROW, keeps_value=True, **WHEN
            ),
            "SET": trained(methods.SET, **OFTEN),
            "RigL": trained(methods.RigL, **OFTEN),
            "GraNet": trained(methods.GraNet, **OFTEN),
            "NDSNN": trained(methods.NDSNN, **OFTEN),
            "DeepR": trained(methods.DeepR, beta1=0.0, allocation=ERK(), interval=1, end=STEPS),
            "DeepR, soft": trained(
                methods.DeepR,
                **{"soft": True, "beta1": 0.0, "interval": BATCHES, "end": STEPS},
                **{"sparsity": {0.9: 0.955, 0.95: 0.975}, "l1": {0.9: 0.03, 0.95: 0.045}},
                temperature=0.01,
            ),
            "UPR": trained(
                methods.UPR, strength={0.9: 2e-5, 0.95: 5e-5}, gate_lr=5e-3, begin=BATCHES, **WHEN
            ),
            "UPR, neurons": trained(
                methods.UPR,
                **{"strength": {0.9: 2e-6, 0.95: 5e-6}, "neurons": 0.2},
                **{"gate_lr": 5e-3, "begin": BATCHES, **WHEN},
            ),
            "GradR": trained(
                methods.GradR, alpha={0.9: 0.025, 0.95: 0.055}, interval=BATCHES, end=STEPS
            ),
            "STDS": trained(methods.STDS, ceiling={0.9: 0.9, 0.95: 1.9}, **WHEN),
            "ADMM": trained(methods.ADMM, rho=0.3, allocation=Global(), **WHEN),
            "RCMO": trained(methods.RCMO, lr_y=2e-3, lr_z=6e4, interval=1, end=END),
            "IMP": iterative,
            "Early-Bird": early_bird(),
            "Early-Bird, Early-Time": early_bird(2),
        },
    ),
    "weights, at once": (
        WEIGHTS,
        {
            "Magnitude": pruned(methods.Magnitude, interval=1),
            "LAMP": pruned(methods.LAMP, interval=1),
            "OBC": pruned(methods.OBC, allocation=Global()),
            "SBC": pruned(methods.SBC, allocation=Global(), tau=TAU),
        },
    ),
    "blocks": (
        tuple(BLOCKS),
        {
            "Magnitude": trained(methods.Magnitude, structure=BLOCKS, **WHEN),
            "Criticality": trained(methods.Criticality, structure=BLOCKS, regrow=REGROW, **WHEN),
            "RigL": trained(methods.RigL, structure=BLOCKS, allocation=Uniform(), **OFTEN),
        },
    ),
    "channels": (
        CHANNELS,
        {
            "RandomChannels": channels(methods.RandomChannels),
            "FilterNorm": channels(methods.FilterNorm),
            "APoZ": channels(methods.APoZ, batches=BATCHES),
            "FPGM": channels(methods.FPGM),
            "SVS": channels(methods.SVS, batches=4),
            "TaylorChannels": channels(methods.TaylorChannels, batches=BATCHES),
            "NetworkSlimming": channels(methods.NetworkSlimming, l1=1e-3),
            "NetworkSlimming, Uniform": channels(
                methods.NetworkSlimming, l1=1e-3, allocation=Uniform()
            ),
            "CriticalityChannels": channels(
                methods.CriticalityChannels,
                regrow={0.5: 0.3, 0.75: 0.1},
                l1=1e-3,
                batches=BATCHES,
            ),
            "SCA": channels(methods.SCA, interval=BATCHES),
            "GReg-1": channels(methods.GReg, every=1, delta=0.01),
            "GReg-2": channels(methods.GReg, variant=2, every=1, delta=0.02, pick_delta=5e-4),
        },
    ),
    "channels, emergent": (
        (0.5,),
        {"DPAP": channels(methods.DPAP, interval=BATCHES, patience=0.5)},
    ),
    "synapses of linear layers, emergent": (
        (0.5,),
        {"DPAPSynapses": trained(methods.DPAPSynapses, patience=1.0, **WHEN)},
    ),
}

COLUMNS = (
    *("group", "method", "sparsity", "seed", "accuracy", "sparsity_reached", "synops"),
    *("epochs", "cpu_seconds", "settings", "commit", "device", "torch", "spikingjelly", "python"),
)


def cells(seeds: Iterable[int]) -> list[tuple[str, str, float, int]]:
    """Return group, method, sparsity and seed of every cell."""
    pruned_cells = [
        (group, name, sparsity)
        for group, (sparsities, found) in CATALOGUE.items()
        for name in found
        for sparsity in sparsities
    ]
    return [(*cell, seed) for seed in seeds for cell in [("", "dense", 0.0), *pruned_cells]]


def run(digits: Digits, cell: tuple[str, str, float, int]) -> dict[str, object]:
    """Return the row of a cell."""
    group, name, sparsity, seed = cell
    start = time.process_time()
    if not group:
        net, found = train(digits, None, seed)
    else:
        net, found = CATALOGUE[group][1][name](digits, sparsity, seed)
    layers = cost.measure(net, over_time(digits.test_images)).values()
    row = {"group": group, "method": name, "sparsity": sparsity, "seed": seed}
    row |= {"accuracy": round(digits.accuracy(net), 4), **found}
    row["sparsity_reached"] = round(found["sparsity_reached"], 5)
    row["synops"] = round(sum(c.synops for c in layers), 1)
    return row | {"cpu_seconds": round(time.process_time() - start, 2), **environment("cpu")}


def known(path: Path) -> set[tuple[str, ...]]:
    """Return the cells that have a row, of other runs at the same time too."""
    if not path.exists():
        return set()
    with path.open() as file:
        return {tuple(row[key] for key in COLUMNS[:4]) for row in csv.DictReader(file)}


def append(path: Path, row: dict[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", metavar="REGEX", help='cells "group/method" with it')
    parser.add_argument("--out", type=Path, default=RESULTS / "catalogue_cpu.csv")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    digits = Digits()
    for cell in cells(args.seeds):
        if tuple(map(str, cell)) in known(args.out) or not re.search(
            args.only, f"{cell[0]}/{cell[1]}"
        ):
            continue
        row = run(digits, cell)
        append(args.out, row)
        print(*(row[k] for k in (*COLUMNS[:7], "epochs", "cpu_seconds")), sep=", ", flush=True)


if __name__ == "__main__":
    main()
