"""A PyTorch Lightning callback that prunes a network of a LightningModule while it trains."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from sj_prune.run.damage import EXTRA_STATE
from sj_prune.run.hooks import owned_parameters
from sj_prune.wrapper import PruningWrapper

_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _library() -> Any:  # noqa: ANN401
    """Return the library whose Trainer is used: the one that is loaded already, if one is."""
    for name in sorted(_NAMES, key=lambda name: name not in sys.modules):
        if (found := _optional(name)) is not None:
            return found
    raise ImportError(
        "Expected PyTorch Lightning for LightningPruning but neither 'lightning' nor "
        "'pytorch_lightning' is installed: pip install lightning"
    )


def _optional(name: str) -> Any:  # noqa: ANN401
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # it is installed, and something that it needs is not
        return None


_lightning = _library()


class LightningPruning(_lightning.Callback):  # type: ignore[misc, name-defined]
    """Prunes one network of a LightningModule; its `training_step` stays as it is.

    ::

        method = sj_prune.methods.Criticality(sparsity=0.95, interval=500, end=10_000)
        pruning = sj_prune.integrations.LightningPruning(method, attribute="net")
        trainer = lightning.Trainer(callbacks=[pruning])
        trainer.fit(module)                 # module.net is a PruningWrapper from here on
        net = pruning.finalize(module)      # and a stock network again

    The network is wrapped when a run sets up, before optimizers are configured, and each optimizer
    that holds its parameters is attached. Checkpoints of the Trainer hold masks, step and
    statistics with the weights; ``fit(module, ckpt_path=...)`` goes on from there with as many
    devices as there are then.

    Args:
        method: what to drop and grow, and when, in optimizer steps.
        attribute: name of the network in the module; dots lead into submodules.
        skip: names of layers, or of modules with layers in them, that stay dense.
        seed: of every random choice, the same on all devices.
        example_input: one input of the network; by default the first forward tells.
        log_as: name under which the sparsity is logged; None: it is not.
    """

    def __init__(
        self,
        method: Any,  # noqa: ANN401
        *,
        attribute: str = "net",
        skip: Iterable[str] = (),
        seed: int = 0,
        example_input: Any = None,  # noqa: ANN401
        log_as: str | None = "sparsity",
    ) -> None:
        super().__init__()
        self.method = method
        self.attribute = attribute
        self.skip = skip
        self.seed = seed
        self.example_input = example_input
        self.log_as = log_as  # Lightning sets `log`
        self._logged: tuple[int, float] = (-1, 0.0)

    def wrapper(self, pl_module: nn.Module) -> PruningWrapper:
        """Return the wrapper in a module that a run has set up.

        Raises:
            TypeError: if there is none.
        """
        found = self._network(pl_module)
        if not isinstance(found, PruningWrapper):
            raise TypeError(
                f"Expected {self.attribute!r} of {type(pl_module).__name__} to be wrapped but it "
                f"is a {type(found).__name__}: a run of the Trainer wraps it; keep it under this "
                "name"
            )
        return found

    def finalize(self, pl_module: nn.Module) -> nn.Module:
        """Put the stock network, zeros burnt in, back into the module; return it."""
        net = self.wrapper(pl_module).finalize()
        self._put(pl_module, net)
        return net

    # ---- hooks of the Trainer ------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:  # noqa: ANN401
        """Wrap the network, in runs without training too: a checkpoint is loaded into a wrapper."""
        net = self._network(pl_module)
        if not isinstance(net, PruningWrapper):
            wrapped = PruningWrapper(
                net,
                self.method,
                skip=self.skip,
                seed=self.seed,
                example_input=self.example_input,
            )
            self._put(pl_module, wrapped)

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:  # noqa: ANN401
        """Attach the optimizers."""
        wrapper = self.wrapper(pl_module)
        mine = {id(p) for p in wrapper.parameters()}
        optimizers = [_bare(optimizer) for optimizer in trainer.optimizers]
        held = [o for o in optimizers if any(id(p) in mine for p in owned_parameters(o))]
        if not held:
            raise ValueError(
                f"Expected an optimizer over the parameters of {self.attribute!r} but none of the "
                f"{len(optimizers)} that configure_optimizers returned holds any: build it with "
                "self.parameters()"
            )
        for optimizer in held:
            wrapper.attach(optimizer)

    def on_train_batch_end(
        self,
        trainer: Any,  # noqa: ANN401
        pl_module: Any,  # noqa: ANN401
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Log the sparsity."""
        if self.log_as is None:
            return
        wrapper = self.wrapper(pl_module)
        updates = len(wrapper.history)
        if updates != self._logged[0]:  # counting waits for the device
            self._logged = (updates, wrapper.sparsity()["total"])
        pl_module.log(self.log_as, self._logged[1], on_step=True, on_epoch=False)

    def on_save_checkpoint(
        self,
        trainer: Any,  # noqa: ANN401
        pl_module: nn.Module,
        checkpoint: dict[str, Any],
    ) -> None:
        """Let the checkpoint hold what all devices have recorded."""
        wrapper = self.wrapper(pl_module)
        wrapper.gather_statistics()
        key = f"{self.attribute}.{EXTRA_STATE}"
        if key in checkpoint.get("state_dict", {}):
            checkpoint["state_dict"][key] = wrapper.get_extra_state()

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:  # noqa: ANN401
        """Release the optimizers: another fit has its own."""
        wrapper = self._network(pl_module)
        if isinstance(wrapper, PruningWrapper):
            for optimizer in wrapper.optimizers:
                wrapper.release(optimizer)

    # ---- the network's place -------------------------------------------------------------------

    def _network(self, pl_module: nn.Module) -> nn.Module:
        try:
            return pl_module.get_submodule(self.attribute)
        except AttributeError as error:
            known = [name for name, _ in pl_module.named_children()]
            raise AttributeError(
                f"Expected a network at attribute={self.attribute!r} of "
                f"{type(pl_module).__name__} but it has {known}: make it in __init__"
            ) from error

    def _put(self, pl_module: nn.Module, net: nn.Module) -> None:
        parent, _, name = self.attribute.rpartition(".")
        setattr(pl_module.get_submodule(parent), name, net)


def _bare(optimizer: Any) -> Any:  # noqa: ANN401
    """Return the torch optimizer inside a LightningOptimizer."""
    wrapped = _lightning.core.optimizer.LightningOptimizer
    return optimizer.optimizer if isinstance(optimizer, wrapped) else optimizer
