"""What it costs to hold the masks in a step of the optimizer: a pruned SEW-ResNet50 and a bare one.

    python benchmarks/holding.py [--sparsity 0.9] [--device cpu|cuda] [--threads 1]

Times `optimizer.step()` of the same network bare and wrapped in turn, on the same gradients,
and asserts after every step that weights and slots are 0 where pruned. On the CPU figures are
processor seconds. The first step after an update holds everything anew and is a row of its own.
To lay another checkout of the library beside this one, run with its folder in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from measure import environment, label, synchronize, write_csv
from spikingjelly.activation_based import neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet
from torch import Tensor, nn

import sj_prune

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-4),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
}


def build() -> nn.Module:
    return sew_resnet.sew_resnet50(
        cnf="ADD",
        spiking_neuron=neuron.IFNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
    )


def give_gradients(net: nn.Module, seed: int) -> None:
    """Give every parameter a dense gradient."""
    torch.manual_seed(seed)
    for p in net.parameters():
        p.grad = 1e-2 * torch.randn_like(p)


def seconds(run: Callable[[], object], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def check_zeros(model: sj_prune.PruningWrapper, optimizer: torch.optim.Optimizer) -> None:
    """Assert that weights and slots are 0 where pruned, without a look of the library."""
    for name, mask in model.masks.items():
        weight = model.net.get_submodule(name).weight
        slots = [s for s in optimizer.state[weight].values() if s.shape == weight.shape]
        assert slots
        for tensor in (weight, *slots):
            assert not (tensor.detach() != 0).logical_and_(~mask).any(), name


def measured(name: str, sparsity: float, device: str, repeats: int) -> list[dict[str, object]]:
    """Return a row a contender."""
    bare = build().to(device)
    method = sj_prune.methods.Magnitude(sparsity=sparsity, interval=10**6, end=10**7)
    model = sj_prune.PruningWrapper(copy.deepcopy(bare), method)
    optimizers = [OPTIMIZERS[name](net.parameters()) for net in (bare, model.net)]
    model.attach(optimizers[1])
    times: dict[str, list[float]] = {"bare": [], "masks": [], "masks, after an update": []}
    for i in range(2 * repeats):
        updates = i % 2 == 0
        if updates:
            model.update_masks(sparsity)
        for net, optimizer, contender in zip((bare, model.net), optimizers, times, strict=False):
            give_gradients(net, i)
            key = "masks, after an update" if updates and contender == "masks" else contender
            times[key].append(seconds(optimizer.step, device))
        check_zeros(model, optimizers[1])
    medians = {contender: statistics.median(values[1:]) for contender, values in times.items()}
    return [
        {
            "optimizer": name,
            "contender": contender,
            "sparsity": round(model.sparsity()["total"], 4),
            "milliseconds": round(1e3 * value, 3),
            "ratio_to_bare": round(value / medians["bare"], 3),
            **environment(device),
        }
        for contender, value in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two repeats, nothing is written")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    repeats = 2 if args.quick else args.repeats
    found = [measured(name, args.sparsity, args.device, repeats) for name in OPTIMIZERS]
    rows = [row for part in found for row in part]
    for row in rows:
        print(
            f"{row['optimizer']:20} {row['contender']:24} {row['milliseconds']:9} ms "
            f"x{row['ratio_to_bare']}"
        )
    if not args.quick:
        print(write_csv(f"holding_{label(args.device)}", rows))


if __name__ == "__main__":
    main()
