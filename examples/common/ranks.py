"""Several processes, one a device, started by torchrun; with one process this does nothing."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=2)  # of the others, while the first one downloads a data set


def start(device):
    """Join the other processes, if torchrun has started several; return this one's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return device


def refuse_several(script):
    """Exit if torchrun has started several processes of a script for one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SystemExit(f"Expected one process of {script} but torchrun started several")


def stop():
    """Leave the others; the threads that have carried our tensors end here."""
    if dist.is_initialized():
        gc.collect()  # a trainer that nobody needs any more holds the group
        dist.destroy_process_group()


def number():
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """Return which of them this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def first():
    """Tell whether this is the one that prints and saves."""
    return rank() == 0


@contextmanager
def first_before_others():
    """Let the first process do it alone, and then the others: they find what it has written."""
    if number() > 1 and not first():
        dist.barrier()
    yield
    if number() > 1 and first():
        dist.barrier()


def total(values, device):
    """Return the sums of numbers over all processes."""
    if number() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def parallel(model, device):
    """Return what averages the gradients of all processes in its backward pass."""
    if number() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    # A group of its own: DistributedDataParallel never lets go of it, and gloo's threads must be
    # gone before Python shuts down, or one that still holds the tensor of the last sum aborts the
    # process. Those of the default group are joined by `stop`.
    group = dist.new_group(timeout=PATIENCE)
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids, process_group=group)


def share_buffers(net):
    """Give every process the running statistics of the first: they are what is saved."""
    if number() > 1:
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)
