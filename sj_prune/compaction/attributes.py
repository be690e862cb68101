"""Widths that modules keep as plain ints, such as ``self.hidden`` of an MLP, and reshape with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from sj_prune.compaction.slices import Cut
from sj_prune.network.coupling.groups import Widths
from sj_prune.network.layers import TRANSPOSED, is_weighted
from sj_prune.network.norms import is_channel_norm

_FOLLOWED = "_sj_prune_widths"  # attribute of a smaller module: the paths of its ints that followed
_OF_TORCH = frozenset(vars(nn.Module()))
_SEQUENCES = (list, tuple, torch.Size)


def width_keys(module: nn.Module) -> tuple[str, ...]:
    """Return the attributes of a layer or norm that say how many channels it has, if any leave."""
    if isinstance(module, TRANSPOSED):
        return ()  # never cut
    if isinstance(module, nn.Linear):
        return ("out_features", "in_features")
    if is_weighted(module):
        return ("out_channels", "in_channels", "groups")
    return ("num_features",) if is_channel_norm(module) else ()


def ints_of(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the ints that a module keeps in attributes, or in lists, tuples and dicts there.

    Returns:
        Path and value: ``("hidden", 64)``, ``("shape.1", 64)``. Widths of layers and norms, which
        are cut with their weights, are not among them.
    """
    if is_weighted(module) or is_channel_norm(module):
        return
    for name, value in vars(module).items():
        if name not in _OF_TORCH and name != "_memories":
            yield from _ints(name, value)


def _ints(path: str, value: Any) -> Iterator[tuple[str, int]]:  # noqa: ANN401
    if type(value) is int:
        yield path, value
    elif type(value) in _SEQUENCES:
        for i, each in enumerate(value):
            yield from _ints(f"{path}.{i}", each)
    elif type(value) is dict:
        for key, each in value.items():
            if isinstance(key, str) and "." not in key:
                yield from _ints(f"{path}.{key}", each)


def write_int(module: nn.Module, path: str, value: int) -> None:
    """Replace an int that `ints_of` has found."""
    name, *keys = path.split(".")
    vars(module)[name] = _replaced(vars(module)[name], keys, value)


def _replaced(old: Any, keys: list[str], value: int) -> Any:  # noqa: ANN401
    if not keys:
        return value
    kind = type(old)
    items = dict(old) if kind is dict else list(old)
    key: Any = keys[0] if kind is dict else int(keys[0])
    items[key] = _replaced(items[key], keys[1:], value)
    return kind(items)


def inside(name: str, module: str) -> bool:
    """Tell whether a module is another one or stands inside of it, by their names."""
    return not module or name == module or name.startswith(f"{module}.")


def widths_of(net: nn.Module, cut: Cut) -> dict[str, dict[str, int]]:
    """Return the widths of the modules that a cut makes smaller: name -> attribute -> width."""
    names = dict.fromkeys((*cut.outputs, *cut.norms, *cut.inputs))
    modules = {name: net.get_submodule(name) for name in names}
    return {n: {key: getattr(m, key) for key in width_keys(m)} for n, m in modules.items()}


def candidates(
    net: nn.Module,
    before: Mapping[str, Mapping[str, int]],
    known: Widths,
    near: str,
    ran: Collection[str] | None,
) -> list[Widths]:
    """Return ints that may have to follow, the nearest to a module first.

    Args:
        net: a network that has been cut.
        before: what `widths_of` gave before that.
        known: ints that follow already.
        near: name of the module whose forward raised.
        ran: names of the modules that had been called by then; None: all of them.
    """
    # full width -> width now -> whose it is
    changed: dict[int, dict[int, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for name, widths in before.items():
        module = net.get_submodule(name)
        for key, width in widths.items():
            if getattr(module, key) != width:
                changed[width][getattr(module, key)].append((name, key))
    found: list[tuple[tuple[int, int], Widths]] = []
    modules = dict(net.named_modules())
    for name in modules if ran is None else ran:
        for path, value in ints_of(modules[name]):
            for same in changed.get(value, {}).values() if (name, path) not in known else ():
                other, key = max(same, key=lambda at: _shared(name, at[0]))
                rank = (_shared(name, near), _shared(name, other))
                found.append((rank, {(name, path): (other, key)}))
    found.sort(key=lambda each: each[0], reverse=True)
    return [_with_alike(modules, before, widths) for _, widths in found]


def _shared(a: str, b: str) -> int:
    """Return how near two modules are: how many names they have in common, less where they part."""
    x, y = a.split("."), b.split(".")
    common = next((i for i, pair in enumerate(zip(x, y, strict=False)) if pair[0] != pair[1]), None)
    return 2 * (min(len(x), len(y)) if common is None else common) - (not inside(b, a))


def _with_alike(
    modules: Mapping[str, nn.Module], before: Mapping[str, Mapping[str, int]], widths: Widths
) -> Widths:
    """Return an int and the width it repeats, and likewise in all modules of the same class."""
    (((name, path), (other, key)),) = widths.items()
    if not inside(other, name):
        return widths
    tail = other[len(name) :].lstrip(".")
    found = {}
    for twin, module in modules.items():
        layer = f"{twin}.{tail}".lstrip(".")
        width = before.get(layer, {}).get(key)
        if type(module) is type(modules[name]) and dict(ints_of(module)).get(path) == width:
            found[twin, path] = (layer, key)
    return found


def follow(net: nn.Module, widths: Widths) -> None:
    """Give the ints of `widths` the width that their layer or norm has now."""
    for (name, path), (other, key) in widths.items():
        module = net.get_submodule(name)
        value = getattr(net.get_submodule(other), key)
        if dict(ints_of(module))[path] != value:
            write_int(module, path, value)
            vars(module)[_FOLLOWED] = sorted({*followed(module), path})


def followed(module: nn.Module) -> list[str]:
    """Return the paths of the ints of a module that followed the width of a layer."""
    return list(vars(module).get(_FOLLOWED, ()))


def write_followed(module: nn.Module, values: Mapping[str, int]) -> None:
    """Give a module ints that followed in another network."""
    for path, value in values.items():
        write_int(module, path, value)
    vars(module)[_FOLLOWED] = sorted(values)
