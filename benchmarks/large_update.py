"""What the step with a mask update costs a network of 134 M weights, in time and in memory.

    python benchmarks/large_update.py [--methods Magnitude Criticality]

VGG16 with the linear layers of ImageNet size, pruned to 90 % under SGD with momentum. Seconds are
those of the processor, one thread, of `optimizer.step()`; memory is the highest resident size
during the step over weights, momentum and gradients, which training needs anyway. Linux only: the
kernel's mark of the highest size is set back before every step.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import environment, write_csv
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import methods

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
SETTINGS = {"sparsity": 0.9, "interval": 3, "begin": 0, "end": 9}
METHODS = {
    "Magnitude": lambda: methods.Magnitude(**SETTINGS),
    "Criticality": lambda: methods.Criticality(regrow=0.2, **SETTINGS),
}


def build() -> nn.Module:
    parts: list[nn.Module] = []
    last = 3
    for width in WIDTHS:
        if not width:
            parts.append(layer.MaxPool2d(2))
            continue
        conv = layer.Conv2d(last, width, 3, padding=1, bias=False)
        parts += [conv, layer.BatchNorm2d(width), neuron.IFNode(v_threshold=0.5)]
        last = width
    parts += [layer.AdaptiveAvgPool2d((7, 7)), layer.Flatten(), layer.Linear(25088, 4096)]
    parts += [neuron.IFNode(), layer.Linear(4096, 4096), neuron.IFNode(), layer.Linear(4096, 10)]
    net = nn.Sequential(*parts)
    functional.set_step_mode(net, "m")
    return net


def gigabytes(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1e6


def measure(name: str) -> dict[str, object]:
    net = build()
    weights = sum(p.numel() for p in net.parameters())
    x, y = torch.rand(2, 1, 3, 32, 32), torch.tensor([1])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def backward(model: nn.Module) -> None:
        optimizer.zero_grad()
        functional.reset_net(model)
        F.cross_entropy(model(x).mean(0), y).backward()

    backward(net)
    optimizer.step()
    optimizer.zero_grad()
    gc.collect()
    bare = gigabytes("VmRSS") + 4e-9 * weights  # and gradients
    model = sj_prune.PruningWrapper(net, METHODS[name]())
    model.attach(optimizer)
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for step in range(1, 10):
        backward(model)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        start = time.process_time()
        optimizer.step()
        seconds = time.process_time() - start
        found[step % 3 == 0].append((seconds, gigabytes("VmHWM") - bare))
    return {
        "method": name,
        "weights": weights,
        "update_seconds": f"{max(s for s, _ in found[True]):.2f}",
        "update_gigabytes": f"{max(m for _, m in found[True]):.2f}",
        "plain_seconds": f"{min(s for s, _ in found[False]):.2f}",
        "sparsity": f"{model.sparsity()['total']:.4f}",
        **environment("cpu"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(name) for name in args.methods]
    for row in rows:
        print(row)
    print(write_csv("large_update_cpu1", rows))


if __name__ == "__main__":
    main()
