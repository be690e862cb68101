"""Pruning of spiking neural networks for SpikingJelly, from what happens inside the neurons."""

from sj_prune import masks, methods, neurons
from sj_prune._version import __version__
from sj_prune.neurons import to_recording, to_stock
from sj_prune.wrapper import PruningWrapper

__all__ = [
    "PruningWrapper",
    "__version__",
    "masks",
    "methods",
    "neurons",
    "to_recording",
    "to_stock",
]
