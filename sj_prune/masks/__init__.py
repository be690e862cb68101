"""ACT: masks, how much of each layer, when, and the one algorithm that updates them."""

from sj_prune.masks.allocation import ERK, Allocation, Global, Pool, Uniform, apportion
from sj_prune.masks.bindings import AtUpdates, Binding, Hidden, Sleep, Strict, Transform
from sj_prune.masks.blocks import NM
from sj_prune.masks.manager import MaskManager
from sj_prune.masks.regrow import LayerUpdate, prune_and_regrow
from sj_prune.masks.schedule import (
    Constant,
    Cosine,
    Cubic,
    CubicHold,
    Linear,
    Manual,
    OneShot,
    Schedule,
)
from sj_prune.masks.scopes import GroupScope, LayerScope, Scope
from sj_prune.masks.select import count, kth_largest, top_k
from sj_prune.masks.structure import Channels, Structure, Unstructured
from sj_prune.masks.units import LayerScores, keep_top

__all__ = [
    "ERK",
    "NM",
    "Allocation",
    "AtUpdates",
    "Binding",
    "Channels",
    "Constant",
    "Cosine",
    "Cubic",
    "CubicHold",
    "Global",
    "GroupScope",
    "Hidden",
    "LayerScope",
    "LayerScores",
    "LayerUpdate",
    "Linear",
    "Manual",
    "MaskManager",
    "OneShot",
    "Pool",
    "Schedule",
    "Scope",
    "Sleep",
    "Strict",
    "Structure",
    "Transform",
    "Uniform",
    "Unstructured",
    "apportion",
    "count",
    "keep_top",
    "kth_largest",
    "prune_and_regrow",
    "top_k",
]
