"""SynOps in the loss against selection afterwards: the digits and the network of the catalogue.

    OMP_NUM_THREADS=1 nice python -m benchmarks.synops_budget [--seeds 0 1 2 3 4]

`SynOpsBudget` trains with a budget of SynOps, a fraction of those of the dense network of the same
seed, in the last 9 or the last 4 of the 10 epochs. Selection afterwards is `prune(...,
budget={"synops": fraction})` of a dense network by global magnitude: of one that is trained to the
end, at once, and of one that is trained for 6 epochs and, with masks on, for the other 4. All have
seen equally many images. SynOps are those of the training images, in eval mode.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import sj_prune
from benchmarks.catalogue import BATCHES, EPOCHS, Digits, network, optimizer_of, over_time
from benchmarks.measure import RESULTS, environment
from sj_prune import cost, methods

FRACTIONS = (0.5, 0.3)
EARLY = 6  # epochs before a budget or a selection that is trained on

#: called with the data, the seed, the fraction and the SynOps of the dense network
Contender = Callable[[Digits, int, float, float], nn.Module]


def synops(digits: Digits, net: nn.Module) -> float:
    found = cost.measure(net, over_time(digits.images[:512])).values()
    return sum(each.synops for each in found)


def trained(digits: Digits, seed: int, epochs: int, method: object = None) -> nn.Module:
    """Return a network that has trained for so many of the epochs."""
    net, generator = network(seed), torch.Generator().manual_seed(seed)
    example = over_time(digits.images[:2])
    model = (
        net
        if method is None
        else sj_prune.PruningWrapper(net, method, seed=seed, example_input=example)
    )
    optimizer, schedule = optimizer_of(model, EPOCHS)
    if method is not None:
        model.attach(optimizer)
    for _ in range(epochs):
        digits.epoch(model, optimizer, schedule, generator)
    return net if method is None else model.finalize()


def selected(digits: Digits, net: nn.Module, fraction: float, seed: int, epochs: int) -> nn.Module:
    """Return a trained network that is pruned to a budget, and trained on."""
    generator = torch.Generator().manual_seed(seed)
    batches = list(digits.batches(generator, 4))

    def fine_tune(model: sj_prune.PruningWrapper) -> None:
        optimizer, schedule = optimizer_of(model, EPOCHS)
        for _ in range((EPOCHS - epochs) * BATCHES):  # the rate goes on where it was
            schedule.step()
        model.attach(optimizer)
        for _ in range(epochs):
            digits.epoch(model, optimizer, schedule, generator)

    found = sj_prune.prune(
        net,
        batches,
        methods.Magnitude(sparsity=0.5, interval=1),
        budget={"synops": fraction},
        fine_tune=fine_tune if epochs else None,
        seed=seed,
    )
    return found.net


def in_the_loss(begin: int, **settings: float) -> Contender:
    """Return what trains with a budget after so many epochs."""

    def run(digits: Digits, seed: int, fraction: float, dense: float) -> nn.Module:
        method = methods.SynOpsBudget(
            fraction=fraction, dense=dense, begin=begin * BATCHES, **settings
        )
        return trained(digits, seed, EPOCHS, method)

    return run


def afterwards(epochs: int) -> Contender:
    """Return what selects, and trains on for so many epochs."""

    def run(digits: Digits, seed: int, fraction: float, dense: float) -> nn.Module:
        return selected(digits, trained(digits, seed, EPOCHS - epochs), fraction, seed, epochs)

    return run


CONTENDERS: dict[str, Contender] = {
    "in the loss, after epoch 1": in_the_loss(1),
    "in the loss, after epoch 1, rate 0.003, damping 3": in_the_loss(1, rate=0.003, damping=3.0),
    "in the loss, after epoch 6, rate 0.003, damping 3": in_the_loss(6, rate=0.003, damping=3.0),
    "selected, at once": afterwards(0),
    "selected, trained on": afterwards(EPOCHS - EARLY),
}


def row_of(
    digits: Digits, seed: int, contender: str, fraction: float, dense: float
) -> dict[str, object]:
    """Return the row of a cell; the dense network's if `fraction` is 1."""
    start = time.process_time()
    whole = fraction == 1.0
    net = (
        trained(digits, seed, EPOCHS)
        if whole
        else CONTENDERS[contender](digits, seed, fraction, dense)
    )
    spent = synops(digits, net)
    return {
        **{"seed": seed, "contender": contender, "fraction": fraction},
        "accuracy": round(digits.accuracy(net), 4),
        "synops": round(spent, 1),
        "over_budget": 1.0 if whole else round(spent / (fraction * dense), 4),
        "weights_left": sum(int((p != 0).sum()) for p in net.parameters() if p.ndim > 1),
        "cpu_seconds": round(time.process_time() - start, 2),
        **environment("cpu"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=RESULTS / "synops_budget_cpu.csv")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    digits, known = Digits(), {}
    if args.out.exists():
        with args.out.open() as file:
            rows = list(csv.DictReader(file))
        known = {(int(r["seed"]), r["contender"], float(r["fraction"])): r for r in rows}
    pruned = [(contender, fraction) for contender in CONTENDERS for fraction in FRACTIONS]
    for contender, fraction in [("dense", 1.0), *pruned]:
        for seed in args.seeds:
            cell = (seed, contender, fraction)
            if cell in known:
                continue
            dense = float(known[seed, "dense", 1.0]["synops"]) if fraction < 1 else 0.0
            known[cell] = row = row_of(digits, *cell, dense)
            print(*(row[k] for k in list(row)[:8]), sep=", ", flush=True)
            with args.out.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
                writer.writerows(known.values())


if __name__ == "__main__":
    main()
