"""Hooks on a user's optimizers, before and after each step, and on the gradients of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def owned_parameters(optimizer: Optimizer) -> list[Tensor]:
    """Return all parameters of an optimizer's groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def unscale_(optimizer: Optimizer) -> None:
    """Divide the gradients by the loss scale that a GradScaler left to a fused optimizer.

    Fused optimizers receive scaled gradients and divide inside their kernel; whoever reads the
    gradients before has to divide first, and tell the kernel that it is done.
    """
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    grads = [p.grad for p in owned_parameters(optimizer) if p.grad is not None]
    for grad in grads:
        grad.div_(scale.to(grad.device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]


def _skips(optimizer: Optimizer) -> bool:
    """Tell whether a fused optimizer will skip this step because of infinite gradients."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found.item())


class OptimizerHooks:
    """Calls `before` once the gradients of a step are there, and `after` when it is done.

    A step that is skipped (AMP) calls neither. With a closure (LBFGS, Lightning) `before` runs
    right after each evaluation of it, with `first` True only once a step.

    Args:
        optimizer: the user's optimizer.
        before: called as ``before(optimizer, first)``.
        after: called as ``after(optimizer)``.
        evaluate: called as ``evaluate(optimizer)`` before a closure runs again in the same step.
        begin: called as ``begin(optimizer)`` before anything else in a step, a closure included.

    Attributes:
        stepped: whether ``step`` has run since the hooks are there, skipped or not.
        marks: what `run/holding.py` knows of weights and slots after the last step.
        still: whether the step in hand leaves pruned weights and slots at 0; it too.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        before: Callable[[Optimizer, bool], None],
        after: Callable[[Optimizer], None],
        evaluate: Callable[[Optimizer], None],
        begin: Callable[[Optimizer], None] = lambda _: None,
    ) -> None:
        self.optimizer = optimizer
        self._before = before
        self._after = after
        self._evaluate = evaluate
        self._begin = begin
        self.stepped = False
        self.marks: Any = None
        self.still = False
        self._closure = False
        self._entered = False
        self._skipped = False
        self._handles = [
            optimizer.register_step_pre_hook(self._pre),
            optimizer.register_step_post_hook(self._post),
        ]

    @property
    def alone(self) -> bool:
        """Whether nobody else acts inside the step in hand: no closure, no hook within these."""
        before = next(reversed(self.optimizer._optimizer_step_pre_hooks))
        after = next(iter(self.optimizer._optimizer_step_post_hooks))
        mine = [handle.id for handle in self._handles]
        return not self._closure and [before, after] == mine

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()

    def _enter(self) -> None:
        first, self._entered = not self._entered, True
        with torch.no_grad():
            self._before(self.optimizer, first)

    def _pre(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._entered, self.stepped, self.still = False, True, False
        self._skipped = _skips(optimizer)
        if self._skipped:
            return None
        with torch.no_grad():
            self._begin(self.optimizer)
        # The hook sees what `step` was called with: (optimizer, closure) or closure=.
        owner, *rest = args
        closure = rest[0] if rest else kwargs.get("closure")
        self._closure = closure is not None
        if closure is None:
            self._enter()
            return None
        wrapped = self._wrap(closure)
        if rest:
            return (owner, wrapped, *rest[1:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _wrap(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def evaluate() -> Any:  # noqa: ANN401
            if self._entered:  # again in the same step: the optimizer has moved the weights
                with torch.no_grad():
                    self._evaluate(self.optimizer)
            loss = closure()
            self._enter()
            return loss

        return evaluate

    def _post(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._entered and not self._skipped:
            with torch.no_grad():
                self._after(optimizer)


def with_inner(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Return optimizers and those that they hold as attributes, where slots may live instead."""
    found: dict[int, Optimizer] = {}
    waiting = list(optimizers)
    while waiting:
        optimizer = waiting.pop(0)
        if id(optimizer) not in found:
            found[id(optimizer)] = optimizer
            for value in vars(optimizer).values():
                several = value if isinstance(value, (list, tuple)) else [value]
                waiting += [each for each in several if isinstance(each, Optimizer)]
    return list(found.values())


@dataclass
class Stepping:
    """Signs that the attached optimizers step. `run/looks.py` writes it.

    Attributes:
        forwards: with gradients, since an optimizer is attached and none has stepped.
        ask_at: number of forwards at which to look whether somebody else moves the weights.
        probe: some weights as they were at the first of them.
        moved: masked parameters that attached optimizers were found to hold, by key.
    """

    forwards: int = 0
    ask_at: int | None = None
    probe: Tensor | None = None
    moved: dict[str, Tensor] = field(default_factory=dict)


class Hooks:
    """Hooks on a user's optimizers and on gradients; a deepcopy or a pickle of it has none.

    Attributes:
        forced_dense: keep all gradients dense, whatever the plan needs.
        gradient_is_dense: parameter key -> whether its last gradient was left dense.
        ever_attached: whether there has ever been an optimizer.
        stepping: signs that the attached ones step.
    """

    def __init__(self) -> None:
        self.forced_dense = False
        self.gradient_is_dense: dict[str, bool] = {}
        self.ever_attached = False
        self.stepping = Stepping()
        self._attached: list[OptimizerHooks] = []
        self._leaves: dict[str, tuple[Tensor, RemovableHandle]] = {}

    def __getstate__(self) -> dict[str, Any]:
        fresh = {"forced_dense": False, "_attached": [], "_leaves": {}, "stepping": Stepping()}
        return {**vars(self), **fresh}

    @property
    def optimizers(self) -> list[Optimizer]:
        """The attached optimizers."""
        return [hooks.optimizer for hooks in self._attached]

    @property
    def slot_owners(self) -> list[Optimizer]:
        """The attached optimizers and those inside them: slots live in any."""
        return with_inner(self.optimizers)

    @property
    def idle(self) -> list[Optimizer]:
        """Those whose ``step`` has not run."""
        return [hooks.optimizer for hooks in self._attached if not hooks.stepped]

    def of(self, optimizer: Optimizer) -> OptimizerHooks:
        """Return the hooks on an attached optimizer."""
        return next(hooks for hooks in self._attached if hooks.optimizer is optimizer)

    def attach(self, hooks: OptimizerHooks) -> None:
        """Keep the hooks on one more optimizer."""
        self._attached.append(hooks)
        self.ever_attached = True

    def release(self, optimizer: Optimizer) -> None:
        """Take the hooks off one optimizer."""
        for hooks in self._attached:
            if hooks.optimizer is optimizer:
                hooks.remove()
        self._attached = [hooks for hooks in self._attached if hooks.optimizer is not optimizer]

    def hide_gradients(
        self, parameters: Mapping[str, Tensor], gate: Callable[[str, Tensor], Tensor]
    ) -> None:
        """Let the gradients of these parameters pass through `gate`, before anybody clips them.

        Called again it follows: parameters that are new, have been replaced, or train now.

        Args:
            parameters: by key.
            gate: called as ``gate(key, grad)``, returns the gradient that is kept.
        """
        wanted = {key: p for key, p in parameters.items() if p.requires_grad}
        for key in [k for k, (p, _) in self._leaves.items() if wanted.get(k) is not p]:
            self._leaves.pop(key)[1].remove()
            self.gradient_is_dense.pop(key, None)  # what comes next is not masked by us
        for key, parameter in wanted.items():
            if key not in self._leaves:
                handle = parameter.register_hook(partial(gate, key))
                self._leaves[key] = (parameter, handle)

    def remove(self) -> None:
        """Take all hooks off."""
        for hooks in self._attached:
            hooks.remove()
        for _, handle in self._leaves.values():
            handle.remove()
        self._attached, self._leaves = [], {}
