"""What is compared: methods, the controls of their criterion, and options that are ours.

A permuted control has the scores of its method, of the same layers, given to other channels: as
many weights grow in each layer, and as many tie. It differs by the criterion alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sj_prune.masks import ERK, Cubic
from sj_prune.masks.allocation import Allocation
from sj_prune.methods import CQP, SCA, Criticality, Magnitude
from sj_prune.methods.parts import Reads, Score, reads_of
from sj_prune.methods.view import LayerView

SPARSITY = 0.95  # of the comparison; REGROW is what the paper pairs it with
REGROW = 0.1


@dataclass(frozen=True)
class When:
    """When masks change: optimizer steps since the network was wrapped.

    Attributes:
        interval: between updates.
        end: of the last one.
        channels: between updates of channels.
    """

    interval: int
    end: int
    channels: int


@dataclass(frozen=True)
class Permuted:
    """Another score, permuted among the channels of each layer, anew at every update."""

    score: Score

    @property
    def reads(self) -> Reads:
        """What the score reads."""
        return reads_of(self.score)

    def __call__(self, layer: LayerView) -> Tensor | None:
        """Return the permuted score, ``[C_out]``."""
        found = self.score(layer)
        if found is None:
            return None
        order = torch.randperm(len(found), generator=layer.generator, device=found.device)
        return found[order]


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared.

    Attributes:
        title: in tables.
        method: of the times of its updates, a method or plan; None: dense.
        control: name of the arm that shows what its criterion adds.
        is_control: whether it is there for others to be compared with.
        beside: name of the arm that divides weights over layers as it does, without regrowth.
    """

    title: str
    method: Callable[[When], Any] | None
    control: str | None = None
    is_control: bool = False
    beside: str = "magnitude"


def _magnitude(sparsity: float = SPARSITY, **fields: Any) -> Callable[[When], Any]:
    return lambda when: Magnitude(sparsity=sparsity, interval=when.interval, end=when.end, **fields)


def _criticality(
    *,
    regrow: float = REGROW,
    permuted: bool = False,
    decays: bool = False,
    allocation: Allocation | None = None,
    **fields: Any,
) -> Callable[[When], Any]:
    """Return what makes a plan of criticality.

    Args:
        regrow: the ratio r.
        allocation: of what the drop leaves; the paper's is global.
        permuted: the control.
        decays: r falls to 0 as the sparsity rises, ``r (1 - t/n)^3``.
        fields: others of `Criticality`.
    """

    def build(when: When) -> Any:
        settings = {"sparsity": SPARSITY, "regrow": regrow, **fields}
        plan = Criticality(**settings, interval=when.interval, end=when.end).plan()
        grow = plan.grow
        if permuted:
            grow = replace(grow, score=Permuted(grow.score))
        if decays:
            fall = Cubic(initial=regrow, final=0.0, interval=when.interval, end=when.end)
            grow = replace(grow, fraction=fall)
        return replace(plan, grow=grow, allocation=allocation or plan.allocation)

    return build


def _sca(sparsity: float) -> Callable[[When], Any]:
    # Rarely (published: once an epoch); its own growth, q = 0.1 of all channels.
    return lambda when: SCA(
        sparsity=sparsity,
        interval=when.channels,
        end=when.end // when.channels * when.channels,
    )


KEEPS = {"keeps_value": True}

#: name -> what is compared at 95 %, the most wanted first
ARMS = {
    "magnitude": Arm("Magnitude", _magnitude()),
    "published": Arm("Criticality as published", _criticality(), "published-permuted"),
    "published-permuted": Arm(
        "as published, scores permuted", _criticality(permuted=True), is_control=True
    ),
    "keeps": Arm("keeps_value", _criticality(**KEEPS), "keeps-permuted"),
    "keeps-permuted": Arm(
        "keeps_value, scores permuted", _criticality(permuted=True, **KEEPS), is_control=True
    ),
    "keeps-layer": Arm('keeps_value, normalize="layer"', _criticality(normalize="layer", **KEEPS)),
    "keeps-r0.03": Arm("keeps_value, r = 0.03", _criticality(regrow=0.03, **KEEPS)),
    "keeps-r0.01": Arm("keeps_value, r = 0.01", _criticality(regrow=0.01, **KEEPS)),
    "keeps-r0.2": Arm("keeps_value, r = 0.2", _criticality(regrow=0.2, **KEEPS)),
    "keeps-r0.03-decays": Arm(
        "keeps_value, r = 0.03 decays", _criticality(regrow=0.03, decays=True, **KEEPS)
    ),
    "keeps-r0.01-decays": Arm(
        "keeps_value, r = 0.01 decays", _criticality(regrow=0.01, decays=True, **KEEPS)
    ),
    "keeps-r0.2-decays": Arm(
        "keeps_value, r = 0.2 decays", _criticality(regrow=0.2, decays=True, **KEEPS)
    ),
    "mean": Arm("aggregate by the mean", _criticality(aggregate="mean")),
    "grace": Arm("grace of one update", _criticality(grace=1)),
    "cqp": Arm(
        "CQP: criticality in the drop",
        lambda when: CQP(sparsity=SPARSITY, interval=when.interval, end=when.end),
    ),
    "magnitude-erk": Arm("Magnitude, ERK", _magnitude(allocation=ERK()), is_control=True),
    "keeps-erk": Arm(
        "keeps_value within layers, ERK",
        _criticality(allocation=ERK(), normalize="layer", **KEEPS),
        beside="magnitude-erk",
    ),
    "dense": Arm("dense", None),
}

#: name -> what the real training compares; `regrow` as the paper pairs it with the sparsity
TRAINED = {
    "dense": ARMS["dense"],
    "magnitude-90": Arm("Magnitude, 90 %", _magnitude(0.9)),
    "criticality-90": Arm("Criticality, 90 %", _criticality(sparsity=0.9, regrow=0.2)),
    "sca-50": Arm("SCA, half the channels", _sca(0.5)),
    "magnitude-98": Arm("Magnitude, 98 %", _magnitude(0.98)),
    "criticality-98": Arm("Criticality, 98 %", _criticality(sparsity=0.98, regrow=0.01)),
}
