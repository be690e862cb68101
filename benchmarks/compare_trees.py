"""Time of another checkout of the library over that of this one, in turns on one machine.

::

    python benchmarks/compare_trees.py OTHER_CHECKOUT --turns 5

Each turn is a process of its own; the figures are processor seconds, the median over steps, and the
ratio is that of this tree over the other, the median over turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def seconds_of(step, repeats, warm_up=2):
    times = []
    for _ in range(warm_up + repeats):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return statistics.median(times[warm_up:])


def neuron_step():
    import torch

    from sj_prune.neurons import RecordingLIFNode

    node = RecordingLIFNode(step_mode="m")
    x_seq = torch.randn(4, 16, 64, 32, 32, requires_grad=True)
    grad = torch.randn(4, 16, 64, 32, 32)

    def step():
        node.reset()
        node(x_seq).backward(grad)

    return seconds_of(step, 30)


def network(width):
    from spikingjelly.activation_based import functional, layer, neuron
    from torch import nn

    blocks, channels = [], 3
    for i in range(6):
        conv = layer.Conv2d(channels, width, 3, padding=1, bias=False)
        blocks += [conv, layer.BatchNorm2d(width), neuron.LIFNode()]
        blocks += [layer.MaxPool2d(2)] if i % 2 else []
        channels = width
    net = nn.Sequential(*blocks, layer.Flatten(), layer.Linear(width * 16, 10))
    functional.set_step_mode(net, "m")
    return net


def training_step(method, repeats=6):
    import torch
    import torch.nn.functional as F
    from spikingjelly.activation_based import functional

    import sj_prune

    torch.manual_seed(0)
    model = sj_prune.PruningWrapper(network(64), method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.attach(optimizer)
    x_seq, y = torch.rand(4, 8, 3, 32, 32), torch.randint(0, 10, (8,))

    def step():
        functional.reset_net(model)
        loss = F.cross_entropy(model(x_seq).mean(0), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return seconds_of(step, repeats)


def mask_update():
    import torch
    from torch import nn

    import sj_prune

    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(6)))
    method = sj_prune.methods.Magnitude(sparsity=0.9, interval=1, end=100)
    model = sj_prune.PruningWrapper(net, method)
    sparsity = iter(0.5 + 0.001 * i for i in range(100))
    return seconds_of(lambda: model.update_masks(next(sparsity)), 10)


def measure():
    import torch

    from sj_prune import methods

    torch.set_num_threads(1)
    window = {"interval": 10**6, "end": 10**7}
    found = {
        "neuron step": neuron_step(),
        "training step, Criticality, recording": training_step(
            methods.Criticality(sparsity=0.9, interval=10**6, end=10**7, batches=10**6)
        ),
        "training step, Magnitude, no update": training_step(methods.Magnitude(**window)),
        "training step, SCA, an update each": training_step(methods.SCA(interval=1, end=10**6)),
        "mask update, 25 M weights": mask_update(),
    }
    sys.stdout.write(json.dumps(found))


def run(tree):
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure"]
    return json.loads(subprocess.check_output(command, env=environment, text=True, cwd=tree))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", nargs="?", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--measure", action="store_true", help="time the library that is imported")
    args = parser.parse_args()
    if args.measure:
        measure()
        return
    turns = [(run(args.other.resolve()), run(HERE)) for _ in range(args.turns)]
    print(f"{'':40} {'other':>9} {'this':>9}   this / other, lowest to highest")
    for name in turns[0][0]:
        ratios = sorted(new[name] / old[name] for old, new in turns)
        middle = statistics.median(ratios)
        times = (1e3 * statistics.median(turn[i][name] for turn in turns) for i in (0, 1))
        before, now = times
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        print(f"{name:40} {before:6.2f} ms {now:6.2f} ms   {middle:.3f} ({spread})")


if __name__ == "__main__":
    main()
