"""Plots of a pruning run. Each returns ``(fig, ax)`` and draws on `ax`, if one is given.

Needs matplotlib: ``pip install sj_prune[plots]``.
"""

from sj_prune.plots.activity import channel_map, filters, spike_raster
from sj_prune.plots.analyses import (
    accuracy_under_noise,
    class_similarity,
    importance_transition,
    intra_cluster_variance,
    shapley_values,
)
from sj_prune.plots.channels import channel_importance, survivors_per_layer
from sj_prune.plots.exchange import channel_exchange, channel_raster
from sj_prune.plots.layers import criticality_histogram, density_per_layer
from sj_prune.plots.regrowth import regrowth_per_layer, regrowth_survival
from sj_prune.plots.runs import accuracy_over_cost, accuracy_over_sparsity, sparsity_over_steps

__all__ = [
    "accuracy_over_cost",
    "accuracy_over_sparsity",
    "accuracy_under_noise",
    "channel_exchange",
    "channel_importance",
    "channel_map",
    "channel_raster",
    "class_similarity",
    "criticality_histogram",
    "density_per_layer",
    "importance_transition",
    "intra_cluster_variance",
    "filters",
    "regrowth_per_layer",
    "regrowth_survival",
    "shapley_values",
    "sparsity_over_steps",
    "spike_raster",
    "survivors_per_layer",
]
