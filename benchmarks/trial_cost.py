"""CPU time of finding out which channels can be cut, and of cutting them, in plain forwards.

    python benchmarks/trial_cost.py

A tiny spike-driven transformer of SpikingJelly 2.0.0, where overheads weigh most. One thread;
medians of CPU time, so that other work on the machine counts little.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import SpikeDrivenTransformer

from sj_prune.compaction import compact, couple_checked
from sj_prune.compaction.slices import silence


def median(call: Callable[[], object], times: int) -> float:
    """Return the CPU seconds of a call."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def main() -> None:
    """Measure and print."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = SpikeDrivenTransformer(
        T=2, num_classes=10, embed_dims=32, num_heads=4, depths=2,
        spiking_neuron=neuron.IFNode, surrogate_function=surrogate.ATan(),
    ).eval()  # fmt: skip
    functional.set_step_mode(net, "m")
    x = torch.rand(2, 2, 3, 32, 32) * 2

    def forward() -> None:
        functional.reset_net(net)
        with torch.no_grad():
            net(x)

    coupling = couple_checked(net, (x,))  # warms up too
    forward()
    plain = median(forward, 21)
    trial = median(lambda: couple_checked(net, (x,)), 7)
    for group in coupling.groups:
        silence(net, group, torch.arange(group.units) % 2 == 0)
    cut = median(lambda: compact(net, x), 7)
    print(f"plain forward {1e3 * plain:.1f} ms")  # noqa: T201
    print(f"trial   {trial / plain:.1f} plain forwards")  # noqa: T201
    print(f"compact {cut / plain:.1f} plain forwards")  # noqa: T201


if __name__ == "__main__":
    main()
