"""DECIDE: one published method a file; each is a plan of parts."""

from sj_prune.methods.admm import ADMM
from sj_prune.methods.apoz import APoZ
from sj_prune.methods.base import Method, ScheduledMethod
from sj_prune.methods.channels import ChannelMethod
from sj_prune.methods.cqp import CQP
from sj_prune.methods.criticality import Criticality
from sj_prune.methods.criticality_channels import CriticalityChannels
from sj_prune.methods.deepr import DeepR
from sj_prune.methods.dpap import DPAP
from sj_prune.methods.dpap_synapses import DPAPSynapses
from sj_prune.methods.filter_norm import FilterNorm
from sj_prune.methods.fpgm import FPGM
from sj_prune.methods.gradr import GradR
from sj_prune.methods.greg import GReg
from sj_prune.methods.lamp import LAMP
from sj_prune.methods.magnitude import Magnitude, Random
from sj_prune.methods.ndsnn import NDSNN
from sj_prune.methods.obs import OBC, SBC
from sj_prune.methods.parts import (
    FILL,
    Dense,
    FromZeros,
    Gates,
    Growth,
    Penalty,
    RandomMasks,
    reads,
)
from sj_prune.methods.plan import Plan
from sj_prune.methods.random_channels import RandomChannels
from sj_prune.methods.rcmo import RCMO
from sj_prune.methods.sca import SCA
from sj_prune.methods.slimming import NetworkSlimming
from sj_prune.methods.sparse_training import SET, GraNet, RigL
from sj_prune.methods.stds import STDS
from sj_prune.methods.svs import SVS
from sj_prune.methods.synops_budget import SynOpsBudget
from sj_prune.methods.taylor import TaylorChannels
from sj_prune.methods.upr import UPR
from sj_prune.methods.view import LayerActivity, LayerView, NetView

__all__ = [
    "ADMM",
    "CQP",
    "DPAP",
    "FILL",
    "FPGM",
    "LAMP",
    "NDSNN",
    "OBC",
    "RCMO",
    "SBC",
    "SCA",
    "SET",
    "STDS",
    "SVS",
    "UPR",
    "APoZ",
    "ChannelMethod",
    "Criticality",
    "CriticalityChannels",
    "DPAPSynapses",
    "DeepR",
    "Dense",
    "FilterNorm",
    "FromZeros",
    "GReg",
    "Gates",
    "GraNet",
    "GradR",
    "Growth",
    "LayerActivity",
    "LayerView",
    "Magnitude",
    "Method",
    "NetView",
    "NetworkSlimming",
    "Penalty",
    "Plan",
    "Random",
    "RandomChannels",
    "RandomMasks",
    "RigL",
    "ScheduledMethod",
    "SynOpsBudget",
    "TaylorChannels",
    "reads",
]
