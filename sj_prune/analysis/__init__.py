"""What a trained network's features and channels are like; networks are left as they are."""

from sj_prune.analysis.clusters import ClassCluster, Clusters, clusters
from sj_prune.analysis.robustness import NoiseLevel, Robustness, robustness
from sj_prune.analysis.shapley import Shapley, shapley
from sj_prune.analysis.transition import Transition, TransitionPoint, transition

__all__ = [
    "ClassCluster",
    "Clusters",
    "NoiseLevel",
    "Robustness",
    "Shapley",
    "Transition",
    "TransitionPoint",
    "clusters",
    "robustness",
    "shapley",
    "transition",
]
