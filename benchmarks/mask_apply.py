"""What it costs to hold the masks after a step of the optimizer, layer by layer or all in one call.

    python benchmarks/mask_apply.py [--device cpu|cuda]

On the weights of the papers' networks at full width, 95 % pruned:

- sj_prune: `MaskManager.enforce`, as it runs after every step, one fill a layer;
- one call: `torch._foreach_mul_` of all weights with masks in the weights' type. On CUDA it is one
  launch for many layers, but the masks take four times the memory, and a pruned weight that is not
  finite stays so;
- multiply: a product with the mask a layer, as `torch.nn.utils.prune` computes at every forward;
- the step of SGD with momentum itself, for scale.

Contenders run in turn within a repeat; medians.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from measure import environment, label, seconds, write_csv
from torch import nn

from sj_prune import models
from sj_prune.masks import MaskManager

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG16": lambda: models.VGG16(100),
    "ResNet19": lambda: models.ResNet19(100),
}
SPARSITY = 0.95


def contenders(net: nn.Module) -> dict[str, Callable[[], object]]:
    """Return what is compared, on the convolutions and linear layers of a network."""
    layers = {n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    weights = [layer.weight.data for layer in layers.values()]
    kept = {n: torch.rand_like(m.weight) >= SPARSITY for n, m in layers.items()}
    manager = MaskManager(layers)
    manager.install(kept)
    factors = [mask.to(w.dtype) for mask, w in zip(kept.values(), weights, strict=True)]
    optimizer = torch.optim.SGD([m.weight for m in layers.values()], lr=0.0, momentum=0.9)
    for layer in layers.values():
        layer.weight.grad = torch.zeros_like(layer.weight)
    return {
        "sj_prune": lambda: manager.enforce(layers, ()),
        "one call": lambda: torch._foreach_mul_(weights, factors),
        "multiply": lambda: [w * m for w, m in zip(weights, factors, strict=True)],
        "SGD step": optimizer.step,
    }


def measured(name: str, device: str, repeats: int) -> list[dict[str, object]]:
    """Return a row a contender."""
    net = NETWORKS[name]().to(device)
    layers = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in net.modules())
    runs = contenders(net)
    times: dict[str, list[float]] = {contender: [] for contender in runs}
    for _ in range(repeats):
        for contender, run in runs.items():
            times[contender].append(seconds(run, device, repeats=5))
    medians = {contender: statistics.median(values) for contender, values in times.items()}
    return [
        {
            "network": name,
            "layers": layers,
            "contender": contender,
            "milliseconds": round(1e3 * value, 4),
            "ratio_to_sj_prune": round(value / medians["sj_prune"], 3),
            **environment(device),
        }
        for contender, value in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = [row for name in NETWORKS for row in measured(name, args.device, args.repeats)]
    for row in rows:
        print(
            f"{row['network']:10} {row['contender']:10} {row['milliseconds']:9} ms "
            f"x{row['ratio_to_sj_prune']}"
        )
    print(write_csv(f"mask_apply_{label(args.device)}", rows))


if __name__ == "__main__":
    main()
