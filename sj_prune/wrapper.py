"""PruningWrapper: puts sensing, deciding and acting around a SpikingJelly network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from sj_prune.reports.explain import Explanation, explain
from sj_prune.reports.measured import report
from sj_prune.reports.report import Report
from sj_prune.run import checkpoint, looks, step, wrapping
from sj_prune.run.shown import Shown
from sj_prune.run.update import update_now


class PruningWrapper(Shown):
    """Prunes and regrows a network while the user's own loop trains it.

    ::

        model = sj_prune.PruningWrapper(net, method)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model.attach(optimizer)   # the training loop stays as it is
        ...
        net = model.finalize()    # stock SpikingJelly network, zeros burnt in

    The stock IF, LIF and PLIF nodes of `net` become recording nodes, in place.

    Args:
        net: any SpikingJelly network, in multi-step mode where a method reads its neurons.
        method: what to drop and grow, and when: an instance from `sj_prune.methods`, a
            `sj_prune.methods.Plan`, or anything with a ``plan()``.
        example_input: one input (a tensor, or a tuple of positional inputs) to learn which neurons
            a weight feeds; by default the first forward tells.
        skip: names of layers, or of modules with layers in them, that stay dense.
        seed: of every random choice.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: for unknown names in `skip`, a network with nothing to prune, a sparsity that
            would empty a layer. The network is untouched then.
    """

    is_pruning_wrapper = True

    def __init__(
        self,
        net: nn.Module,
        method: Any,  # noqa: ANN401
        *,
        example_input: Any = None,  # noqa: ANN401
        skip: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.method = method
        self.session, self._swapped = wrapping.wrap(net, method, skip, seed)
        self.net = net
        # After the weights, wherever in a larger module this wrapper is loaded.
        self.register_load_state_dict_post_hook(_settle)
        try:
            if example_input is not None:
                step.learn_now(self.session, example_input)
            wrapping.start(self.session)
        except Exception:
            self.discard()
            raise

    def discard(self) -> None:
        """Take hooks and recording nodes off the network and leave its weights as they are now.

        The wrapper refuses further use.
        """
        wrapping.discard(self.session, self._swapped)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what the network returns."""
        self._check_usable()
        step.before_forward(self.session, args, kwargs)
        return self.net(*args, **kwargs)

    def _check_usable(self) -> None:
        if self.session.closed:
            raise RuntimeError(
                "Expected a wrapper in use but finalize() was called, or the network is wrapped "
                "anew: go on with the network that finalize() returned or with the new wrapper, or "
                "wrap it anew with sj_prune.PruningWrapper(net, method)"
            )

    # ---- training ------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer, *, scaler: Any = None) -> PruningWrapper:  # noqa: ANN401
        """Let mask updates happen inside ``optimizer.step()``; several may be attached.

        `step` counts the steps of the first attached optimizer that owns a masked weight, those
        that a GradScaler skips left out. Attaching one twice changes nothing. Attach several in the
        order in which they step, and on every rank: see docs/distributed.md.

        `scaler`: the GradScaler of the loss, where penalties act on spikes; the same at each call.

        Returns:
            The wrapper.

        Raises:
            TypeError: if it is not a `torch.optim.Optimizer`, or if parameters are split over
                processes (FSDP, DTensor).
            ValueError: if it holds none of this network's parameters.
            RuntimeError: after `finalize`; if method, seed, step or masks differ between ranks.
        """
        self._check_usable()
        wrapping.check_optimizer(self.net, optimizer)
        if all(known is not optimizer for known in self.optimizers):
            self.session.agreement.check_start()
            step.attach(self.session, optimizer, scaler)
        return self

    def release(self, optimizer: Optimizer) -> None:
        """Take the hooks off an attached optimizer, so that another one can go on.

        Step and masks stay. Releasing one that is not attached does nothing.
        """
        self._check_usable()
        self.session.hooks.release(optimizer)
        step.switch_recording(self.session)

    def dense_gradients(self) -> AbstractContextManager[None]:
        """Keep the gradients of pruned weights inside this block, for a manual `update_masks`.

        Between its scheduled updates a method such as RigL sees masked gradients only.
        """
        self._check_usable()
        return step.dense_gradients(self.session)

    def recording(self) -> AbstractContextManager[None]:
        """Record afresh inside this block, for a manual `update_masks` between scheduled ones.

        ::

            with model.recording():
                model(x_seq)
            model.update_masks()
        """
        self._check_usable()
        return step.recording(self.session)

    def update_masks(self, sparsity: float | None = None) -> None:
        """Update the masks now; the step counter stays as it is.

        Args:
            sparsity: to reach; the method's final one by default.

        Raises:
            RuntimeError: without the statistics or gradients that the method needs, naming where.
            ValueError: for a sparsity out of reach. Network and optimizer are untouched then.
        """
        self._check_usable()
        update_now(self.session, sparsity)
        step.switch_recording(self.session)

    # ---- seeing --------------------------------------------------------------------------------

    def explain(self, example_input: Any = None) -> Explanation:  # noqa: ANN401
        """Return a table of what will be pruned and why, before training.

        Args:
            example_input: one input, if neither the constructor nor a forward has seen one yet.
        """
        self._check_usable()
        step.learn_now(self.session, example_input)
        return explain(self.net, self.session.run)

    def report(self, example_input: Any) -> Report:  # noqa: ANN401
        """Return sizes, sparsity, activity and cost per layer, before -> after.

        Args:
            example_input: a batch to measure spikes on, as the network takes it.
        """
        self._check_usable()
        return report(self.net, looks.reported(self.session), example_input)

    # ---- state ---------------------------------------------------------------------------------

    def gather_statistics(self) -> None:
        """Let rank 0 have what all ranks have recorded, before it saves a checkpoint.

        Every rank calls it; what the next update sees stays the same. Without it a checkpoint
        holds what its own rank has recorded. With one process it does nothing.
        """
        self._check_usable()
        self.session.agreement.gather_statistics()

    def get_extra_state(self) -> dict[str, Any]:
        """Return masks, step, statistics and generator, as plain values and tensors."""
        self._check_usable()
        return checkpoint.extra_state(self.net, looks.applied(self.session))

    def set_extra_state(self, state: Any) -> None:  # noqa: ANN401
        """Take over what `get_extra_state` returned; `load_state_dict` has checked it."""
        run = self.session.run
        state = checkpoint.load_extra_state(self.net, run, self.method, state)
        step.switch_recording(self.session)  # clears what is switched on: statistics come after
        checkpoint.load_statistics(self.net, run, state)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # noqa: ANN401
        """Load network, masks, step, statistics and generator; training goes on bit-identically.

        Raises:
            ValueError: for one of another method or architecture, naming the key; nothing changes.
        """
        self._check_usable()
        mine = self.state_dict()
        checkpoint.check(self.net, self.session.run, self.method, mine, state_dict, strict)
        if assign and self.optimizers:
            raise ValueError(
                "Expected assign=False once an optimizer is attached, which holds the present "
                "parameters, but got assign=True: load first, then build and attach the optimizer"
            )
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        step.hide_gradients(self.session)  # of other parameters, with assign
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self.session.closed:
            step.switch_recording(self.session)

    def finalize(self) -> nn.Module:
        """Remove all hooks, bring stock classes back, burn the zeros in; return the network.

        Where a method learned gates of neurons, a `sj_prune.neurons.SpikeGate` stays behind these.
        The wrapper refuses further use.
        """
        self._check_usable()
        wrapping.finalize(self.session)
        return self.net


def _settle(wrapper: PruningWrapper, _: Any) -> None:  # noqa: ANN401
    """Make loaded weights true to the loaded masks."""
    if not wrapper.session.run.plan.emergent:
        wrapper.masks.settle()
        wrapper.masks.enforce(None, wrapper.session.hooks.slot_owners)
