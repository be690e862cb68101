"""Masks held around a step of an optimizer: by its gradients alone, where that is enough.

Where gradient, weight and slot are 0, a step of the optimizers named here leaves weight and slot at
0: it is *still* there. The step before left them so, and nobody has written since: versions and
addresses tell of most who do, a sample of those who leave no trace. After any other step weights
and slots are set to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from sj_prune.masks.fill import keep_where, lift_where_not, slots
from sj_prune.masks.manager import MaskManager
from sj_prune.run.hooks import OptimizerHooks, with_inner

# Exactly these classes, and the slots whose roots they take: Adamax and Rprop write into slots
# where gradients are 0, and who knows what a subclass does.
_ROOTS: dict[type[Optimizer], tuple[str, ...]] = {
    optim.SGD: (),
    optim.Adam: ("exp_avg_sq", "max_exp_avg_sq"),
    optim.AdamW: ("exp_avg_sq", "max_exp_avg_sq"),
    optim.NAdam: ("exp_avg_sq",),
    optim.RAdam: ("exp_avg_sq",),
    optim.RMSprop: ("square_avg",),
    optim.Adagrad: ("sum",),
    optim.Adadelta: (),
}


@dataclass(frozen=True)
class Marks:
    """Two of them are equal if masks, weights and slots have not been written in between.

    Attributes:
        signs: identity, version and address of each.
        kept: what is identified, so that nothing new takes its place.
    """

    signs: list[tuple[int, int, int]]
    kept: list[Any] = field(compare=False)


def before_step(masks: MaskManager, keys: Sequence[str], hooks: OptimizerHooks) -> None:
    """Mask the gradients of a step, and see whether that is enough."""
    masks.mask_gradients(keys)
    hooks.still = hooks.marks is not None and hooks.marks == _marks(masks, keys, hooks)
    if hooks.still:
        held = masks.elements(keys)
        found = [value for each in held for value in each.sample(masks.alive, [hooks.optimizer])]
        hooks.still = not found or not torch.cat(found).any()
    if hooks.still:
        # The vector library takes six times as long for the root of 0 as for that of 1.
        _write_roots(masks, keys, hooks.optimizer, lift_where_not)


def after_step(
    masks: MaskManager, keys: Sequence[str], hooks: OptimizerHooks, *, written: bool
) -> None:
    """Hold weights and slots after a step.

    Args:
        masks: of the network.
        keys: of the parameters that the optimizer moves.
        hooks: on the optimizer.
        written: weights are written after every step, whatever it leaves.
    """
    if hooks.still:
        _write_roots(masks, keys, hooks.optimizer, keep_where)
    else:
        masks.enforce(keys, with_inner([hooks.optimizer]))
    hooks.marks = None if written else _marks(masks, keys, hooks)


def _write_roots(
    masks: MaskManager,
    keys: Sequence[str],
    optimizer: Optimizer,
    write: Callable[[Tensor, Tensor], object],
) -> None:
    """Call ``write(slot, kept)`` on the slots whose roots that library takes in a step."""
    names = _ROOTS[type(optimizer)]
    if names and not any(group.get("fused") for group in optimizer.param_groups):
        for held in masks.elements(keys):
            for slot in slots([optimizer], held.place.parameter, names):
                if slot.device.type == "cpu":
                    write(slot, masks.alive(held.scope))


def _marks(masks: MaskManager, keys: Sequence[str], hooks: OptimizerHooks) -> Marks | None:
    """Return the marks of these weights and their slots; None if a step may write where 0 is."""
    optimizer = hooks.optimizer
    if not (
        type(optimizer) in _ROOTS
        and hooks.alone
        and with_inner([optimizer]) == [optimizer]
        and all(map(_divides_by_more_than_0, optimizer.param_groups))
        and len(masks.elements(keys)) == len(keys)
    ):
        return None
    tensors = [t for held in masks.elements(keys) for t in held.touched([optimizer])]
    signs = [(id(t), t._version, t.data_ptr()) for t in tensors]
    return Marks([(id(masks), masks.changes, 0), *signs], [masks, *tensors])


def _divides_by_more_than_0(group: dict[str, Any]) -> bool:
    """Tell whether no step of a group takes 0 / 0: eps has to count in the parameters' type."""
    if group.get("capturable"):
        return False  # divides by the learning rate
    kinds = {p.dtype for p in group["params"]}
    return all(group.get("eps", 1.0) >= torch.finfo(kind).tiny for kind in kinds)
