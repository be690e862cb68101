"""Pruning of spiking neural networks for SpikingJelly, from what happens inside the neurons."""

from sj_prune import analysis, chips, data, integrations, masks, methods, neurons, plots
from sj_prune._files import save
from sj_prune._version import __version__
from sj_prune.chips.fits import fits
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
from sj_prune.export.nir_file import export_nir
from sj_prune.export.onnx_file import export_onnx
from sj_prune.export.quantize import fake_quantize, quantize
from sj_prune.export.synapses import synapses
from sj_prune.neurons import to_recording, to_stock
from sj_prune.reports import cost
from sj_prune.reports.compare import compare
from sj_prune.trained.norms import renormalize
from sj_prune.trained.prune import Pruned, prune
from sj_prune.trained.rounds import EarlyBird
from sj_prune.trained.tickets import Tickets, Training, tickets
from sj_prune.wrapper import PruningWrapper

__all__ = [
    "CompactionError",
    "EarlyBird",
    "Pruned",
    "PruningWrapper",
    "SparseNetwork",
    "Tickets",
    "Training",
    "__version__",
    "analysis",
    "architecture",
    "chips",
    "compact",
    "compact_with_optimizer",
    "compare",
    "cost",
    "data",
    "deploy",
    "export_nir",
    "export_onnx",
    "fake_quantize",
    "fits",
    "integrations",
    "load_compact",
    "load_deployed",
    "masks",
    "methods",
    "neurons",
    "plots",
    "prune",
    "quantize",
    "rebuild",
    "renormalize",
    "save",
    "save_compact",
    "synapses",
    "tickets",
    "to_recording",
    "to_stock",
]


def __dir__() -> list[str]:
    return __all__
