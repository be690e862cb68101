"""Train and prune a spiking network on Tiny-ImageNet: 200 classes, 64x64 pixels.

    python examples/tiny_imagenet.py --download                          # ResNet19, 90 %
    python examples/tiny_imagenet.py --sparsity 0.95
    python examples/tiny_imagenet.py --generated 10 --batch 16 --dry-run  # look before you train

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
    "epochs": 100,
    "batch": 128,
    "optimizer": "sgd",
    "lr": 0.3,  # after the warm-up; with cosine it falls to 0
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "warmup": 1.0,  # epochs; ours: at 0.3 from the first step on neurons may fall silent for good
    "method": "Criticality",
    "sparsity": 0.90,
    "interval": 2000,  # steps between mask updates
    "prune_until": 0.75,  # of the training; ours: after it the masks stay, the network fine-tunes
    "out": Path("runs/tiny_imagenet"),
}
REGROW = {0.90: 0.2, 0.95: 0.1, 0.98: 0.01}  # of Criticality, by sparsity, as the paper pairs them

NETWORK = "ResNet19"  # of NETWORKS
NETWORKS = ("ResNet19", "VGG16")
TIME_STEPS = 5  # every image is shown this often; the first convolution turns it into spikes

PADDING, FLIP = 8, 0.5  # of training images; ours: in proportion to CIFAR's
SIZE, CLASSES = 64, 200

# ---- the script ----------------------------------------------------------------------------------


def main(arguments=None):
    parser = options.build_parser(__doc__, SETTINGS)
    images.add_options(parser, NETWORKS, NETWORK, TIME_STEPS)
    args = parser.parse_args(arguments)
    options.choose_regrow(args, SETTINGS["method"], REGROW)

    def build():
        return images.build_network(args, CLASSES, SIZE)

    def load(device):
        augment = data.CropFlip(PADDING // args.shrink, FLIP)
        return images.load(args, device, SIZE, data.tiny_imagenet, augment)

    return loop.run(args, build, load)


if __name__ == "__main__":
    loop.leave(main)
