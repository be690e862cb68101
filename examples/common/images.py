"""What the scripts for static images share: data on the device, and the papers' networks."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import surrogate

from sj_prune import data, models
from sj_prune.neurons import surrogates

# What a narrow version needs beside the widths of its convolutions has this argument.
HIDDEN = ("SixConvTwoFC", "VGG16SCA")
SIZED = ("SixConvTwoFC", "VGG16SCA", "DVSNet")
GENERATED_TEST = 0.25  # part of generated images to test with

# The three of arXiv 2311.16141, eqs. (2), (17), (18), with their steepness.
SURROGATES = {"atan": surrogate.ATan, "sigmoid": surrogate.Sigmoid, "tanh": surrogates.Tanh}


def add_options(parser, networks, network, time_steps):
    """Add what chooses the network, and how much of the data set is used."""
    add = parser.add_argument_group("network").add_argument
    add("--network", choices=networks, default=network)
    add("--time-steps", type=int, default=time_steps, help="how often an image is shown")
    add("--widths", type=int, nargs="+", default=None, help="of the convolutions; the paper's")
    add("--hidden", type=int, default=None, help="width of hidden linear layers; the paper's")
    add("--pool", choices=["average", "max"], default="average", help="of DVSNet")
    add("--surrogate", choices=SURROGATES, default=None, help="of the neurons; the paper's")
    add = parser.add_argument_group("part of the data set").add_argument
    add("--train-images", type=int, default=0, help="so many, all classes alike; 0: all")
    add("--test-images", type=int, default=0, help="likewise, to test with")
    add("--shrink", type=int, default=1, help="average so many pixels in each direction to one")


def build_network(args, classes, size):
    """Return a network like any other: it knows nothing of pruning."""
    kwargs = {"T": args.time_steps}
    if args.widths:
        kwargs["widths"] = args.widths
    if args.hidden and args.network in HIDDEN:
        kwargs["hidden"] = args.hidden
    if args.surrogate:
        kwargs["surrogate_function"] = SURROGATES[args.surrogate]()
    if args.network == "DVSNet":  # for events, and good for small trainings on images too
        kwargs["in_channels"], kwargs["pool"] = 3, args.pool
    if args.network in SIZED:
        kwargs["size"] = size // args.shrink
    return getattr(models, args.network)(classes, **kwargs)


def load(args, device, size, read, augment):
    """Return loaders of training and test data, both resident on the device.

    Args:
        args: of the script.
        device: where the images are kept and batches are made.
        size: of the images, before they shrink.
        read: ``read(root, download=)`` returns the two image sets.
        augment: of training batches.
    """
    train, test = sets(args, size, read)
    train = _shrink(_part(train, args.train_images), args.shrink)
    test = _shrink(_part(test, args.test_images), args.shrink)
    return loaders(args, device, train, test, augment)


def sets(args, size, read):
    """Return the training and test images that `args` asks for: generated, or read."""
    return _generate(args, size) if args.generated else _read(args, read)


def loaders(args, device, train, test, augment):
    """Return loaders of two image sets, resident on the device."""
    shared = {"device": device, "normalize": data.Normalize(train.mean, train.std)}
    return (
        data.ResidentLoader(
            train.x,
            train.y,
            args.batch,
            augment=augment,
            shuffle=True,
            drop_last=True,
            seed=args.seed,
            **shared,
        ),
        data.ResidentLoader(test.x, test.y, args.batch_test, **shared),
    )


def _read(args, read):
    try:
        return read(args.data_root, download=args.download)
    except (FileNotFoundError, ImportError, RuntimeError) as error:
        raise SystemExit(f"{error}\nOr train on generated images: --generated 500") from error


def _generate(args, size):
    x, y = data.synthetic_images(args.generated, size=size, seed=0)
    cut = round(len(x) * (1 - GENERATED_TEST))
    half, quarter = (0.5,) * 3, (0.25,) * 3
    names = data.SYNTHETIC_CLASSES
    train = data.ImageSet(x[:cut], y[:cut], names, half, quarter)
    return train, data.ImageSet(x[cut:], y[cut:], names, half, quarter)


def _part(images, wanted):
    """Return `wanted` images, equally many of each class, always the same ones."""
    if not wanted:
        return images
    each, left = divmod(wanted, len(images.classes))
    fewest = int(images.y.bincount(minlength=len(images.classes)).min())
    if left or not 0 < each <= fewest:
        raise SystemExit(
            f"Expected a multiple of {len(images.classes)} classes, at most {fewest} images of "
            f"each, but got {wanted}: change --train-images or --test-images"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    of_class = [order[images.y[order] == c][:each] for c in range(len(images.classes))]
    chosen = torch.cat(of_class).sort().values
    return dataclasses.replace(images, x=images.x[chosen], y=images.y[chosen])


def _shrink(images, factor):
    """Return images whose pixels are the means of `factor` x `factor` ones."""
    if factor == 1:
        return images
    if factor < 1 or images.x.shape[-1] % factor:
        raise SystemExit(
            f"Expected --shrink to divide {images.x.shape[-1]} pixels but got {factor}"
        )
    x = F.avg_pool2d(images.x.float(), factor).round().to(torch.uint8)
    return dataclasses.replace(images, x=x)
