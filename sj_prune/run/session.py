"""Session: what works on a run, together; no behavior."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sj_prune.run.agreement import Agreement
from sj_prune.run.hooks import Hooks
from sj_prune.run.recording import Recorder
from sj_prune.run.state import Run


@dataclass
class Session:
    """One network in pruning.

    Attributes:
        net: the network.
        run: the state of its run.
        hooks: on optimizers and gradients.
        agreement: with the other ranks.
        recorder: what the neurons are told to record.
        closed: the wrapper refuses further use: it was finalized, or the network is wrapped anew.
    """

    net: nn.Module
    run: Run
    hooks: Hooks
    agreement: Agreement
    recorder: Recorder
    closed: bool = False
