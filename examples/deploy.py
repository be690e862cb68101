"""From a dense network to a deployed one: train, prune, finalize, deploy, on a CPU.

    python examples/deploy.py                # two minutes on two cores
    python examples/deploy.py --epochs 2     # to see that it runs

Trains the quickstart's network while `Criticality` prunes it to 95 %, deploys it, and counts the
test images on which float32 decides otherwise than float64: for torch and for the deployed network.
Prints the table of layers and writes the plot of their times to runs/deploy/.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import quickstart
import torch
from spikingjelly.activation_based import functional

import sj_prune

SPARSITY = 0.95


@torch.no_grad()
def predictions(net, x_seq):
    functional.reset_net(net)
    start = time.perf_counter()
    output = net(x_seq).mean(0)
    return output.argmax(1), time.perf_counter() - start


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=quickstart.EPOCHS)
    parser.add_argument("--out", type=Path, default=Path("runs/deploy"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    images, labels, test_images, test_labels = quickstart.load_data()
    x_seq = quickstart.over_time(test_images)

    model = quickstart.train("Criticality", SPARSITY, 0, images, labels, args.epochs)
    net = model.finalize().eval()
    functional.reset_net(net)
    fast = sj_prune.deploy(net, x_seq)
    print(fast.report())
    fast.report().plot()[0].savefig(args.out / "layers.png", dpi=150)
    fast.save(args.out / "deployed.pt")

    exact, _ = predictions(copy.deepcopy(net).double(), x_seq.double())
    found, seconds = predictions(net, x_seq)
    start = time.perf_counter()
    ours = fast(x_seq).mean(0).argmax(1)
    seconds_ours = time.perf_counter() - start
    print(f"\n{len(labels)} training and {len(test_labels)} test images")
    for name, p, s in (("torch", found, seconds), ("deployed", ours, seconds_ours)):
        accuracy = (p == test_labels).float().mean()
        differ = int((p != exact).sum())
        print(f"{name:<9} {accuracy:.2%} correct, {differ} unlike float64's, {1e3 * s:.1f} ms")


if __name__ == "__main__":
    main()
