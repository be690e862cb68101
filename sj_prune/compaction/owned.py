"""Optimizers and their slots for parameters that have been cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sj_prune.compaction.build import Index, sliced
from sj_prune.compaction.errors import CompactionError


def owned_optimizers(net: nn.Module) -> dict[tuple[Any, ...], Optimizer]:
    """Return the optimizers that modules keep in attributes, or in lists and dicts there.

    Returns:
        (module name, attribute) or (module name, attribute, key) -> optimizer.
    """
    found: dict[tuple[Any, ...], Optimizer] = {}
    for name, module in net.named_modules():
        for attribute, value in vars(module).items():
            for key, each in _items(value):
                if isinstance(each, Optimizer):
                    found[(name, attribute, *key)] = each
    return found


def _items(value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:  # noqa: ANN401
    yield (), value
    if isinstance(value, (list, tuple)):
        yield from (((i,), each) for i, each in enumerate(value))
    elif isinstance(value, dict):
        yield from (((key,), each) for key, each in list(value.items()))


def rebind(
    net: nn.Module, before: Mapping[int, str], kept: Mapping[str, Index] | None = None
) -> None:
    """Let the optimizers that a network owns train its parameters as they are now, in place.

    Args:
        net: whose parameters have been cut.
        before: id of a parameter before that -> its name.
        kept: parameter name -> the indices that stayed; None: slots start anew.

    Raises:
        CompactionError: if a slot cannot be cut.
    """
    now = dict(net.named_parameters(remove_duplicate=False))
    for optimizer in {id(each): each for each in owned_optimizers(net).values()}.values():
        for group in optimizer.param_groups:
            old = group["params"]
            group["params"] = [now[before[id(p)]] if id(p) in before else p for p in old]
            for p, new in zip(old, group["params"], strict=True):
                if new is not p and p in optimizer.state:
                    name = before[id(p)]
                    slots = optimizer.state.pop(p)
                    if kept is None:
                        continue
                    stays = kept.get(name, ())
                    optimizer.state[new] = {
                        key: cut_slot(key, value, p, stays, name) for key, value in slots.items()
                    }


def cut_slot(key: str, value: Any, parameter: Tensor, stays: Index, name: str) -> Any:  # noqa: ANN401
    """Return what stays of an optimizer's slot of a parameter that is cut.

    Raises:
        CompactionError: if it has not the shape of its parameter.
    """
    if not isinstance(value, Tensor) or value.numel() == 1 and value.shape != parameter.shape:
        _refuse_lists(key, value, name)
        return value
    if value.shape != parameter.shape:
        raise CompactionError(
            f"Expected the optimizer's {key!r} of {name} to have the parameter's shape "
            f"{tuple(parameter.shape)} but got {tuple(value.shape)}: it cannot be cut; use "
            "compact(net, example_input) and make a new optimizer"
        )
    return sliced(value, stays)


def _refuse_lists(key: str, value: Any, name: str) -> None:  # noqa: ANN401
    values = value if isinstance(value, (list, tuple)) else ()
    if any(isinstance(each, Tensor) and each.numel() > 1 for each in values):
        raise CompactionError(
            f"Expected the optimizer's {key!r} of {name} to be one tensor but got a "
            f"{type(value).__name__} of tensors: it cannot be cut; use compact(net, "
            "example_input) and make a new optimizer"
        )
