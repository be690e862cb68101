"""Lets the neurons record what a plan needs, in the window before an update only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sj_prune.network.facts import Topology
from sj_prune.neurons.convert import sensor_of, sensors
from sj_prune.run.anatomy import ensure_topology
from sj_prune.run.state import Run


@dataclass
class Recorder:
    """What the neurons have been told.

    Attributes:
        now: record whatever the schedule says; a user's block sets it.
        switched: what `switch` has told them last, and by which topology.
        stepping: neurons that get single steps: a pass over time ends with the optimizer's step.
    """

    now: bool = False
    switched: tuple[bool, Topology | None] | None = None
    stepping: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "now": False}  # a copy is in no block


def in_window(run: Run, attached: bool) -> bool:
    """Tell whether what is recorded now is for the next scheduled update.

    Args:
        run: the run.
        attached: an optimizer is.
    """
    due = run.plan.schedule.next_due(run.step) if attached else None
    window = run.plan.window
    return due is not None and (window is None or due - run.step <= window)


def close_passes(net: nn.Module, recorder: Recorder) -> None:
    """End the pass over time of neurons that get single steps."""
    for name in recorder.stepping:
        sensor = sensor_of(net.get_submodule(name))
        if sensor is not None:
            sensor.close_pass()


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
    recorder.stepping = tuple(name for name, fact in facts.items() if fact.steps)
    for name, node in sensors(net).items():
        record = window and (name not in facts or facts[name].problem is None)
        if record and not node.recording:
            node.activity.clear()
        node.recording = record
