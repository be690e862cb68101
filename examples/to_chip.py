"""A network for an event camera that does not fit Speck2f, pruned until it does, and exported.

    python examples/to_chip.py                            # a minute of a processor
    python examples/to_chip.py --images 5 --epochs 1      # to see that it runs

Images of simple shapes are played before a simulated event camera. A small convolutional network
learns to tell them apart; two of its layers are too large for every core of the chip. `prune`
removes channels until the network fits, it is fine-tuned, cut out by `compact`, fine-tuned with
weights of 8 bits, quantized, and written as NIR and ONNX; each file is read back and compared.
Prints what does not fit, and the table before => after, which it writes to runs/to_chip/. NIR needs
`pip install -e ".[nir]"` and SpikingJelly 2.0.0, ONNX `".[onnx]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

import sj_prune
from sj_prune import cost, data

# ---- settings ------------------------------------------------------------------------------------

CHIP = "speck2f"
CLASSES = 4  # of sj_prune.data.SYNTHETIC_CLASSES
IMAGES = 60  # recordings of each class; a quarter is for testing
TIME_STEPS = 6  # frames of a recording, with equally many events each
SIZE = 32  # of a frame; the camera has 128
WIDTHS = (32, 64, 128, 128)  # of the convolutions: the third and fourth are too large
BITS = 8

EPOCHS = 12  # of the dense training; half of it after pruning, and again with rounded weights
BATCH = 24
LEARNING_RATE = 2e-3

# ---- data and network ----------------------------------------------------------------------------


def frames_of(events):
    """Return frames ``[T, 2, SIZE, SIZE]`` of a recording: 1 where an event of a polarity was."""
    shrink = 128 // SIZE
    frames = torch.zeros(TIME_STEPS, 2, SIZE, SIZE)
    for t, part in enumerate(np.array_split(np.arange(len(events["t"])), TIME_STEPS)):
        frames[t, events["p"][part], events["x"][part] // shrink, events["y"][part] // shrink] = 1
    return frames


def record(per_class):
    """Return ``(x [N, T, 2, SIZE, SIZE], y)`` of the training and of the test set."""
    images, labels = data.synthetic_images(per_class, CLASSES, size=48, seed=0)
    gray = images.float().mean(1) / 255
    x = torch.stack(
        [
            frames_of(data.simulate(image, index=i))
            for i, image in enumerate(tqdm(gray, desc="recordings", leave=False))
        ]
    )
    test = len(x) // 4  # in a random order already
    return (x[test:], labels[test:]), (x[:test], labels[:test])


def build_network():
    parts, before, size = [], 2, SIZE
    for channels in WIDTHS:
        parts += [
            layer.Conv2d(before, channels, 3, padding=1, bias=False),
            layer.BatchNorm2d(channels),
            neuron.IFNode(surrogate_function=surrogate.ATan(), detach_reset=True),
            layer.AvgPool2d(2),  # of spikes: the chip adds events up
        ]
        before, size = channels, size // 2
    net = nn.Sequential(*parts, layer.Flatten(), layer.Linear(before * size * size, CLASSES))
    functional.set_step_mode(net, "m")
    return net


# ---- training ------------------------------------------------------------------------------------


def train(model, x, y, epochs, rate):
    """Train a network, or a `PruningWrapper` with its masks on."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    if isinstance(model, sj_prune.PruningWrapper):
        model.attach(optimizer)
    model.train()
    for _ in tqdm(range(epochs), leave=False, unit="epoch"):
        for batch in torch.randperm(len(y)).split(BATCH):
            functional.reset_net(model)
            loss = F.cross_entropy(model(x[batch].transpose(0, 1)).mean(0), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    functional.reset_net(model)


@torch.no_grad()
def accuracy_of(net, x, y):
    functional.reset_net(net.eval())
    output = net(x.transpose(0, 1)).mean(0)
    functional.reset_net(net)
    return (output.argmax(1) == y).float().mean().item()


# ---- results -------------------------------------------------------------------------------------


def row(name, net, test, bits=32):
    """Return a row of the table."""
    x_seq = test[0].transpose(0, 1)
    fit = sj_prune.fits(net, x_seq, CHIP)
    layers = [m for m in net if isinstance(m, (nn.Conv2d, nn.Linear))]
    weights = sum(m.weight.numel() for m in layers)
    synops = sum(each.synops + each.macs for each in cost.measure(net, x_seq).values())
    return [
        name,
        f"{accuracy_of(net, *test):.2%}",
        "-".join(str(m.weight.shape[0]) for m in layers[:-1]),
        f"{weights:,}",
        f"{weights * bits / 8192:.1f} KiB",
        f"{synops / 1e6:.2f} M",
        f"{len(fit.cores)} of {len(layers)}" + (": fits" if fit else ""),
    ]


def export(net, x_seq, out):
    """Write both files, proved; return what each is, or why it is not there."""
    said = []
    for kind, write in (("nir", sj_prune.export_nir), ("onnx", sj_prune.export_onnx)):
        path = out / f"net.{kind}"
        try:
            write(net, path, x_seq)
        except ImportError as error:
            said.append(f"net.{kind}: {error}")
        else:
            size = path.stat().st_size / 1024
            said.append(f"net.{kind}: {size:.1f} KiB, read back: computes what the network does")
    return said


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=Path("runs/to_chip"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    (x, y), test = record(args.images)
    less = max(1, args.epochs // 2)

    net = build_network()
    train(net, x, y, args.epochs, LEARNING_RATE)
    rows = [row("dense", net, test)]
    print(sj_prune.fits(net, test[0].transpose(0, 1), CHIP), "\n")

    batches = [
        (x[i : i + BATCH].transpose(0, 1), y[i : i + BATCH]) for i in range(0, len(x), BATCH)
    ]
    net, _ = sj_prune.prune(
        net,
        batches,
        sj_prune.methods.TaylorChannels(),
        budget={"chip": CHIP},
        fine_tune=lambda model: train(model, x, y, less, LEARNING_RATE / 2),
    )
    net = sj_prune.compact(net, batches[0][0])
    rows.append(row("pruned, compact", net, test))

    with sj_prune.fake_quantize(net, BITS):
        train(net, x, y, less, LEARNING_RATE / 4)
    net = sj_prune.quantize(net, BITS)
    rows.append(row(f"quantized, {BITS} bits", net, test, BITS))
    print(sj_prune.fits(net, test[0].transpose(0, 1), CHIP), "\n")

    headers = ["", "test accuracy", "channels", "weights", "memory", "operations", "on cores"]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    text = "\n".join([table, "", *export(net, test[0][:8].transpose(0, 1), args.out)])
    (args.out / "results.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
