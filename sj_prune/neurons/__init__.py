"""SENSE: neuron layers that measure themselves while they compute."""

from sj_prune.neurons.activity import Activity
from sj_prune.neurons.convert import recording_nodes, sense, sensors, to_recording, to_stock
from sj_prune.neurons.gate import SpikeGate
from sj_prune.neurons.nodes import (
    RecordingIFNode,
    RecordingLIFNode,
    RecordingNode,
    RecordingParametricLIFNode,
)
from sj_prune.neurons.observe import observe, observers, unobserve
from sj_prune.neurons.observer import Observer
from sj_prune.neurons.statistics import STATISTICS
from sj_prune.neurons.surrogates import Tanh

__all__ = [
    "STATISTICS",
    "Activity",
    "Observer",
    "RecordingIFNode",
    "RecordingLIFNode",
    "RecordingNode",
    "RecordingParametricLIFNode",
    "SpikeGate",
    "Tanh",
    "observe",
    "observers",
    "recording_nodes",
    "sense",
    "sensors",
    "to_recording",
    "to_stock",
    "unobserve",
]
