"""DECIDE: one published method a file, each a frozen dataclass with two scores."""

from sj_prune.methods.base import LayerActivity, LayerView, Method, ScheduledMethod
from sj_prune.methods.criticality import Criticality
from sj_prune.methods.gradr import GradR
from sj_prune.methods.magnitude import Magnitude, Random
from sj_prune.methods.sparse_training import SET, GraNet, RigL

__all__ = [
    "SET",
    "Criticality",
    "GraNet",
    "GradR",
    "LayerActivity",
    "LayerView",
    "Magnitude",
    "Method",
    "Random",
    "RigL",
    "ScheduledMethod",
]
