"""What one mask update of many weights costs, against what else a user would call.

    python benchmarks/mask_update.py [--millions 100] [--device cpu]

Contenders, all pruning to 95 % by global magnitude:

- sj_prune, one update as `PruningWrapper` runs it: score, select, install (masks, weights, slots of
  SGD with momentum); the phases apart, and with 10 % regrown by a per-channel score;
- sort: join all magnitudes, sort, threshold, mask;
- torch.topk: join all magnitudes, take the top 5 %;
- torch.nn.utils.prune.global_unstructured, as the PyTorch tutorial does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measure import environment, label, seconds, write_csv
from torch import nn
from torch.nn.utils import prune

from sj_prune.masks import Global, LayerScores, Strict, Unstructured, prune_and_regrow

LAYERS = 10
SPARSITY = 0.95
REGROW = 0.1


def build(millions: int, device: str) -> tuple[dict[str, nn.Linear], torch.optim.Optimizer]:
    """Return linear layers with `millions` weights in all, and their optimizer with its slots."""
    rows = 1000
    columns = millions * 1_000_000 // (LAYERS * rows)
    layers = {}
    for i in range(LAYERS):
        layer = nn.Linear(columns, rows, bias=False, device=device)
        nn.init.normal_(layer.weight, std=0.02 * (1 + i / LAYERS))
        layers[f"layer{i}"] = layer
    weights = [layer.weight for layer in layers.values()]
    optimizer = torch.optim.SGD(weights, lr=0.0, momentum=0.9)
    for weight in weights:
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return layers, optimizer


class Update:
    """One update in its phases, on dense masks every time."""

    def __init__(self, layers: dict[str, nn.Linear], optimizer: torch.optim.Optimizer) -> None:
        self.layers, self.optimizer = layers, optimizer
        self.manager = Unstructured().masks(nn.ModuleDict(layers), layers, (), Strict())
        self.masks = {n: torch.ones_like(x.weight, dtype=torch.bool) for n, x in layers.items()}
        self.total = sum(mask.numel() for mask in self.masks.values())
        self.channels = {n: torch.rand(len(x.weight), 1).to(x.weight) for n, x in layers.items()}
        self.selected = {}

    def score(self, regrow: bool) -> list[LayerScores]:
        scores = []
        for name, layer in self.layers.items():
            drop = layer.weight.detach().abs()
            grow = self.channels[name].expand_as(drop) if regrow else None
            scores.append(LayerScores(name, self.masks[name], drop, grow, drop if regrow else None))
        return scores

    def select(self, scores: list[LayerScores], regrow: bool) -> None:
        found = prune_and_regrow(
            scores,
            round((1 - SPARSITY) * self.total),
            Global(),
            regrow=REGROW if regrow else 0.0,
            across_layers=True,
            generator=torch.Generator().manual_seed(0),
        )
        self.selected = {n: u.mask for n, u in zip(self.layers, found, strict=True)}

    def install(self) -> None:
        self.manager.install(self.selected, [self.optimizer])

    def whole(self, regrow: bool) -> None:
        self.select(self.score(regrow), regrow)
        self.install()


def by_sort(layers: dict[str, nn.Linear]) -> list[torch.Tensor]:
    scores = [layer.weight.detach().abs() for layer in layers.values()]
    joined = torch.cat([s.flatten() for s in scores]).sort().values
    threshold = joined[int(SPARSITY * joined.numel())]
    return [s >= threshold for s in scores]


def by_topk(layers: dict[str, nn.Linear]) -> list[torch.Tensor]:
    scores = [layer.weight.detach().abs() for layer in layers.values()]
    joined = torch.cat([s.flatten() for s in scores])
    threshold = torch.topk(joined, joined.numel() - int(SPARSITY * joined.numel())).values[-1]
    return [s >= threshold for s in scores]


def by_torch_prune(layers: dict[str, nn.Linear]) -> None:
    pairs = [(layer, "weight") for layer in layers.values()]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=SPARSITY)
    for layer, name in pairs:
        prune.remove(layer, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a million, nothing is written")
    args = parser.parse_args()
    if args.quick:
        args.millions, args.repeats = 1, 1
    torch.manual_seed(0)
    layers, optimizer = build(args.millions, args.device)
    original = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    update = Update(layers, optimizer)
    scores = update.score(regrow=False)

    @torch.no_grad()
    def unpruned() -> None:
        for name, layer in layers.items():
            layer.weight.copy_(original[name])

    def timed(run: Callable[[], object]) -> float:
        return seconds(run, args.device, args.repeats, before=unpruned)

    contenders = {
        "sj_prune: score": lambda: update.score(regrow=False),
        "sj_prune: select": lambda: update.select(scores, regrow=False),
        "sj_prune: install": update.install,
        "sj_prune: whole update": lambda: update.whole(regrow=False),
        "sj_prune: whole update with regrowth": lambda: update.whole(regrow=True),
        "sort all": lambda: by_sort(layers),
        "torch.topk": lambda: by_topk(layers),
        "torch.nn.utils.prune": lambda: by_torch_prune(layers),
    }
    rows = []
    for name, run in contenders.items():
        rows.append({"contender": name, "millions": args.millions, "seconds": timed(run)})
    whole = next(r["seconds"] for r in rows if r["contender"] == "sj_prune: whole update")
    for row in rows:
        row["ratio_to_whole_update"] = round(row["seconds"] / whole, 3)
        row["seconds"] = round(row["seconds"], 4)
        row.update(environment(args.device))
        print(f"{row['contender']:40} {row['seconds']:9.4f} s  x{row['ratio_to_whole_update']}")
    if not args.quick:
        print(write_csv(f"mask_update_{label(args.device)}", rows))


if __name__ == "__main__":
    main()
