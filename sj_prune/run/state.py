"""The state of a run: all of it, in one place, without behavior.

What is here is plain and can be copied, but for the masks, which find the network's parameters
anew at each look. Optimizers and hooks are in `run/hooks.py`; a copy has none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sj_prune.masks.manager import MaskManager
from sj_prune.methods.plan import Plan
from sj_prune.network.coupling import Coupling
from sj_prune.network.facts import Topology
from sj_prune.run.history import UpdateRecord
from sj_prune.run.meter import Meter


@dataclass
class Anatomy:
    """What forwards have told of the network. `run/anatomy.py` writes it.

    Attributes:
        inputs: shapes of positional and keyword inputs; None before any forward.
        topology: which norms and neurons follow a layer; None before an eager forward.
        coupling: which channels live and die together; None for single weights, and before that.
        scoring: layer -> neuron layers that score it -> which of their channels are whose.
        dense: layer -> why it, or a part of it, stays as it is.
        places: layer -> how many places of its input each weight meets, of those that the first
            forward has run; empty before one has told. `run/idle.py`.
    """

    inputs: tuple[Any, Any] | None = None
    topology: Topology | None = None
    coupling: Coupling | None = None
    scoring: dict[str, dict[str, Tensor | None]] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)
    places: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """What pruning knows of a run.

    Who makes it (`run/wrapping.py`) or loads it (`run/checkpoint.py`) writes everything; beside
    these each field has the one writer that is named with it.

    Attributes:
        plan: what to do; nobody.
        identity: name and settings of the method, as plain values; nobody.
        layers: names of the layers that may be pruned; nobody.
        seed: of every random choice; nobody.
        masks: which units are kept; `run/anatomy.py` replaces them when channels are known.
        anatomy: what forwards have told; `run/anatomy.py`.
        step: completed steps of the optimizer that owns masked weights; `run/step.py`.
        draws: mask updates so far, which seed the next; `run/install.py`.
        memory: the plan's own tensors, by layer and name: made by `run/views.py`, whose views hand
            them to the plan; scores of sleeping channels and ages of grown units are there too.
        network_memory: its tensors of the whole network; its penalties.
        meter: of the SynOps of training forwards, where a penalty reads them; `run/spikes.py`.
        previous: masks at the last record where sparsity emerges; `run/install.py`.
        regrown: flat indices of the units that the last update grew, by scope; None before any;
            `run/install.py`.
        history: one record a mask update; `run/install.py`.
        said: what has been said once and is not said again; whoever says it.
    """

    plan: Plan
    identity: dict[str, Any]
    layers: tuple[str, ...]
    seed: int
    masks: MaskManager
    anatomy: Anatomy = field(default_factory=Anatomy)
    step: int = 0
    draws: int = 0
    memory: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    network_memory: dict[str, Tensor] = field(default_factory=dict)
    meter: Meter | None = None
    previous: dict[str, Tensor] = field(default_factory=dict)
    regrown: dict[str, Tensor] | None = None
    history: list[UpdateRecord] = field(default_factory=list)
    said: set[str] = field(default_factory=set)
