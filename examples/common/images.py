"""What the scripts for static images share: data on the device, and the papers' networks."""

from __future__ import annotations

from sj_prune import data, models

# What a narrow version needs beside the widths of its convolutions has this argument.
HIDDEN = ("SixConvTwoFC", "VGG16SCA")
SIZED = ("SixConvTwoFC", "VGG16SCA")
GENERATED_TEST = 0.25  # part of generated images to test with


def add_options(parser, networks, network, time_steps):
    """Add what chooses the network."""
    add = parser.add_argument_group("network").add_argument
    add("--network", choices=networks, default=network)
    add("--time-steps", type=int, default=time_steps, help="how often an image is shown")
    add("--widths", type=int, nargs="+", default=None, help="of the convolutions; the paper's")
    add("--hidden", type=int, default=None, help="width of hidden linear layers; the paper's")


def build_network(args, classes, size):
    """Return a network like any other: it knows nothing of pruning."""
    kwargs = {"T": args.time_steps}
    if args.widths:
        kwargs["widths"] = args.widths
    if args.hidden and args.network in HIDDEN:
        kwargs["hidden"] = args.hidden
    if args.network in SIZED:
        kwargs["size"] = size
    return getattr(models, args.network)(classes, **kwargs)


def load(args, device, size, read, augment):
    """Return loaders of training and test data, both resident on the device.

    Args:
        args: of the script.
        device: where the images are kept and batches are made.
        size: of generated images.
        read: ``read(root, download=)`` returns the two image sets.
        augment: of training batches.
    """
    train, test = _generate(args, size) if args.generated else _read(args, read)
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
