r"""Train and prune a spiking network on CIFAR-10 or CIFAR-100.

    python examples/cifar.py --download                                  # CIFAR-10, VGG16, 95 %
    python examples/cifar.py --dataset cifar100 --network ResNet19 --sparsity 0.9
    python examples/cifar.py --generated 100 --dry-run                   # look before you train
    # Without a download, two minutes on a CPU:
    python examples/cifar.py --generated 100 --epochs 10 --batch 32 --hidden 128 \
        --network SixConvTwoFC --widths 16 16 32 32 64 64 --optimizer adamw --lr 0.003

Writes log.csv, last.pt, best.pt and final.pt (a stock SpikingJelly network) to --out. Killed or
interrupted, the same command goes on where it was. Every setting below is an option too.
"""

from __future__ import annotations

from pathlib import Path

from common import images, loop, options

from sj_prune import data

# ---- settings ------------------------------------------------------------------------------------

SETTINGS = {
    # Those of arXiv 2311.16141, but for what is said to be ours.
    "epochs": 200,
    "batch": 128,
    "optimizer": "sgd",
    "lr": 0.3,  # after the warm-up; with cosine it falls to 0
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "warmup": 1.0,  # epochs; ours: at 0.3 from the first step on neurons may fall silent for good
    "method": "Criticality",
    "sparsity": 0.95,
    "interval": 2000,  # steps between mask updates
    "prune_until": 0.75,  # of the training; ours: after it the masks stay, the network fine-tunes
    "out": Path("runs/cifar"),
}
REGROW = {0.90: 0.2, 0.95: 0.1, 0.98: 0.01}  # of Criticality, by sparsity, as the paper pairs them

NETWORK = "VGG16"  # of NETWORKS
NETWORKS = ("VGG16", "ResNet19", "SixConvTwoFC", "VGG16SCA", "DVSNet")
TIME_STEPS = 5  # every image is shown this often; the first convolution turns it into spikes

PADDING, FLIP = 4, 0.5  # of training images: pixels around them before the crop, mirrored ones
SIZE = 32  # pixels

# ---- the script ----------------------------------------------------------------------------------


def main(arguments=None):
    parser = options.build_parser(__doc__, SETTINGS)
    parser.add_argument("--dataset", choices=["cifar10", "cifar100"], default="cifar10")
    images.add_options(parser, NETWORKS, NETWORK, TIME_STEPS)
    args = parser.parse_args(arguments)
    options.choose_regrow(args, SETTINGS["method"], REGROW)

    def build():
        return images.build_network(args, 100 if args.dataset == "cifar100" else 10, SIZE)

    def load(device):
        augment = data.CropFlip(PADDING // args.shrink, FLIP)
        return images.load(args, device, SIZE, getattr(data, args.dataset), augment)

    return loop.run(args, build, load)


if __name__ == "__main__":
    loop.leave(main)
