"""What a wrapper shows of its run, to be read."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from sj_prune.masks.manager import MaskManager
from sj_prune.network.layers import Layer
from sj_prune.neurons.convert import Sensor, sensors
from sj_prune.run import looks
from sj_prune.run.anatomy import layers_of
from sj_prune.run.history import UpdateRecord
from sj_prune.run.session import Session


class Shown(nn.Module):
    """Read-only facts of a session."""

    session: Session

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Set an attribute.

        Raises:
            RuntimeError: for another network than the wrapped one, which would never be pruned.
        """
        known = self.__dict__.get("session")
        if name == "net" and known is not None:
            parts = value.modules() if isinstance(value, nn.Module) else ()
            # One around it (torch.compile, DistributedDataParallel) holds the same parameters.
            if "net" in self._modules and all(part is not known.net for part in parts):
                raise RuntimeError(
                    "Expected model.net to stay the network that was wrapped but another one was "
                    "assigned: load its weights (model.net.load_state_dict(other.state_dict())), "
                    "or wrap it anew with sj_prune.PruningWrapper(other, method)"
                )
        super().__setattr__(name, value)

    @property
    def masks(self) -> MaskManager:
        """The masks, by layer or norm."""
        return self.session.run.masks

    @property
    def step(self) -> int:
        """Completed steps of the optimizer that owns the masked weights."""
        return self.session.run.step

    @property
    def seed(self) -> int:
        """Of every random choice."""
        return self.session.run.seed

    @property
    def history(self) -> list[UpdateRecord]:
        """One record a mask update."""
        return self.session.run.history

    @property
    def optimizers(self) -> list[Optimizer]:
        """The attached optimizers."""
        return self.session.hooks.optimizers

    @property
    def nodes(self) -> dict[str, Sensor]:
        """What records of every neuron layer, by name: a recording node, or an observer."""
        return sensors(self.session.net)

    @property
    def layers(self) -> dict[str, Layer]:
        """The prunable layers by name."""
        return layers_of(self.session.net, self.session.run)

    def sparsity(self) -> dict[str, float]:
        """Return the pruned fraction of each prunable layer, and of all under ``"total"``.

        For `Channels` of each norm's channels; ``"total"`` counts coupled channels once.
        """
        return looks.applied(self.session).masks.sparsity()
