"""DECIDE: one published method a file, each a frozen dataclass with two scores."""

from sj_prune.methods.apoz import APoZ
from sj_prune.methods.base import LayerActivity, LayerView, Method, ScheduledMethod
from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.criticality import Criticality
from sj_prune.methods.criticality_channels import CriticalityChannels
from sj_prune.methods.filter_norm import FilterNorm
from sj_prune.methods.gradr import GradR
from sj_prune.methods.greg import GReg
from sj_prune.methods.magnitude import Magnitude, Random
from sj_prune.methods.random_channels import RandomChannels
from sj_prune.methods.sca import SCA
from sj_prune.methods.slimming import NetworkSlimming
from sj_prune.methods.sparse_training import SET, GraNet, RigL
from sj_prune.methods.taylor import TaylorChannels

__all__ = [
    "APoZ",
    "ChannelMethod",
    "Criticality",
    "CriticalityChannels",
    "FilterNorm",
    "GReg",
    "GraNet",
    "GradR",
    "LayerActivity",
    "LayerView",
    "Magnitude",
    "Method",
    "NetworkSlimming",
    "Random",
    "RandomChannels",
    "RigL",
    "SCA",
    "SET",
    "ScheduledMethod",
    "TaylorChannels",
]
