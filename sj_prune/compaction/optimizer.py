"""The optimizer of a smaller network: the same run, its slots cut like the parameters."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.compaction.build import Index
from sj_prune.compaction.network import build_compact
from sj_prune.compaction.owned import cut_slot, owned_optimizers


def compact_with_optimizer(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    example_input: Any,  # noqa: ANN401
    *,
    skip: Collection[str] = (),
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a smaller network and an optimizer that goes on training it.

    Training goes on as that of the masked network would: momentum, Adam's moments and step counts
    are taken over, cut where the parameter was cut. Hooks of the old optimizer and learning rate
    schedulers stay with the old one. A scheduler is built anew and takes over the old one's state;
    since building it starts the learning rates from the beginning, the optimizer's state is put
    back after that::

        small, new = compact_with_optimizer(net, optimizer, x_seq)
        state = new.state_dict()
        following = StepLR(new, ...)  # with the arguments of the old one
        following.load_state_dict(scheduler.state_dict())
        new.load_state_dict(state)

    Args:
        net: as in `compact`.
        optimizer: what has trained it. Parameters that are not of `net` are kept as they are.
        example_input: as in `compact`.
        skip: as in `compact`.

    Returns:
        The smaller network, and an optimizer of the same class with the same parameter groups and
        settings, in the same order.

    Raises:
        TypeError: if `optimizer` is none, or `net` is no plain network.
        ValueError: if it holds no parameter of `net`.
        CompactionError: as in `compact`; or if a slot cannot be cut because it has not the shape
            of its parameter (factored moments, LBFGS).
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"Expected optimizer to be a torch.optim.Optimizer but got {type(optimizer).__name__}"
        )
    small, kept = build_compact(net, example_input, skip=skip)
    names = {id(p): name for name, p in net.named_parameters()}
    if not any(id(p) in names for p in _parameters(optimizer)):
        raise ValueError(
            "Expected an optimizer of the network's parameters but it holds none of them: pass the "
            "one that trained this network, not one of a copy"
        )
    mine = next((key for key, o in owned_optimizers(net).items() if o is optimizer), None)
    if mine is not None:  # the network's own: its copy owns the one that goes on
        return small, owned_optimizers(small)[mine]
    return small, _transplanted(optimizer, names, dict(small.named_parameters()), kept)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _transplanted(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    small: Mapping[str, Tensor],
    kept: Mapping[str, Index],
) -> torch.optim.Optimizer:
    """Copy an optimizer the way it is pickled, with other parameters in it."""
    known = list(_parameters(optimizer))
    # Parameters are not copied but replaced, wherever in the optimizer they stand.
    memo: dict[int, Any] = {id(p): small[names[id(p)]] if id(p) in names else p for p in known}
    content = copy.deepcopy(optimizer.__getstate__(), memo)
    for p in known:
        stays = kept.get(names.get(id(p), ""), ())
        if any(keep is not None for keep in stays):
            slots = content["state"].get(memo[id(p)], {})
            for key, value in slots.items():
                slots[key] = cut_slot(key, value, p, stays, names[id(p)])
    new = type(optimizer).__new__(type(optimizer))
    new.__setstate__(content)
    for key, value in vars(optimizer).items():  # what a subclass keeps beside its state
        if key not in vars(new) and not callable(value):
            vars(new)[key] = copy.deepcopy(value, memo)
    return new
