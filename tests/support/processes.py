"""Other processes: a function in several of them with gloo between, and programs of their own."""

import importlib
import multiprocessing
import os
import sys
import time
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = 120  # seconds: what takes longer has met a deadlock
# DistributedDataParallel loads dynamo.
PRELOADED = ["torch._dynamo", "spikingjelly.activation_based.functional", "sj_prune"]


def forks():
    """Return the context of processes that are forks of one that has loaded what loads slowly."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_in_ranks(world, module, function, folder, *args):
    """Return what ``tests.support.module.function(folder, *args)`` returns, rank by rank."""
    context = forks()
    ranks = [
        context.Process(target=_rank, args=(rank, world, module, function, str(folder), args))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    until = time.monotonic() + 3 * TIMEOUT
    for process in ranks:
        process.join(max(0.0, until - time.monotonic()))
    stuck = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        process.kill()
    assert not stuck, f"ranks {stuck} did not come to an end"
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
    failed = [text for text, _ in found if text is not None]
    assert not failed, "\n".join(failed)
    return [result for _, result in found]


def environment(*folders, **variables):
    """Return the environment of a program that imports what this process can."""
    paths = os.pathsep.join(path for path in [*map(str, folders), *sys.path] if path)
    return {**os.environ, "PYTHONPATH": paths, **variables}


def once(tmp_path_factory, name, compute):
    """Return ``compute(folder)``, run by one of pytest's workers for all of them."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    done = folder / "done.pt"
    try:
        folder.mkdir()
    except FileExistsError:
        until = time.monotonic() + 4 * TIMEOUT
        while not done.exists():
            assert time.monotonic() < until, f"another worker has not finished {name}"
            time.sleep(0.1)
        error, result = torch.load(done, weights_only=False)
        assert error is None, error
        return result
    error, result = "interrupted", None
    try:
        result, error = compute(folder), None
    except AssertionError as failed:
        error = str(failed)
        raise
    finally:
        torch.save((error, result), folder / "done.new")
        os.replace(folder / "done.new", done)
    return result


def _rank(rank, world, module, function, folder, args):
    os.environ["SJ_PRUNE_ENGINE"] = "torch"
    torch.set_num_threads(1)
    error, result = None, None
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(f"{folder}/store", world),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=TIMEOUT),
        )
        torch.manual_seed(100 + rank)  # the ranks' own generators differ
        found = importlib.import_module(f"tests.support.{module}")
        result = getattr(found, function)(folder, *args)
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException:
        error = f"rank {rank}:\n{traceback.format_exc()}"
    torch.save((error, result), f"{folder}/{rank}.new")
    os.replace(f"{folder}/{rank}.new", f"{folder}/{rank}.pt")
