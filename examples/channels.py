r"""Prune the channels of a SEW-ResNet while it trains, then make it a smaller network.

    python examples/channels.py                # scikit-learn's digits, two minutes on two cores
    python examples/channels.py --dataset cifar10 --download --epochs 100 --batch 128 \
        --widths 64 128 256 --blocks 2
    python examples/channels.py --regrow 0     # pruning only; or --set growth=random

Trains the network dense and, from the same seed, with SCA: once an epoch the least active channels
are pruned and those with the largest gradient come back. What is left is cut out of the network,
proved equal, compared with the dense one, saved, loaded and tested again. Writes compact.pt,
result.json and the plots to --out. Killed or interrupted, the same command goes on where it was.
Every setting below is an option too.
"""

from __future__ import annotations

import copy
import json
import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

# Before torch is loaded: its threads sleep while they wait (see quickstart.py).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from common import images, loop, options, ranks, sew
from matplotlib import pyplot
from spikingjelly.activation_based import functional

import sj_prune
from sj_prune import cost, data, plots

# ---- settings ------------------------------------------------------------------------------------

SETTINGS = {
    "epochs": 30,
    "batch": 64,
    "optimizer": "sgd",
    "lr": 0.1,  # falls to 0 as a cosine
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "method": "SCA",
    "sparsity": 0.5,  # fraction of the channels that is pruned, from the first epoch on
    "regrow": 0.1,  # fraction of all channels that growth chooses, once an epoch
    "prune_until": 0.75,  # of the training; ours: after it the masks stay, the network fine-tunes
    "out": Path("runs/channels"),
}
WIDTHS = (16, 32, 64)  # channels of the stages
BLOCKS = 1  # in each stage
CONNECT = "ADD"  # or AND, IAND
TIME_STEPS = 4  # every image is shown this often; the stem turns it into spikes
REDUCE = {"digits": 1, "cifar10": 2}  # by how much the stem reduces height and width

AUGMENT = {"digits": data.CropFlip(padding=1, flip=0.0), "cifar10": data.CropFlip()}
# Everything runs, little is learned.
QUICK = {"epochs": 4, "train_images": 640, "batch": 16, "lr": 0.05, "widths": (8, 12, 16)}

# ---- data and network ----------------------------------------------------------------------------


def read_digits(root=None, download=False):
    """Return scikit-learn's 1,797 scanned digits, 8x8, as a training and a test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = torch.tensor(digits.images / 16 * 255, dtype=torch.uint8).unsqueeze(1)
    y = torch.tensor(digits.target)
    names = tuple(str(name) for name in digits.target_names)
    parts = train_test_split(
        torch.arange(len(y)), test_size=0.25, stratify=digits.target, random_state=0
    )
    train = x[parts[0]].float() / 255
    mean, std = train.mean().item(), train.std().item()
    return tuple(data.ImageSet(x[part], y[part], names, (mean,), (std,)) for part in parts)


def load(args, device):
    """Return the loaders of training and test images, resident on the device."""

    def read(root, download):
        return {"digits": read_digits, "cifar10": data.cifar10}[args.dataset](root, download)

    parts = zip(images.sets(args, 32, read), (args.train_images, args.test_images), strict=True)
    train, test = (replace(s, x=s.x[:n], y=s.y[:n]) if n else s for s, n in parts)
    return images.loaders(args, device, train, test, AUGMENT[args.dataset])


def build(args):
    """Return a SpikingJelly network like any other: it knows nothing of pruning."""
    channels = 1 if args.dataset == "digits" else 3
    return sew.SEWResNet(10, channels, args.widths, args.blocks, args.connect, args.reduce)


# ---- training ------------------------------------------------------------------------------------


def train(args):
    """Train with the pruning that `args` asks for; return the trainer, and what it reached."""
    return loop.train(
        args,
        lambda: build(args),
        lambda device: load(args, device),
        lambda x: x.unsqueeze(0).repeat(args.time_steps, 1, 1, 1, 1),
    )


def dense(args):
    """Return the same settings for a training without pruning."""
    no_pruning = {"method": "dense", "sparsity": None, "regrow": None, "set": [], "skip": []}
    return Namespace(**{**vars(args), **no_pruning, "out": args.out / "dense"})


def operations(trainer):
    """Return the operations per test image, over all time steps, of the network as trained."""
    x, _ = next(iter(trainer.test_data))
    layers = cost.measure(trainer.net, trainer.to_input(x)).values()
    macs, synops = sum(c.total_macs_dense for c in layers), sum(c.synops for c in layers)
    return {"macs_dense": macs, "synops_dense": synops}


# ---- from the trained network to a smaller one ---------------------------------------------------


@torch.no_grad()
def predictions(net, trainer):
    """Return the classes of all test images, computed in float64.

    There the order of a sum does not decide whether a neuron fires: equal networks answer equally.
    """
    net, found = copy.deepcopy(net).double().eval(), []
    for x, _ in trainer.test_data:
        functional.reset_net(net)
        found.append(net(trainer.to_input(x).double()).mean(0).argmax(1))
    return torch.cat(found)


def cut_out(trainer, args):
    """Return the masked network, the smaller one and the one that was loaded from its file."""
    net = trainer.model.finalize()
    functional.reset_net(net)
    example = trainer.to_input(next(iter(trainer.test_data))[0])
    small = sj_prune.compact(net, example[:, :16])
    sj_prune.save_compact(args.out / "compact.pt", small)
    loaded = sj_prune.load_compact(args.out / "compact.pt", build(args)).to(trainer.device)
    expected = predictions(net, trainer)
    for name, other in (("compact", small), ("loaded", loaded)):
        differ = int((predictions(other, trainer) != expected).sum())
        assert differ == 0, f"the {name} network answers {differ} test images differently"
    return net, small, loaded


def write_plots(trainer, out):
    """Draw what the channels are worth, which survive, and how they came and went."""
    model = trainer.model
    every_epoch = trainer.method.interval == len(trainer.train_data)
    figures = {
        "importance": plots.channel_importance(model),
        "survivors": plots.survivors_per_layer(model),
        "exchange": plots.channel_exchange(model),
        "raster": plots.channel_raster(model),
    }
    for name, (figure, ax) in figures.items():
        if name in ("exchange", "raster") and every_epoch:
            ax.set_xlabel("epoch (one mask update each)")
        figure.savefig(out / f"{name}.png", dpi=110)
        pyplot.close(figure)


def shrink(trainer, before, args):
    """Make the trained network smaller, show and write what that brings; return the numbers."""
    units = trainer.masks.units(), trainer.masks.kept_units()
    write_plots(trainer, args.out)
    net, small, loaded = cut_out(trainer, args)
    x_seq = trainer.to_input(next(iter(trainer.test_data))[0])
    comparison = sj_prune.compare(net if before is None else before, small, x_seq)
    print(f"\n{'masked' if before is None else 'dense'} => compact\n\n{comparison}\n")
    found = {"accuracy_masked": net, "accuracy_compact": small, "accuracy_loaded": loaded}
    accuracies = {key: trainer.evaluate(n, "test")["test_accuracy"] for key, n in found.items()}
    texts = [f"{value:.2f} % {key.rpartition('_')[2]}" for key, value in accuracies.items()]
    print(f"test accuracy: {', '.join(texts)}; in float64 all three answer the same")
    pairs = comparison.totals | {"channels": tuple(sum(n.values()) for n in units)}
    return accuracies | {
        f"{name}_{when}": value
        for name, pair in pairs.items()
        for when, value in zip(("before", "after"), pair, strict=True)
    }


# ---- the script ----------------------------------------------------------------------------------


def parse(arguments):
    parser = options.build_parser(__doc__, SETTINGS)
    add = parser.add_argument_group("network and data").add_argument
    add("--dataset", choices=[*REDUCE], default="digits")
    add("--train-images", type=int, default=0, help="the first so many only; 0: all")
    add("--test-images", type=int, default=0, help="likewise")
    add("--widths", type=int, nargs="+", default=WIDTHS, help="channels of each stage")
    add("--blocks", type=int, default=BLOCKS, help="of each stage")
    add("--connect", choices=["ADD", "AND", "IAND"], default=CONNECT, help="SEW connection")
    add("--time-steps", type=int, default=TIME_STEPS, help="how often an image is shown")
    add("--reduce", type=int, choices=[1, 2, 4], default=None, help="of the stem; by data set")
    add("--no-dense", action="store_true", help="leave the dense training out")
    add("--quick", action="store_true", help="a few seconds, to see that it runs")
    if parser.parse_known_args(arguments)[0].quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(arguments)
    args.reduce = args.reduce or REDUCE[args.dataset]
    if args.generated and args.dataset == "digits":
        raise SystemExit("--generated stands for colored images: add --dataset cifar10")
    kind = options.methods().get(args.method)
    if kind is not None and not issubclass(kind, sj_prune.methods.ChannelMethod):
        raise SystemExit(f"--method {args.method} prunes single weights: use examples/cifar.py")
    return args


def main(arguments=None):
    """Train, shrink, measure; return what result.json holds."""
    args = parse(arguments)
    ranks.refuse_several("channels.py")
    with_dense = not vars(args).pop("no_dense") or args.method == "dense"
    keys = ("dataset", "method", "seed", "epochs", "sparsity", "regrow", "set")
    result, before = {key: getattr(args, key) for key in keys}, None
    if with_dense:
        print("Without pruning:")
        trainer, reached = train(dense(args))
        before = trainer.net
        if reached is not None:
            result |= {"accuracy_dense": reached["accuracy"], **operations(trainer)}
    if args.method != "dense":
        print(f"\nWith {args.method}:")
        trainer, reached = train(args)
        if reached is not None:
            result |= shrink(trainer, before, args)
    if reached is not None:  # None: --dry-run
        (args.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        print(f"\nresult.json, the networks and the plots are in {args.out}.")
    return result


if __name__ == "__main__":
    loop.leave(main)
