"""From a dense network to a deployed one, on a CPU: two networks.

    python examples/deploy.py                # two minutes on two cores
    python examples/deploy.py --epochs 2     # to see that it runs

The quickstart's network is trained while `Criticality` prunes it to 95 %, and deployed; counted are
the test images on which float32 decides otherwise than float64: for torch and for the deployed
network. A VGG16 for images of CIFAR's size, with random weights, is pruned at once to 95 % by
magnitude over all layers, and deployed. Prints the tables of layers and writes the plots of their
times to runs/deploy/.
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
from sj_prune import models

SPARSITY = 0.95


@torch.no_grad()
def predictions(net, x_seq):
    functional.reset_net(net)
    start = time.perf_counter()
    output = net(x_seq).mean(0)
    return output.argmax(1), time.perf_counter() - start


def deployed(net, x_seq, out, name):
    """Deploy a network, print its table, draw its layers and save it."""
    fast = sj_prune.deploy(net, x_seq)
    print(fast.report())
    fast.report().plot()[0].savefig(out / f"{name}_layers.png", dpi=150)
    fast.save(out / f"{name}.pt")
    return fast


def small(out, epochs):
    images, labels, test_images, test_labels = quickstart.load_data()
    x_seq = quickstart.over_time(test_images)

    model = quickstart.train("Criticality", SPARSITY, 0, images, labels, epochs)
    net = model.finalize().eval()
    functional.reset_net(net)
    fast = deployed(net, x_seq, out, "quickstart")

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


def vgg16(out):
    torch.manual_seed(0)
    images = torch.rand(16, 3, 32, 32)  # put your own network and images here
    method = sj_prune.methods.Magnitude(sparsity=SPARSITY)
    net, report = sj_prune.prune(models.VGG16SCA(), [images], method)
    print(report)
    image = images[:1]
    fast = deployed(net.eval(), image, out, "vgg16")
    times = {"torch": [], "deployed": []}
    for _ in range(10):  # in turns, so that both meet the same machine
        times["torch"].append(predictions(net, image)[1])
        start = time.perf_counter()
        fast(image)
        times["deployed"].append(time.perf_counter() - start)
    print("\none image: " + ", ".join(f"{k} {1e3 * min(t):.1f} ms" for k, t in times.items()))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=quickstart.EPOCHS)
    parser.add_argument("--out", type=Path, default=Path("runs/deploy"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    small(args.out, args.epochs)
    vgg16(args.out)


if __name__ == "__main__":
    main()
