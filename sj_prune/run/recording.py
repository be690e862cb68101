"""Lets the neurons record what a plan needs, in the window before an update only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sj_prune.network.topology import Topology
from sj_prune.neurons.convert import recording_nodes
from sj_prune.run.anatomy import ensure_topology
from sj_prune.run.state import Run

__all__ = ["Recorder", "in_window", "switch"]


@dataclass
class Recorder:
    """What the neurons have been told.

    Attributes:
        now: record whatever the schedule says; a user's block sets it.
        switched: what `switch` has told them last, and by which topology.
    """

    now: bool = False
    switched: tuple[bool, Topology | None] | None = None


def in_window(run: Run, attached: bool) -> bool:
    """Tell whether what is recorded now is for the next scheduled update.

    Args:
        run: the run.
        attached: an optimizer is.
    """
    due = run.plan.schedule.next_due(run.step) if attached else None
    window = run.plan.window
    return due is not None and (window is None or due - run.step <= window)


def switch(net: nn.Module, run: Run, recorder: Recorder, attached: bool) -> None:
    """Switch recording on or off, as the schedule says; what a user has set by hand since stays."""
    wanted = bool(run.plan.statistics) and (not attached or in_window(run, attached))
    window = recorder.now or wanted
    if window and run.anatomy.topology is None and run.anatomy.inputs is not None:
        # Compiled forwards alone so far: the trace allocates the sums that the next one adds to,
        # else it would be compiled twice, without and with them.
        ensure_topology(net, run)
    topology = run.anatomy.topology
    if recorder.switched is not None:
        before, known = recorder.switched
        if before == window and known is topology:
            return
    recorder.switched = (window, topology)
    facts = {} if topology is None else topology.facts
    for name, node in recording_nodes(net).items():
        record = window and (name not in facts or facts[name].problem is None)
        if record and not node.recording:
            node.activity.clear()
        node.recording = record
