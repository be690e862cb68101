"""How `neuron_step.py` times a layer on CUDA.

A graph of calls on as many inputs as no cache holds, replayed, gives the device's time without the
host's; the same calls made one by one, without waiting in between, give what a training loop pays.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]
COPY = "copy (forward)"


@dataclass(frozen=True)
class Times:
    """Seconds of one call.

    Attributes:
        forward: of the forward pass.
        backward: of the backward pass.
        eager: from call to call in a loop, whichever of host and device is slower.
        host: that the host is busy for one call.
        peak_bytes: that one call adds to the allocated memory.
    """

    forward: float
    backward: float
    eager: float = 0.0
    host: float = 0.0
    peak_bytes: int = 0

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def on_device(self) -> dict[str, object]:
        """Return the columns that only a device has."""
        return {
            "eager_ms": round(self.eager * 1e3, 4),
            "host_ms": round(self.host * 1e3, 4),
            "peak_bytes": self.peak_bytes,
        }


def beyond_the_cache(x: Tensor) -> list[Tensor]:
    """Return inputs like `x` that together are three times the second-level cache."""
    cache = torch.cuda.get_device_properties(x.device).L2_cache_size
    count = max(2, -(-3 * cache // x.nbytes))
    return [torch.randn_like(x).requires_grad_() for _ in range(count)]


def captured(calls: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Return the graph of `calls`, warmed up; what they return stays until it is captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            calls()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = calls()
    del kept
    return graph


def queued(calls: Callable[[], object]) -> Callable[[], object]:
    """Return `calls` behind a pause of the device in which the host makes them all."""

    def run() -> object:
        torch.cuda._sleep(50_000_000)
        return calls()

    return run


def device_seconds(calls: Callable[[], object], repeats: int) -> float:
    """Return the median device seconds of `calls`, without the host's."""
    try:
        run: Callable[[], object] = captured(calls).replay
        pause = 0.0
    except RuntimeError as error:
        print(f"    not captured ({str(error).splitlines()[0]}): queued behind a pause")
        run = queued(calls)
        pause = device_seconds_of(queued(lambda: None), repeats)
    return device_seconds_of(run, repeats) - pause


def device_seconds_of(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times[2:])


def eager(run: Run, xs: Sequence[Tensor], grad: Tensor, calls: int = 24) -> tuple[float, float]:
    """Return the seconds a call takes in a loop, and those that the host takes."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for i in range(calls):
        x = xs[i % len(xs)]
        torch.autograd.grad(run(x), x, grad)
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls, host / calls


def peak(run: Run, x: Tensor, grad: Tensor) -> int:
    """Return the bytes that one call adds at its peak."""
    torch.cuda.reset_peak_memory_stats()
    base = torch.cuda.memory_allocated()
    torch.autograd.grad(run(x), x, grad)
    return torch.cuda.max_memory_allocated() - base


def on_cuda(runs: dict[str, Run], x: Tensor, grad: Tensor, repeats: int) -> dict[str, Times]:
    """Return the times of every contender and of a copy."""
    xs = beyond_the_cache(x)
    times = {}
    for contender, run in runs.items():

        def forward(run: Run = run) -> list[Tensor]:
            return [run(x) for x in xs]

        def both(run: Run = run) -> list[tuple[Tensor, ...]]:
            outs = [run(x) for x in xs]
            pairs = zip(outs, xs, strict=True)
            return [(out, *torch.autograd.grad(out, x, grad)) for out, x in pairs]

        first = device_seconds(forward, repeats) / len(xs)
        whole = device_seconds(both, repeats) / len(xs)
        # The first loop lets the allocator find what the eager calls need.
        eager(run, xs, grad)
        found = [eager(run, xs, grad) for _ in range(3)]
        in_loop, host = (statistics.median(column) for column in zip(*found, strict=True))
        times[contender] = Times(first, whole - first, in_loop, host, peak(run, xs[0], grad))
        torch.cuda.empty_cache()

    def copy() -> list[Tensor]:
        return [torch.empty_like(x).copy_(x.detach()) for x in xs]

    return times | {COPY: Times(device_seconds(copy, repeats) / len(xs), 0.0)}
