"""Gallery: what one sees of a network before and after pruning, on recordings made here.

    python examples/gallery.py                # into runs/gallery/, a minute of processor time

A small convolutional network learns five shapes from recordings of a simulated event camera. It is
pruned from one dense start: single weights by `Criticality`, whole channels by `SCA`. Every
picture is a function of `sj_prune.plots`; docs/gallery.md shows them.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections import OrderedDict
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see quickstart.py

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from tqdm import tqdm

import sj_prune
from sj_prune import data, plots

# ---- settings ------------------------------------------------------------------------------------

TIME_STEPS = 16  # frames of a recording
SIZE = 32  # pixels of a frame; the sensor's 128 are summed in blocks
CLASSES, PER_CLASS, HELD_OUT = 5, 28, 40  # recordings of a class; not trained with
WIDTHS = (16, 32, 64)
BATCH, LEARNING_RATE = 10, 3e-3
DENSE_EPOCHS, PRUNE_EPOCHS = 8, 10
UPDATES = 16  # of the masks, three quarters of them before training ends
DPI = 100


def recordings(per_class):
    """Return frames ``[T, N, 2, SIZE, SIZE]``, 1 where events were, and labels ``[N]``."""
    images, labels = data.synthetic_images(per_class, CLASSES, clutter=0)
    gray = images.float().mean(1) / 255
    path = data.ClosedLoop(amplitude=6.0, loops=1, steps=24, duration=100_000)
    frames = []
    for index, image in enumerate(gray):
        events = data.simulate(image, motion=path, index=index)
        step = events["t"] * TIME_STEPS // path.duration
        scale = 128 // SIZE
        place = (events["x"] // scale) * SIZE + (127 - events["y"]) // scale
        cell = torch.as_tensor((step * 2 + events["p"]) * SIZE * SIZE + place)
        counts = torch.bincount(cell, minlength=TIME_STEPS * 2 * SIZE * SIZE)
        frames.append((counts > 0).float().view(TIME_STEPS, 2, SIZE, SIZE))
    return torch.stack(frames, 1), labels


def build_network():
    layers, before = OrderedDict(), 2
    for i, width in enumerate(WIDTHS, start=1):
        layers[f"conv{i}"] = layer.Conv2d(before, width, 3, padding=1, bias=False)
        layers[f"norm{i}"] = layer.BatchNorm2d(width)
        layers[f"lif{i}"] = neuron.LIFNode(
            tau=2.0, detach_reset=True, surrogate_function=surrogate.ATan()
        )
        layers[f"pool{i}"] = layer.MaxPool2d(2)
        before = width
    layers["flatten"] = layer.Flatten()
    layers["classifier"] = layer.Linear(before * (SIZE // 8) ** 2, CLASSES)
    net = nn.Sequential(layers)
    functional.set_step_mode(net, "m")
    return net


def train(model, method, x_seq, y, epochs):
    """Train, and prune if there is a method; return the network, in a wrapper with a method."""
    torch.manual_seed(0)
    if method is not None:
        model = sj_prune.PruningWrapper(model, method)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    if method is not None:
        model.attach(optimizer)
    for _ in tqdm(range(epochs), desc=type(method).__name__ if method else "dense"):
        for batch in torch.randperm(len(y)).split(BATCH):
            functional.reset_net(model)
            loss = F.cross_entropy(model(x_seq[:, batch]).mean(0), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@torch.no_grad()
def accuracy_of(net, x_seq, y):
    net.eval()
    functional.reset_net(net)
    correct = (net(x_seq).mean(0).argmax(1) == y).float().mean().item()
    functional.reset_net(net)
    return 100 * correct


def dense_statistics(net, x_seq):
    """Return the firing rates and criticalities of a network that nothing has pruned."""
    net = sj_prune.to_recording(copy.deepcopy(net)).eval()
    functional.reset_net(net)
    nodes = {n: m for n, m in net.named_modules() if hasattr(m, "activity")}
    for node in nodes.values():
        node.record_in_eval = True  # the mode in which the pruned ones are measured
    net(x_seq)
    return {
        kind: {name: node.activity.mean(kind) for name, node in nodes.items()}
        for kind in ("firing_rate", "criticality_max")
    }


def draw(dense, models, x_seq):
    """Yield name and figure of everything there is to see."""
    weights, channels = models["Criticality"], models["SCA"]
    before = dense_statistics(dense, x_seq)
    for kind, name in (("firing_rate", "firing_rates"), ("criticality_max", "criticality")):
        pair = {"dense": before[kind], "pruned": weights}
        yield name, plots.channel_map(pair, x_seq, statistic=kind)[0]
    pruned = copy.deepcopy(weights).finalize().eval()
    yield (
        "filters",
        plots.filters({"dense": dense.conv1.weight, "pruned": pruned.conv1.weight}, columns=4)[0],
    )
    figure, pair = pyplot.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
    for ax, (name, net) in zip(pair, (("dense", dense), ("pruned", pruned)), strict=True):
        plots.spike_raster(net, x_seq, ax)
        ax.set_title(name, fontsize="medium")
    yield "raster", figure
    histories = {name: model.history for name, model in models.items()}
    yield "survival", plots.regrowth_survival(histories)[0]
    yield "regrowth", plots.regrowth_per_layer(weights.history)[0]
    yield "exchange", plots.channel_exchange(channels)[0]
    yield "channels", plots.channel_raster(channels)[0]
    functional.reset_net(pruned)
    figure, ax = sj_prune.deploy(pruned, x_seq[:, :8], threads=1).report().plot()
    ax.set_xlabel(f"layer; {len(x_seq)} time steps of 8 recordings")
    yield "deployed", figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--per-class", type=int, default=PER_CLASS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    x_seq, y = recordings(args.per_class)
    test, x_seq, y = (x_seq[:, :HELD_OUT], y[:HELD_OUT]), x_seq[:, HELD_OUT:], y[HELD_OUT:]
    steps = PRUNE_EPOCHS * -(-len(y) // BATCH)
    when = {"interval": max(1, steps // UPDATES), "end": steps * 3 // 4}
    dense = train(build_network(), None, x_seq, y, DENSE_EPOCHS)
    functional.reset_net(dense)
    criticality = partial(sj_prune.methods.Criticality, sparsity=0.9, regrow=0.1)
    methods = {
        "Criticality": criticality(**when),
        "Criticality, keeps_value": criticality(**when, keeps_value=True),
        "SCA": sj_prune.methods.SCA(sparsity=0.5, regrow=0.1, **when),
    }
    models = {
        name: train(copy.deepcopy(dense), method, x_seq, y, PRUNE_EPOCHS)
        for name, method in methods.items()
    }
    for name, net in {"dense": dense, **models}.items():
        print(f"{name}: {accuracy_of(net, *test):.1f} % of {HELD_OUT} recordings")
    for name, figure in draw(dense, models, test[0][:, :20]):
        figure.savefig(args.out / f"{name}.png", dpi=DPI)
        pyplot.close(figure)
    print(f"{sum(os.times()[:4]):.0f} CPU seconds; the pictures are in {args.out}")


if __name__ == "__main__":
    main()
