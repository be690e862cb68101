"""What compaction to half of the MACs brings: latency of dense, masked and compact networks.

    python benchmarks/compact_latency.py [--device cpu|cuda] [--runs 3] [--multiple 1 32]

Each network is pruned by `sj_prune.prune(..., FilterNorm(), budget={"macs": 0.5})` and compacted,
with any number of channels and with multiples of 32 (`Channels(multiple=32)`, as near below the
budget as these come); then all are timed in turns (eval mode, T=4), several runs of medians. A
ratio is the median over runs of a run's median over that of the dense network. Networks: the six
convolutions of `training_step.py`, and SpikingJelly's SEW-ResNet18, whose stem halves the map
twice: at 32x32 its convolutions work on maps of 8x8 to 1x1, and the neurons' loops over time weigh
as much.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from measure import environment, label, synchronize, write_csv
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet
from torch import nn
from training_step import CLASSES, STEPS, network, spiking

import sj_prune
from sj_prune.masks import Channels

FRACTION = 0.5


def sew_resnet18() -> nn.Module:
    net = sew_resnet.sew_resnet18(
        num_classes=CLASSES,
        cnf="ADD",
        spiking_neuron=neuron.LIFNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
    )
    functional.set_step_mode(net, "m")
    return net


#: name -> (builder, batch, image size)
CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "six convolutions": (lambda: network(spiking), 32, 32),
    "sew_resnet18": (sew_resnet18, 16, 32),
    "sew_resnet18, larger images": (sew_resnet18, 8, 128),
}


def awake(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """Return `net` in eval mode, with norms that have seen data and neurons that fire."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.constant_(module.bias, 0.3)
    sj_prune.renormalize(net, [(x,)])
    return net.eval()


def contenders(
    name: str, device: str, multiples: Sequence[int]
) -> tuple[dict[str, nn.Module], torch.Tensor]:
    make, batch, size = CASES[name]
    x = torch.randn(STEPS, batch, 3, size, size, device=device)
    nets = {"dense": awake(make().to(device), x)}
    for multiple in multiples:
        method = sj_prune.methods.FilterNorm(structure=Channels(multiple=multiple))
        masked, _ = sj_prune.prune(
            copy.deepcopy(nets["dense"]), [x], method, budget={"macs": FRACTION}
        )
        nets.setdefault("masked", masked)
        kind = "compact" if multiple == 1 else f"compact, multiples of {multiple}"
        nets[kind] = sj_prune.compact(masked, x[:, :2])
    return nets, x


def timed(net: nn.Module, x: torch.Tensor, device: str) -> float:
    functional.reset_net(net)
    synchronize(device)
    start = time.perf_counter()
    net(x)
    synchronize(device)
    return time.perf_counter() - start


@torch.no_grad()
def medians(nets: dict[str, nn.Module], x: torch.Tensor, device: str, repeats: int) -> list[float]:
    """Return one median a network, forwards in turns."""
    times: list[list[float]] = [[] for _ in nets]
    for i in range(repeats + 2):
        for found, net in zip(times, nets.values(), strict=True):
            seconds = timed(net, x, device)
            if i >= 2:
                found.append(seconds)
    return [statistics.median(found) for found in times]


def macs(net: nn.Module, x: torch.Tensor) -> float:
    # Zeros too: that is what takes time.
    return sum(c.total_macs_dense for c in sj_prune.reports.cost.measure(net, x).values())


def rows_of(name: str, args: argparse.Namespace) -> list[dict[str, object]]:
    nets, x = contenders(name, args.device, args.multiple)
    found = [medians(nets, x, args.device, args.repeats) for _ in range(args.runs)]
    dense = macs(nets["dense"], x)
    rows: list[dict[str, object]] = []
    for i, (contender, net) in enumerate(nets.items()):
        ratios = [run[i] / run[0] for run in found]
        rows.append(
            {
                "network": name,
                "contender": contender,
                "input": "x".join(map(str, x.shape)),
                "milliseconds": round(1e3 * statistics.median(run[i] for run in found), 2),
                "ratio_to_dense": round(statistics.median(ratios), 3),
                "ratio_lowest": round(min(ratios), 3),
                "ratio_highest": round(max(ratios), 3),
                "runs": args.runs,
                "repeats": args.repeats,
                "macs_to_dense": round(macs(net, x) / dense, 4),
                "parameters": sum(p.numel() for p in net.parameters()),
                **environment(args.device),
            }
        )
        last = rows[-1]
        print(
            f"{name:28} {contender:24} {last['milliseconds']:9.2f} ms"
            f"  x{last['ratio_to_dense']:.3f}"
            f" ({last['ratio_lowest']:.3f} to {last['ratio_highest']:.3f}),"
            f" MACs x{last['macs_to_dense']:.3f}"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--multiple",
        type=int,
        nargs="+",
        default=[1, 32],
        help="numbers of which the kept channels are multiples, one contender each",
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = [row for name in CASES for row in rows_of(name, args)]
    print(write_csv(f"compact_latency_{label(args.device)}", rows))


if __name__ == "__main__":
    main()
