"""A whole training step of a six-convolution network: what neurons, recording and masks add.

    python benchmarks/training_step.py [--device cpu|cuda] [--amp]

Contenders, in turn within a repeat, medians: the same network with identities for neurons (the
limit: convolutions, norms and the optimizer alone), with SpikingJelly's LIF nodes, and wrapped by
`PruningWrapper` at 90 % sparsity with all masks on and every statistic recorded in every step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import environment, label, synchronize, write_csv
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import sj_prune

WIDTHS = (64, 64, 128, 128, 256, 256)
POOL_AFTER = (1, 3, 5)
STEPS, BATCH, SIZE, CLASSES = 4, 32, 32, 10


def network(make_neuron: Callable[[], nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for i, width in enumerate(WIDTHS):
        layers += [
            layer.Conv2d(channels, width, 3, padding=1, bias=False),
            layer.BatchNorm2d(width),
            make_neuron(),
        ]
        if i in POOL_AFTER:
            layers.append(layer.AvgPool2d(2, 2))
        channels = width
    layers += [layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(channels, CLASSES)]
    net = nn.Sequential(*layers)
    functional.set_step_mode(net, "m")
    return net


def spiking() -> nn.Module:
    return neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True)


class Contender:
    """A network with its optimizer; `step` is one training step."""

    def __init__(self, net: nn.Module, device: str, amp: torch.dtype | None) -> None:
        self.net = net.to(device).train()
        self.device, self.amp = device, amp
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        functional.reset_net(self.net)
        kind = self.device.partition(":")[0]
        with torch.autocast(kind, dtype=self.amp, enabled=self.amp is not None):
            loss = F.cross_entropy(self.net(x).mean(0).float(), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def pruned(device: str, amp: torch.dtype | None, x: torch.Tensor) -> Contender:
    method = sj_prune.methods.Criticality(sparsity=0.9, regrow=0.2, interval=10**6, end=10**6)
    model = sj_prune.PruningWrapper(network(spiking).to(device), method, example_input=x)
    contender = Contender(model, device, amp)
    contender.step(x, torch.zeros(BATCH, dtype=torch.long, device=device))
    model.update_masks()
    model.attach(contender.optimizer)
    for node in sj_prune.neurons.recording_nodes(model.net).values():
        node.statistics = sj_prune.neurons.STATISTICS
        node.recording = True
    # The wrapper would switch recording off between updates; here it stays on.
    model._switch_recording = lambda: None
    return contender


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--amp", choices=("float16", "bfloat16"))
    args = parser.parse_args()
    torch.manual_seed(0)
    amp = getattr(torch, args.amp) if args.amp else None
    x = torch.randn(STEPS, BATCH, 3, SIZE, SIZE, device=args.device)
    y = torch.randint(CLASSES, (BATCH,), device=args.device)
    runs = {
        "identities for neurons": Contender(network(nn.Identity), args.device, amp),
        "SpikingJelly LIF": Contender(network(spiking), args.device, amp),
        "sj_prune, recording and masks": pruned(args.device, amp, x),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(args.repeats + 2):
        for name, run in runs.items():
            synchronize(args.device)
            start = time.perf_counter()
            run.step(x, y)
            synchronize(args.device)
            if i >= 2:
                times[name].append(time.perf_counter() - start)
    base = statistics.median(times["identities for neurons"])
    rows = []
    for name, values in times.items():
        median = statistics.median(values)
        rows.append(
            {
                "contender": name,
                "amp": args.amp or "",
                "milliseconds": round(median * 1e3, 2),
                "over_identities": round(median / base, 3),
                **environment(args.device),
            }
        )
        print(f"{name:32} {median * 1e3:9.2f} ms  x{median / base:.3f}")
    suffix = f"_{args.amp}" if args.amp else ""
    print(write_csv(f"training_step_{label(args.device)}{suffix}", rows))


if __name__ == "__main__":
    main()
