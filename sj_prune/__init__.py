"""Pruning of spiking neural networks for SpikingJelly, from what happens inside the neurons."""

from sj_prune import data, integrations, masks, methods, neurons
from sj_prune._version import __version__
from sj_prune.at_once import Pruned, prune
from sj_prune.calibration import renormalize
from sj_prune.compaction import (
    CompactionError,
    architecture,
    compact,
    compact_with_optimizer,
    load_compact,
    rebuild,
    save_compact,
)
from sj_prune.comparison import compare
from sj_prune.neurons import to_recording, to_stock
from sj_prune.wrapper import PruningWrapper

__all__ = [
    "CompactionError",
    "Pruned",
    "PruningWrapper",
    "__version__",
    "architecture",
    "compact",
    "compact_with_optimizer",
    "compare",
    "data",
    "integrations",
    "load_compact",
    "masks",
    "methods",
    "neurons",
    "prune",
    "rebuild",
    "renormalize",
    "save_compact",
    "to_recording",
    "to_stock",
]
