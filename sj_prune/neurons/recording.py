"""What recording nodes keep, switched for a while and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sj_prune.neurons.activity import Activity
from sj_prune.neurons.convert import Sensor, sensors


@contextmanager
def temporary_activity(net: nn.Module) -> Iterator[dict[str, Sensor]]:
    """Let all nodes record everything for a while, each into a fresh `Activity`."""
    nodes = sensors(net)
    kept = {
        name: (node.recording, node.record_in_eval, node.activity) for name, node in nodes.items()
    }
    try:
        for node in nodes.values():
            node.recording = node.record_in_eval = True
            node.activity = Activity()
        yield nodes
    finally:
        for name, node in nodes.items():
            node.recording, node.record_in_eval, node.activity = kept[name]


@contextmanager
def temporarily_silent(net: nn.Module) -> Iterator[None]:
    """Let no node record for a while."""
    kept = {node: node.recording for node in sensors(net).values()}
    try:
        for node in kept:
            node.recording = False
        yield
    finally:
        for node, recording in kept.items():
            node.recording = recording
