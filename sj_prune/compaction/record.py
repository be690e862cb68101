"""A record of a network's widths, from which the smaller network is built again without pickles."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune._files import described, load, save
from sj_prune.compaction.attributes import followed, ints_of, width_keys, write_followed
from sj_prune.compaction.build import Index, copied, resize
from sj_prune.compaction.owned import rebind
from sj_prune.network.norms import is_channel_norm

_FORMAT = 1
Record = dict[str, dict[str, int]]


def architecture(net: nn.Module) -> Record:
    """Return the widths of all convolutions, linear layers and norms of a network.

    Returns:
        Layer name -> ``{"in_channels", "out_channels", "groups"}``,
        ``{"in_features", "out_features"}`` or ``{"num_features"}``; of a smaller network also
        module name -> the ints that followed a width, such as ``{"hidden"}``. Plain values, fit for
        JSON.
    """
    found = {name: _widths(module) for name, module in net.named_modules()}
    return {name: widths for name, widths in found.items() if widths}


def _widths(module: nn.Module) -> dict[str, int]:
    kept = dict(ints_of(module))
    followers = {path: kept[path] for path in followed(module)}
    return followers or {key: int(getattr(module, key)) for key in width_keys(module)}


def rebuild(dense_net: nn.Module, record: Mapping[str, Mapping[str, int]]) -> nn.Module:
    """Return a copy of a full-width network with the widths of a record.

    Its weights are pieces of the full ones, to be replaced:
    ``rebuild(build_network(), record).load_state_dict(state_dict)``.

    Args:
        dense_net: a network built as the one before compaction was.
        record: what `architecture` returned for the smaller one.

    Raises:
        ValueError: naming the layer that does not fit.
    """
    _check(dense_net, record)
    net = copied(dense_net)
    names = {id(p): name for name, p in net.named_parameters()}
    for name, widths in record.items():
        module = net.get_submodule(name)
        if width_keys(module):
            _resize_to(module, widths)
        else:
            write_followed(module, widths)
    rebind(net, names)
    _host.invalidate_reset_cache(net)
    return net


def _check(net: nn.Module, record: Mapping[str, Mapping[str, int]]) -> None:
    modules = dict(net.named_modules())
    full = {name: _widths(module) for name, module in modules.items() if width_keys(module)}
    advice = "build the network as it was before compaction"
    for name, widths in record.items():
        if name not in modules:
            raise ValueError(f"Expected a layer {name!r} in the network but it has none: {advice}")
        if name not in full:
            kept = dict(ints_of(modules[name]))
            full[name] = {path: kept[path] for path in widths if path in kept}
    for name, widths in full.items():
        if name not in record:
            raise ValueError(f"Expected the record to hold {name!r} but it does not: {advice}")
        if set(record[name]) != set(widths):
            raise ValueError(
                f"Expected {sorted(widths)} of {name!r} but the record has {sorted(record[name])}: "
                f"{advice}"
            )
        for key, value in record[name].items():
            _check_width(name, key, value, widths[key], advice)
        _check_groups(name, record[name])


def _check_width(name: str, key: str, value: Any, full: int, advice: str) -> None:  # noqa: ANN401
    if type(value) is not int or value < 1:  # True is an int
        raise ValueError(f"Expected {key} of {name!r} to be a positive integer but got {value!r}")
    if value > full:
        raise ValueError(
            f"Expected {key} of {name!r} to be at most the network's {full} but the record has "
            f"{value}: {advice}, with its full width"
        )


def _check_groups(name: str, widths: Mapping[str, int]) -> None:
    groups = widths.get("groups", 1)
    for key in ("in_channels", "out_channels"):
        if widths.get(key, groups) % groups:
            raise ValueError(
                f"Expected {key} of {name!r} to be a multiple of its {groups} groups but got "
                f"{widths[key]}"
            )


def _resize_to(module: nn.Module, widths: Mapping[str, int]) -> None:
    vectors: tuple[str, ...]
    if is_channel_norm(module):
        vectors, rows = ("weight", "bias", "running_mean", "running_var"), widths["num_features"]
    elif isinstance(module, nn.Linear):
        vectors, rows = ("bias",), widths["out_features"]
        _keep_first(module, "weight", rows, widths["in_features"])
    else:
        vectors, rows = ("bias",), widths["out_channels"]
        _keep_first(module, "weight", rows, widths["in_channels"] // widths["groups"])
    for key in vectors:
        _keep_first(module, key, rows)
    for key, value in widths.items():
        setattr(module, key, value)


def _keep_first(module: nn.Module, key: str, *sizes: int) -> None:
    tensor = getattr(module, key, None)
    if isinstance(tensor, Tensor):
        pairs = zip(sizes, tensor.shape, strict=False)
        index: Index = tuple(
            [None if new == old else torch.arange(new, device="cpu") for new, old in pairs]
        )
        resize(module, key, index)


def save_compact(path: str | os.PathLike[str], small: nn.Module) -> None:
    """Save a smaller network: widths and state_dict, no pickled classes.

    A file that is there stays whole until the new one is, as with `sj_prune.save`.

    Args:
        path: of the file; ``torch.load(path, weights_only=True)`` reads it.
        small: what `compact` returned, trained on or not.

    Raises:
        OSError: if the file cannot be written.
    """
    content = {"format": _FORMAT, "architecture": architecture(small)}
    save(path, {**content, "state_dict": small.state_dict()})


def load_compact(path: str | os.PathLike[str], dense_net: nn.Module) -> nn.Module:
    """Return the smaller network that `save_compact` saved.

    Args:
        path: of the file.
        dense_net: a network built as the one before compaction was; it stays as it is. The result
            has its type, device and step mode.

    Raises:
        ValueError: if the file is another one, or the networks do not fit; names the layer.
        RuntimeError: if a parameter beside the layers' does not fit (from ``load_state_dict``).
    """
    content = _read(path)
    net = rebuild(dense_net, content["architecture"])
    net.load_state_dict(content["state_dict"], strict=True)
    return net


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what `save_compact` wrote."""
    content = load(path, "save_compact")
    found = content.get("format") if isinstance(content, Mapping) else None
    if type(found) is not int or found != _FORMAT:
        raise ValueError(
            f"Expected a file of save_compact, format {_FORMAT}, but {os.fspath(path)!r} has "
            f"format {found!r} and holds {described(content)}: save the network with "
            "save_compact, or update sj_prune"
        )
    for key, fits in (("architecture", _is_record), ("state_dict", _is_state)):
        if not fits(content.get(key)):
            raise ValueError(
                f"Expected {key!r} in the file of save_compact {os.fspath(path)!r} to be whole but "
                f"it holds {described(content.get(key))}: the file is damaged, save it again"
            )
    return dict(content)


def _is_record(value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(k, str) and isinstance(v, Mapping) for k, v in value.items())


def _is_state(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
