"""The life of one optimizer step: updates, penalties, masked gradients, strict masks."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from sj_prune.methods.base import Method
from sj_prune.run.hooks import OptimizerHooks, owned_parameters, unscale_

if TYPE_CHECKING:
    from sj_prune.wrapper import PruningWrapper

__all__ = ["Stepping"]


class Stepping:
    """Hooks of a wrapper on its optimizers and on the weights' gradients.

    A copy holds neither: a deepcopy or pickle of an attached wrapper is detached.

    Args:
        wrapper: the wrapper that it works for.
    """

    def __init__(self, wrapper: PruningWrapper) -> None:
        self.wrapper = wrapper
        self.force_dense = False
        self._attached: list[OptimizerHooks] = []
        self._leaf_hooks: list[Any] = []
        self.hook_leaves()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_attached": [], "_leaf_hooks": []}

    @property
    def optimizers(self) -> list[Optimizer]:
        """The attached optimizers."""
        return [hooks.optimizer for hooks in self._attached]

    def attach(self, optimizer: Optimizer) -> None:
        """Hook into `optimizer`."""
        self._attached.append(OptimizerHooks(optimizer, self._before, self._after, self._evaluate))

    def release(self, optimizer: Optimizer) -> None:
        """Take the hooks off one optimizer."""
        for hooks in self._attached:
            if hooks.optimizer is optimizer:
                hooks.remove()
        self._attached = [hooks for hooks in self._attached if hooks.optimizer is not optimizer]

    def remove(self) -> None:
        """Take all hooks off."""
        for hooks in self._attached:
            hooks.remove()
        for handle in self._leaf_hooks:
            handle.remove()
        self._attached, self._leaf_hooks = [], []

    # ---- gradients of pruned weights -----------------------------------------------------------

    def hook_leaves(self) -> None:
        """Hide the gradients of pruned entries from here on, before anybody clips them."""
        for handle in self._leaf_hooks:
            handle.remove()
        self._leaf_hooks = [
            parameter.register_hook(partial(self._gate, name))
            for name, parameter in self.wrapper.masks.gated().items()
            if parameter.requires_grad
        ]

    def _gate(self, name: str, grad: Tensor) -> Tensor:
        dense = self._wants_dense_gradient()
        self.wrapper.updater.gradient_is_dense[name] = dense
        return grad if dense else self.wrapper.masks.zero_pruned(name, grad)

    def _wants_dense_gradient(self) -> bool:
        method = self.wrapper.method
        if self.force_dense or method.gradient == "always":
            return True
        if method.gradient == "never":
            return False
        return not self._attached or method.schedule.due(self.wrapper.step + 1)

    # ---- around a step -------------------------------------------------------------------------

    def _owned(self, optimizer: Optimizer) -> list[str]:
        """Return the masked parameters that an optimizer moves."""
        owned = {id(p) for p in owned_parameters(optimizer)}
        return [key for key, p in self.wrapper.masks.parameters().items() if id(p) in owned]

    def _layers(self, optimizer: Optimizer) -> list[str]:
        """Return the layers whose weights it moves, which are what a method sees."""
        owned = {id(p) for p in owned_parameters(optimizer)}
        masks = self.wrapper.masks
        return [name for name in masks.layers if id(masks.weight(name)) in owned]

    def _penalized(self, optimizer: Optimizer) -> list[str]:
        """Return the layers whose gradients a method changes before this optimizer steps."""
        if self.wrapper.method.penalizes == "weight":
            return self._layers(optimizer)
        owned = {id(p) for p in owned_parameters(optimizer)}
        gammas = {name: self.wrapper.updater.gamma(name) for name in self.wrapper.masks.layers}
        return [name for name, gamma in gammas.items() if gamma is not None and id(gamma) in owned]

    def _prunable(self, optimizer: Optimizer) -> list[str]:
        """Return the layers that it moves, whether their masks are known or not."""
        owned = {id(p) for p in owned_parameters(optimizer)}
        return [name for name, layer in self.wrapper.layers.items() if id(layer.weight) in owned]

    def _counts(self, optimizer: Optimizer) -> bool:
        """Tell whether this is the first optimizer with a masked weight, whose steps count."""
        for moves in (self._owned, self._prunable):  # groups of channels may not be known yet
            first = next((o for o in self.optimizers if moves(o)), None)
            if first is not None:
                return optimizer is first
        return False

    def _step(self, optimizer: Optimizer) -> int:
        """Return the step call in hand, counted from 1: one that steps later is still in it."""
        counted = False
        for other in self.optimizers:
            if other is optimizer:
                break
            counted = counted or self._counts(other)
        return self.wrapper.step + (not counted)

    def _awaits_update(self, optimizer: Optimizer) -> bool:
        """Tell whether a later step, the counting one, will score this one's dense gradients."""
        method = self.wrapper.method
        due = method.gradient == "update" and method.schedule.due(self.wrapper.step + 1)
        return due and not self._counts(optimizer)

    def _before(self, optimizer: Optimizer, first: bool) -> None:
        wrapper, method = self.wrapper, self.wrapper.method
        wrapper.ensure_masks(optional=True)
        step = wrapper.step + 1
        counts = first and self._counts(optimizer)
        due = counts and method.schedule.due(step)
        penalizes = _overrides(method, "on_gradient")
        observes = first and _overrides(method, "observe") and wrapper.in_scheduled_window()
        if penalizes or observes or (due and method.gradient != "never"):
            unscale_(optimizer)
        if observes:
            for name in self._layers(optimizer):
                method.observe(wrapper.updater.view(name))
        if counts:
            self._decide(step, due)
        if penalizes:
            step = self._step(optimizer)
            # Now, for the update may have brought the masks: of a rank that has seen no batch.
            for name in self._penalized(optimizer):
                method.on_gradient(wrapper.updater.view(name, step))
        if not (method.emergent or self._awaits_update(optimizer)):
            wrapper.masks.mask_gradients(self._owned(optimizer))

    def _decide(self, step: int, due: bool) -> None:
        """Choose or update, if it is time."""
        method = self.wrapper.method
        if method.chooses(step):
            self.wrapper.updater.choose()
        if due:
            self.wrapper.updater.scheduled(step)
        if due and method.skips_step:
            for parameter in chain.from_iterable(map(owned_parameters, self.optimizers)):
                parameter.grad = None

    def _evaluate(self, optimizer: Optimizer) -> None:
        """Mask the weights for an evaluation inside a step: LBFGS moves all along its history."""
        if not self.wrapper.method.emergent:
            self.wrapper.masks.enforce(self._owned(optimizer), ())

    def _after(self, optimizer: Optimizer) -> None:
        wrapper, method = self.wrapper, self.wrapper.method
        names = self._owned(optimizer)
        if _overrides(method, "on_step"):
            for name in self._layers(optimizer):
                method.on_step(wrapper.updater.view(name))
        if method.emergent:
            wrapper.masks.adopt_zeros(names)
        else:
            wrapper.masks.enforce(names, [optimizer])
        if self._counts(optimizer):
            wrapper.count_step()


def _overrides(method: Method, phase: str) -> bool:
    return getattr(type(method), phase) is not getattr(Method, phase)
