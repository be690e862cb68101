"""SENSE: neuron layers that measure themselves while they compute."""

from sj_prune.neurons.activity import STATISTICS, Activity
from sj_prune.neurons.convert import recording_nodes, to_recording, to_stock
from sj_prune.neurons.nodes import (
    RecordingIFNode,
    RecordingLIFNode,
    RecordingNode,
    RecordingParametricLIFNode,
)
from sj_prune.neurons.surrogates import Tanh

__all__ = [
    "STATISTICS",
    "Activity",
    "RecordingIFNode",
    "RecordingLIFNode",
    "RecordingNode",
    "RecordingParametricLIFNode",
    "Tanh",
    "recording_nodes",
    "to_recording",
    "to_stock",
]
