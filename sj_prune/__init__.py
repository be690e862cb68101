"""Pruning of spiking neural networks for SpikingJelly, from what happens inside the neurons."""

from sj_prune import data, integrations, masks, methods, neurons, plots
from sj_prune._files import save
from sj_prune._version import __version__
from sj_prune.compaction import (
    CompactionError,
    architecture,
    compact,
    compact_with_optimizer,
    load_compact,
    rebuild,
    save_compact,
)
from sj_prune.deploy.network import SparseNetwork, deploy, load_deployed
from sj_prune.neurons import to_recording, to_stock
from sj_prune.reports import cost
from sj_prune.reports.compare import compare
from sj_prune.trained.calibration import renormalize
from sj_prune.trained.prune import Pruned, prune
from sj_prune.wrapper import PruningWrapper

__all__ = [
    "CompactionError",
    "Pruned",
    "PruningWrapper",
    "SparseNetwork",
    "__version__",
    "architecture",
    "compact",
    "compact_with_optimizer",
    "compare",
    "cost",
    "data",
    "deploy",
    "integrations",
    "load_compact",
    "load_deployed",
    "masks",
    "methods",
    "neurons",
    "plots",
    "prune",
    "rebuild",
    "renormalize",
    "save",
    "save_compact",
    "to_recording",
    "to_stock",
]


def __dir__() -> list[str]:
    return __all__
