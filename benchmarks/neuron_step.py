"""One neuron layer, forward and backward: recording nodes against the stock node and two limits.

    python benchmarks/neuron_step.py [--device cpu|cuda] [--quick]

On a CPU all contenders run in one harness (outputs allocated in every call, ``x.grad`` None before
it, contenders in turn within a repeat, each once untimed before the timed call so that it finds the
allocator and the caches as it leaves them itself, medians). On CUDA a call is microseconds of the
device and many of the host, so `neuron_cuda.py` measures both: replayed graphs and eager calls.
Contenders:

- stock: SpikingJelly's LIFNode as installed, without any recording (the ratios' base);
- stock + v_seq: the same with ``store_v_seq=True`` and the five statistics computed from what it
  stores (the surrogate derivative at H needs H, so it is recomputed from V);
- OutputMonitor: SpikingJelly's monitor on the stock node, which keeps the spikes;
- sj_prune off / all: RecordingLIFNode without and with all five statistics;
- clone: an autograd function that returns ``x.clone() * c``, the limit set by allocating outputs;
- copy: a plain copy into allocated memory, forward only.

Bytes needed count every operand once in its own type (x, spikes; x, dS, dx); with the time they
give the bandwidth reached. SpikingJelly 2.0.0 runs Triton kernels on single precision alone: under
AMP the stock node is its torch reference, and ``over_triton_float32`` compares with what Triton
takes for the same layer in single precision, twice the bytes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from measure import environment, label, seconds, write_csv
from neuron_cuda import COPY, Run, Times, on_cuda
from spikingjelly.activation_based import functional, monitor, neuron, surrogate
from torch import Tensor

from sj_prune.neurons import RecordingLIFNode

CPU_SHAPES = [(4, 16, 64, 32, 32), (4, 16, 256, 8, 8)]
CUDA_SHAPES = [(4, 128, 64, 32, 32), (4, 128, 256, 8, 8), (10, 64, 128, 24, 24)]
SURROGATES = {"Sigmoid": surrogate.Sigmoid, "ATan": surrogate.ATan}
CONSTANT = 1.5


class Clone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone() * CONSTANT

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * CONSTANT


def statistics_of(node: neuron.LIFNode, x: Tensor, spikes: Tensor) -> list[Tensor]:
    """Return the five statistics from a stock node's stored potentials, as a user would."""
    v_seq = node.v_seq.detach()
    before = torch.cat([torch.zeros_like(v_seq[:1]), v_seq[:-1]])
    h = before + (x.detach() - before) / node.tau
    leaf = (h - node.v_threshold).requires_grad_()
    with torch.enable_grad():
        (g,) = torch.autograd.grad(node.surrogate_function(leaf).sum(), leaf)
    per_neuron = g.mean(0)
    means = [t.mean((0, 3, 4)) for t in (spikes.detach(), v_seq.abs(), h.abs())]
    return [*means, per_neuron.mean((2, 3)), per_neuron.amax((2, 3))]


def contenders(device: torch.device, make: Callable[[], torch.nn.Module]) -> dict[str, Run]:
    settings = {"step_mode": "m", "surrogate_function": make()}
    stock = neuron.LIFNode(**settings)
    stored = neuron.LIFNode(store_v_seq=True, **settings)
    watched = torch.nn.Sequential(neuron.LIFNode(**settings))
    spikes = monitor.OutputMonitor(watched, neuron.LIFNode)
    off, on = RecordingLIFNode(**settings), RecordingLIFNode(**settings)
    off.recording = False
    for module in (stock, stored, watched, off, on):
        module.to(device)

    def run(node: torch.nn.Module, x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    def run_stored(x: Tensor) -> Tensor:
        out = run(stored, x)
        statistics_of(stored, x, out)
        return out

    def run_watched(x: Tensor) -> Tensor:
        out = run(watched, x)
        spikes.clear_recorded_data()
        return out

    return {
        "stock": partial(run, stock),
        "stock + v_seq + statistics": run_stored,
        "stock + OutputMonitor": run_watched,
        "sj_prune, recording off": partial(run, off),
        "sj_prune, all statistics": partial(run, on),
        "clone times constant": Clone.apply,
    }


def one_call(run: Run, x: Tensor, grad: Tensor) -> tuple[float, float]:
    """Return forward and backward seconds of one call on the CPU."""
    x.grad = None
    start = time.perf_counter()
    out = run(x)
    middle = time.perf_counter()
    out.backward(grad)
    return middle - start, time.perf_counter() - middle


def on_cpu(runs: dict[str, Run], x: Tensor, grad: Tensor, repeats: int) -> dict[str, Times]:
    """Return the median seconds of every contender and of a copy."""
    pairs: dict[str, list[tuple[float, float]]] = {contender: [] for contender in runs}
    for i in range(repeats + 2):
        for contender, run in runs.items():
            one_call(run, x, grad)
            pair = one_call(run, x, grad)
            if i >= 2:
                pairs[contender].append(pair)
    source = x.detach()
    copy = seconds(lambda: torch.empty_like(source).copy_(source), "cpu", repeats)
    columns = {
        contender: [statistics.median(column) for column in zip(*found, strict=True)]
        for contender, found in pairs.items()
    }
    times = {contender: Times(forward, back) for contender, (forward, back) in columns.items()}
    return times | {COPY: Times(copy, 0.0)}


def measure(
    shape: tuple[int, ...], dtype: torch.dtype, name: str, device: str, repeats: int
) -> list[dict[str, object]]:
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    grad = torch.randn(shape, device=device).to(dtype)
    runs = contenders(x.device, SURROGATES[name])
    cuda = device.startswith("cuda")
    times = (on_cuda if cuda else on_cpu)(runs, x, grad, repeats)
    size = x.element_size() * x.numel()
    rows = []
    for contender, found in times.items():
        bytes_needed = 2 * size if contender == COPY else 5 * size
        row = {
            "contender": contender,
            "shape": "x".join(map(str, shape)),
            "dtype": str(dtype).removeprefix("torch."),
            "surrogate": name,
            "forward_ms": round(found.forward * 1e3, 4),
            "backward_ms": round(found.backward * 1e3, 4),
            "total_ms": round(found.total * 1e3, 4),
            "speedup_over_stock": round(times["stock"].total / found.total, 3),
            "speed_of_clone": round(times["clone times constant"].total / found.total, 3),
            "bytes_needed": bytes_needed,
            "gigabytes_per_second": round(bytes_needed / found.total / 1e9, 2),
        }
        rows.append(row | (found.on_device() if cuda else {}) | environment(device))
    return rows


def compare_with_triton(rows: list[dict[str, object]]) -> None:
    """Say what the stock node ran, and set every row beside Triton in single precision."""
    single = {
        (row["shape"], row["surrogate"]): row["total_ms"]
        for row in rows
        if row["contender"] == "stock" and row["dtype"] == "float32"
    }
    for row in rows:
        row["stock_runs"] = "Triton" if row["dtype"] == "float32" else "torch reference"
        ratio = single[row["shape"], row["surrogate"]] / row["total_ms"]
        row["over_triton_float32"] = round(ratio, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    parser.add_argument("--steps", type=int, help="only shapes of so many time steps")
    args = parser.parse_args()
    torch.manual_seed(0)
    cuda = args.device.startswith("cuda")
    shapes = [(2, 2, 4, 8, 8)] if args.quick else CUDA_SHAPES if cuda else CPU_SHAPES
    shapes = [shape for shape in shapes if args.steps in (None, shape[0])]
    dtypes = [torch.float32, torch.float16, torch.bfloat16] if cuda else [torch.float32]
    rows = []
    for shape in shapes:
        for dtype in dtypes:
            for name in SURROGATES:
                found = measure(shape, dtype, name, args.device, args.repeats)
                rows += found
                print(f"\n{found[0]['shape']} {found[0]['dtype']} {name}")
                for row in found:
                    print(
                        f"  {row['contender']:28} {row['total_ms']:9.3f} ms  "
                        f"x{row['speedup_over_stock']:<7} over stock  "
                        f"{row['speed_of_clone']:6} of clone  {row['gigabytes_per_second']:7} GB/s"
                        f"  {row.get('eager_ms', '')}"
                    )
    if cuda:
        compare_with_triton(rows)
    if not args.quick:
        print(write_csv(f"neuron_step_{label(args.device)}", rows))


if __name__ == "__main__":
    main()
