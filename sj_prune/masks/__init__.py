"""ACT: masks, how much of each layer, when, and the one algorithm that updates them."""

from sj_prune.masks.allocation import ERK, Allocation, Global, Pool, Uniform, apportion
from sj_prune.masks.channels import ChannelMasks
from sj_prune.masks.manager import MaskManager
from sj_prune.masks.ranking import LayerScores, keep_top
from sj_prune.masks.regrow import LayerUpdate, prune_and_regrow
from sj_prune.masks.schedule import Constant, Cosine, Cubic, Linear, Manual, OneShot, Schedule
from sj_prune.masks.select import count, kth_largest, top_k
from sj_prune.masks.structure import Channels, Unstructured

__all__ = [
    "ERK",
    "Allocation",
    "ChannelMasks",
    "Channels",
    "Constant",
    "Cosine",
    "Cubic",
    "Global",
    "LayerScores",
    "LayerUpdate",
    "Linear",
    "Manual",
    "MaskManager",
    "OneShot",
    "Pool",
    "Schedule",
    "Uniform",
    "Unstructured",
    "apportion",
    "count",
    "keep_top",
    "kth_largest",
    "prune_and_regrow",
    "top_k",
]
