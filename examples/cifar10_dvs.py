r"""Train and prune a spiking network on DVS-CIFAR10: recordings of an event camera.

    python examples/cifar10_dvs.py --download                            # 7 GB; VGGSNN, 95 %
    python examples/cifar10_dvs.py --network DVSNet --size 128
    # Without a download, two minutes on a CPU:
    python examples/cifar10_dvs.py --generated 40 --epochs 30 --batch 32 --frames 6 --size 32 \
        --network DVSNet --widths 16 32 32 48 48 --lr 0.003 --interval 20 --sparsity 0.9

Recordings become frames of equal number of events, resized to 48x48, flipped, rolled and cut out as
in the literature. ``--generated N`` plays N images a class before a simulated camera instead, and
writes its recordings in the form of the genuine ones to --data-root/generated.

Writes log.csv, last.pt, best.pt and final.pt (a stock SpikingJelly network) to --out. Killed or
interrupted, the same command goes on where it was. Every setting below is an option too.
"""

from __future__ import annotations

from pathlib import Path

from common import loop, options

from sj_prune import data, models

# ---- settings ------------------------------------------------------------------------------------

SETTINGS = {
    # As in TET (Deng et al., ICLR 2022), but for the pruning.
    "epochs": 300,
    "batch": 64,
    "optimizer": "adamw",
    "lr": 1e-3,  # at the start; with cosine it falls to 0
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "loss": "tet",  # every time step has to be right
    "tet_lambda": 1e-3,
    "method": "Criticality",
    "sparsity": 0.95,
    "interval": 500,  # steps between mask updates: an epoch has 140
    "prune_until": 0.75,  # of the training; after it the masks stay, the network fine-tunes
    "out": Path("runs/cifar10_dvs"),
}
NETWORK = "VGGSNN"  # of NETWORKS
NETWORKS = ("VGGSNN", "DVSNet")
FRAMES = 10  # of a recording: the time steps
SIZE = 48  # pixels
CLASSES = 10
TRAIN_PART = 0.9  # of each class, rounded up; the rest is tested with
CAMERA_SIZE = 32  # pixels of the images that are played before the simulated camera

# ---- data and network ----------------------------------------------------------------------------


def load_data(args, device):
    """Return loaders of training and test data; the frames stay on the device."""
    try:
        root = _generate(args) if args.generated else args.data_root / "cifar10_dvs"
        # Not augmented here: each epoch does so anew, on the device.
        parts = data.cifar10_dvs(
            root,
            args.frames,
            args.size,
            train_ratio=args.train_part,
            augment=False,
            download=args.download,
        )
    except (OSError, ImportError, RuntimeError, ValueError) as error:
        raise SystemExit(
            f"{error}\nOr train on simulated recordings: --generated 50 (10 at least)"
        ) from error
    (x, y), (test_x, test_y) = (data.stack(part) for part in parts)
    train = data.ResidentLoader(
        x,
        y,
        args.batch,
        device=device,
        augment=data.event_augmentation(),
        shuffle=True,
        drop_last=True,
        seed=args.seed,
    )
    return train, data.ResidentLoader(test_x, test_y, args.batch_test, device=device)


def _generate(args):
    images, labels = data.synthetic_images(args.generated, size=CAMERA_SIZE, seed=0)
    root = args.data_root / "generated" / f"dvs_{args.generated}"
    return data.generate_dvs(root, images, labels, class_names=data.SYNTHETIC_CLASSES)


def build_network(args):
    """Return a network like any other: it knows nothing of pruning."""
    widths = {"widths": args.widths} if args.widths else {}
    pool = {"pool": args.pool} if args.network == "DVSNet" else {}
    return getattr(models, args.network)(CLASSES, size=args.size, **widths, **pool)


def time_first(x):
    """Bring a batch ``[N, T, 2, H, W]`` to a sequence ``[T, N, 2, H, W]``."""
    return x.transpose(0, 1).contiguous()


# ---- the script ----------------------------------------------------------------------------------


def main(arguments=None):
    parser = options.build_parser(__doc__, SETTINGS)
    add = parser.add_argument_group("frames and network").add_argument
    add("--network", choices=NETWORKS, default=NETWORK)
    add("--frames", type=int, default=FRAMES, help="of a recording: the time steps")
    add("--size", type=int, default=SIZE, help="pixels of a frame")
    add("--widths", type=int, nargs="+", default=None, help="of the convolutions; the paper's")
    add("--pool", choices=["average", "max"], default="average", help="of DVSNet")
    add("--train-part", type=float, default=TRAIN_PART, help="of each class; the rest is to test")
    args = parser.parse_args(arguments)
    return loop.run(
        args, lambda: build_network(args), lambda device: load_data(args, device), time_first
    )


if __name__ == "__main__":
    loop.leave(main)
