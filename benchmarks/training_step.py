"""A whole training step of a six-convolution network: what neurons, recording and masks add.

    python benchmarks/training_step.py [--device cpu|cuda] [--amp float16|bfloat16] [--quick]

Contenders, in turn within a repeat, medians: the same network with identities for neurons (the
limit: convolutions, norms and the optimizer alone), with SpikingJelly's LIF nodes, and wrapped by
`PruningWrapper` at 90 % sparsity with all masks on and every statistic recorded in every step. On
CUDA of 10 steps in a row, since a training loop waits for no step, of a small and a large batch,
and with the launches of a step.
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
STEPS, SIZE, CLASSES = 4, 32, 10
CPU_BATCHES, CUDA_BATCHES, IN_A_ROW = (32,), (32, 256), 10


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
    contender.step(x, torch.zeros(x.shape[1], dtype=torch.long, device=device))
    model.update_masks()
    model.attach(contender.optimizer)
    for node in sj_prune.neurons.recording_nodes(model.net).values():
        node.statistics = sj_prune.neurons.STATISTICS
        node.recording = True  # set by hand, it stays on between updates
    return contender


def launches(contender: Contender, x: torch.Tensor, y: torch.Tensor) -> int | str:
    """Return what a step launches on the device: kernels, copies and fills."""
    if not x.is_cuda:
        return ""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        contender.step(x, y)
        torch.cuda.synchronize()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in profile.events())


def measure(batch: int, device: str, name: str | None, repeats: int) -> list[dict[str, object]]:
    amp = getattr(torch, name) if name else None
    x = torch.randn(STEPS, batch, 3, SIZE, SIZE, device=device)
    y = torch.randint(CLASSES, (batch,), device=device)
    runs = {
        "identities for neurons": Contender(network(nn.Identity), device, amp),
        "SpikingJelly LIF": Contender(network(spiking), device, amp),
        "sj_prune, recording and masks": pruned(device, amp, x),
    }
    times: dict[str, list[float]] = {contender: [] for contender in runs}
    steps = IN_A_ROW if x.is_cuda else 1
    for i in range(repeats + 2):
        for contender, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            for _ in range(steps):
                run.step(x, y)
            synchronize(device)
            if i >= 2:
                times[contender].append((time.perf_counter() - start) / steps)
    base = statistics.median(times["identities for neurons"])
    rows = []
    for contender, values in times.items():
        median = statistics.median(values)
        rows.append(
            {
                "contender": contender,
                "batch": batch,
                "amp": name or "",
                "milliseconds": round(median * 1e3, 2),
                "over_identities": round(median / base, 3),
                "launches": launches(runs[contender], x, y),
                **environment(device),
            }
        )
        print(f"{batch:4} {contender:32} {median * 1e3:9.2f} ms  x{median / base:.3f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--amp", choices=("float16", "bfloat16"))
    parser.add_argument("--quick", action="store_true", help="one sample, nothing is written")
    args = parser.parse_args()
    torch.manual_seed(0)
    batches = CUDA_BATCHES if args.device.startswith("cuda") else CPU_BATCHES
    repeats, batches = (1, (1,)) if args.quick else (args.repeats, batches)
    found = [measure(batch, args.device, args.amp, repeats) for batch in batches]
    rows = [row for part in found for row in part]
    suffix = f"_{args.amp}" if args.amp else ""
    if not args.quick:
        print(write_csv(f"training_step_{label(args.device)}{suffix}", rows))


if __name__ == "__main__":
    main()
