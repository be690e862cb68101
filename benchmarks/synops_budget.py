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
from pathlib import Path

import torch
from torch import nn

import sj_prune
from benchmarks.catalogue import BATCHES, EPOCHS, Digits, network, optimizer_of, over_time
from benchmarks.measure import RESULTS, environment
from sj_prune import cost, methods

FRACTIONS = (0.5, 0.3)
EARLY = 6  # epochs before a budget or a selection that is trained on
RATE, DAMPING = 0.003, 3.0  # in trainings of so few steps


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


def rows_of(digits: Digits, seed: int) -> list[dict[str, object]]:
    """Return all rows of a seed."""
    rows: list[dict[str, object]] = []

    def note(contender: str, fraction: float, net: nn.Module, start: float) -> None:
        spent = synops(digits, net)
        rows.append(
            {
                **{"seed": seed, "contender": contender, "fraction": fraction},
                "accuracy": round(digits.accuracy(net), 4),
                "synops": round(spent, 1),
                "over_budget": round(spent / (fraction * dense), 4),
                "weights_left": sum(int((p != 0).sum()) for p in net.parameters() if p.ndim > 1),
                "cpu_seconds": round(time.process_time() - start, 2),
                **environment("cpu"),
            }
        )

    start = time.process_time()
    whole = trained(digits, seed, EPOCHS)
    dense = synops(digits, whole)
    note("dense", 1.0, whole, start)
    for begin in (EARLY, 1):
        for fraction in FRACTIONS:
            start = time.process_time()
            method = methods.SynOpsBudget(
                fraction=fraction, dense=dense, rate=RATE, damping=DAMPING, begin=begin * BATCHES
            )
            label = f"in the loss, after epoch {begin}"
            note(label, fraction, trained(digits, seed, EPOCHS, method), start)
    for epochs in (0, EPOCHS - EARLY):
        for fraction in FRACTIONS:
            start = time.process_time()
            net = trained(digits, seed, EPOCHS - epochs)
            label = "selected, trained on" if epochs else "selected, at once"
            note(label, fraction, selected(digits, net, fraction, seed, epochs), start)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=RESULTS / "synops_budget_cpu.csv")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    digits, known = Digits(), []
    if args.out.exists():
        with args.out.open() as file:
            known = list(csv.DictReader(file))
    for seed in args.seeds:
        if any(row["seed"] == str(seed) for row in known):
            continue
        for row in rows_of(digits, seed):
            known.append(row)
            print(*(row[k] for k in list(row)[:8]), sep=", ", flush=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(known[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(known)


if __name__ == "__main__":
    main()
