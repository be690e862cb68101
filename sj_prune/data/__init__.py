"""Data sets: static images resident on the device, event frames, recordings, simulated sensors.

Neither torchvision nor ``spikingjelly.datasets`` is imported before a function needs it.
"""

from sj_prune.data.aedat import Events, read_aedat, write_aedat
from sj_prune.data.dvs_cifar10 import EventFrames, cifar10_dvs, split_per_class, stack
from sj_prune.data.event_transforms import (
    Compose,
    Cutout,
    RandomFlip,
    RandomRoll,
    Resize,
    event_augmentation,
)
from sj_prune.data.generate import CIFAR10_CLASSES, generate_dvs, simulate
from sj_prune.data.images import ImageSet, cifar10, cifar100, image_folder
from sj_prune.data.loader import CropFlip, Normalize, ResidentLoader
from sj_prune.data.motion import ClosedLoop
from sj_prune.data.recordings import convert_recordings, to_spikingjelly
from sj_prune.data.sensor import Sensor
from sj_prune.data.synthetic import SYNTHETIC_CLASSES, synthetic_images
from sj_prune.data.tiny import tiny_imagenet

__all__ = [
    "CIFAR10_CLASSES",
    "SYNTHETIC_CLASSES",
    "ClosedLoop",
    "Compose",
    "CropFlip",
    "Cutout",
    "EventFrames",
    "Events",
    "ImageSet",
    "Normalize",
    "RandomFlip",
    "RandomRoll",
    "ResidentLoader",
    "Resize",
    "Sensor",
    "cifar10",
    "cifar100",
    "cifar10_dvs",
    "convert_recordings",
    "event_augmentation",
    "generate_dvs",
    "image_folder",
    "read_aedat",
    "simulate",
    "split_per_class",
    "stack",
    "synthetic_images",
    "tiny_imagenet",
    "to_spikingjelly",
    "write_aedat",
]
