"""What plans are made of: scores, growth, penalties, gates, and how a run starts."""

from sj_prune._checks import function_name
from sj_prune.methods.parts.gates import Gates
from sj_prune.methods.parts.growth import FILL, Growth
from sj_prune.methods.parts.penalties import Penalty, add_gamma_l1
from sj_prune.methods.parts.scores import (
    GRADIENTS,
    Reads,
    Score,
    Statistic,
    awake_score,
    channel_norm,
    gamma_magnitude,
    gate_gradient,
    gradient_magnitude,
    magnitude,
    noise,
    reads,
    reads_of,
)
from sj_prune.methods.parts.starts import Dense, FromZeros, RandomMasks, Start

__all__ = [
    "FILL",
    "GRADIENTS",
    "Dense",
    "FromZeros",
    "Gates",
    "Growth",
    "Penalty",
    "RandomMasks",
    "Reads",
    "Score",
    "Start",
    "Statistic",
    "add_gamma_l1",
    "awake_score",
    "channel_norm",
    "function_name",
    "gamma_magnitude",
    "gate_gradient",
    "gradient_magnitude",
    "magnitude",
    "noise",
    "reads",
    "reads_of",
]
