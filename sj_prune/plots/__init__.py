"""Plots of a pruning run. Each returns ``(fig, ax)`` and draws on `ax`, if one is given.

Needs matplotlib: ``pip install sj_prune[plots]``.
"""

from sj_prune.plots.channels import channel_importance, survivors_per_layer
from sj_prune.plots.exchange import channel_exchange, channel_raster
from sj_prune.plots.layers import criticality_histogram, density_per_layer
from sj_prune.plots.runs import (
    accuracy_over_sparsity,
    regrowth_per_layer,
    regrowth_survival,
    sparsity_over_steps,
)

__all__ = [
    "accuracy_over_sparsity",
    "channel_exchange",
    "channel_importance",
    "channel_raster",
    "criticality_histogram",
    "density_per_layer",
    "regrowth_per_layer",
    "regrowth_survival",
    "sparsity_over_steps",
    "survivors_per_layer",
]
