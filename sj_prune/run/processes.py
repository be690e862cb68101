"""All talk between processes: the only module that imports `torch.distributed`.

Every function but `world_size`, `rank`, `digest` and `check_whole` is collective: all ranks of the
default process group have to call it. With one process nothing here is called but `world_size`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def _meeting_place(device: torch.device) -> torch.device:
    """Return where tensors have to be to travel: gloo takes those on the CPU alone, not all ops."""
    return torch.device("cpu") if dist.get_backend() == dist.Backend.GLOO else device


def gather(value: Any, device: torch.device) -> list[Any]:  # noqa: ANN401
    """Return the plain values of all ranks, in their order.

    Args:
        value: numbers, strings, lists, tuples, dictionaries of them.
        device: of the network.
    """
    values: list[Any] = [None] * world_size()
    with _current(device):
        dist.all_gather_object(values, value)
    return values


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Let NCCL carry objects on the network's device, chosen by `torch.cuda.set_device` or not."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def sum_over_ranks(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return float64 sums over the ranks, added up in their order: the same bits on every rank.

    Args:
        tensors: of the same shapes on every rank; they are left as they are.
        device: of the network.
    """
    if not tensors:
        return []
    place = _meeting_place(device)
    flat = torch.cat([t.detach().to(place, torch.float64).flatten() for t in tensors])
    parts = [torch.empty_like(flat) for _ in range(world_size())]
    dist.all_gather(parts, flat)
    total = parts[0]
    for part in parts[1:]:
        total += part
    pieces = total.split([t.numel() for t in tensors])
    return [p.view(t.shape).to(t.device) for p, t in zip(pieces, tensors, strict=True)]


def average(tensor: Tensor) -> Tensor:
    """Return the mean over the ranks of a tensor of any size, in its type."""
    total = tensor.detach().to(_meeting_place(tensor.device), copy=True).contiguous()
    dist.all_reduce(total)  # every part of it is added up on one rank: the same bits on all
    return (total / world_size()).to(tensor.device)


def digest(*tensors: Tensor) -> str:
    """Return a hash of the values of tensors, whatever their memory layout."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        if values.dtype == torch.bool:  # eight to a byte: what is hashed is what takes the time
            found.update(np.packbits(values.numpy()).data)
        else:
            found.update(values.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_whole(net: nn.Module, parameters: Iterable[Tensor] = ()) -> None:
    """Refuse parameters that are split over processes.

    Args:
        net: the network.
        parameters: of an optimizer that is to move it.

    Raises:
        TypeError: naming the first of them.
    """
    known = {id(p): name for name, p in net.named_parameters()}
    for parameter in [*net.parameters(), *parameters]:
        kind = _split_kind(parameter)
        if kind is not None:
            name = known.get(id(parameter), f"of shape {tuple(parameter.shape)}")
            raise TypeError(
                f"Expected whole parameters but {name!r} is a {kind}, of which every process holds "
                "a part (FSDP, fully_shard, tensor parallelism): masks need whole weights; use "
                "torch.nn.parallel.DistributedDataParallel"
            )


def _split_kind(parameter: Tensor) -> str | None:
    # Whoever has made such a parameter has loaded the module of its class.
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is not None and isinstance(parameter, tensors.DTensor):
        return "DTensor"
    flat = sys.modules.get("torch.distributed.fsdp._flat_param")
    if flat is not None and isinstance(parameter, flat.FlatParameter):
        return "FlatParameter"
    return None
