"""What observing a neuron layer costs, forward and backward: against the same layer left alone.

    python benchmarks/observe.py [--device cpu|cuda] [--quick]

Contenders of a class are run in turn within a repeat, medians of all repeats:

- alone: the host's node as installed;
- observed: the same class with an observer that keeps every statistic the class has;
- criticality: an observer that keeps ``criticality_max`` only, as `Criticality` does;
- fused: the recording node, where the class has one, for comparison.

On a CPU the time is the process's CPU time on one thread: a busy machine does not show in it.
Single-step rows run the loop over time outside of the node. Bytes are what the tensors of a forward
hold beyond what the node left alone holds, while its pass is under way (the peak of CUDA's
allocator; on a CPU the sums that are kept, counted).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from measure import environment, label, synchronize, write_csv
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from sj_prune.neurons import Observer, RecordingNode, observe, sense

CPU_SHAPES = [(4, 16, 64, 32, 32), (4, 16, 256, 8, 8)]
CUDA_SHAPES = [(4, 128, 64, 32, 32), (4, 128, 256, 8, 8)]
CLASSES = [
    ("LIFNode", "m"),
    ("LIFNode", "s"),
    ("KLIFNode", "m"),
    ("KLIFNode", "s"),
    ("ComplementaryLIFNode", "m"),
    ("GatedLIFNode", "m"),
    ("PSN", "m"),
]


def new(name: str, mode: str, steps: int) -> nn.Module:
    arguments = {"T": steps} if name in ("GatedLIFNode", "PSN") else {}
    node: nn.Module = getattr(neuron, name)(surrogate_function=surrogate.ATan(), **arguments)
    if name != "PSN":
        node.step_mode = mode
    return node


def contenders(name: str, mode: str, x: Tensor) -> dict[str, tuple[nn.Module, Observer | None]]:
    nodes = [new(name, mode, len(x)).to(x.device) for _ in range(4)]
    found: dict[str, tuple[nn.Module, Observer | None]] = {"alone": (nodes[0], None)}
    (every,) = observe(nodes[1]).values()
    (one,) = observe(nodes[2]).values()
    one.statistics = ("criticality_max",)
    found |= {"observed": (nodes[1], every), "criticality": (nodes[2], one)}
    if isinstance(sense(nodes[3])[""], RecordingNode):
        found["fused" if mode == "m" else "recording node"] = (nodes[3], None)
    return found


def forward(node: nn.Module, mode: str, x: Tensor) -> Tensor:
    if mode == "m":
        return node(x)
    return torch.stack([node(x_t) for x_t in x])


def seconds(run: Callable[[], Tensor], grad: Tensor, device: str) -> float:
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    synchronize(device)
    start = clock()
    run().backward(grad)
    synchronize(device)
    return clock() - start


def held(node: nn.Module, observer: Observer | None, mode: str, x: Tensor) -> int:
    """Return the bytes of the sums of a pass and of the potential held between two steps."""
    if observer is None:
        return 0
    functional.reset_net(node)
    kept: list[int] = []
    close = observer.close_pass

    def look() -> None:
        current = observer._pass
        if current is not None:
            tensors = [*current.totals.values(), observer._potential]
            kept.append(sum(t.nbytes for t in tensors if t is not None))
        close()

    observer.close_pass = look  # type: ignore[method-assign]
    forward(node, mode, x)
    observer.close_pass()
    del observer.close_pass
    return max(kept, default=0)


def peak(run: Callable[[], Tensor], grad: Tensor, device: str) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    base = torch.cuda.memory_allocated(device)
    run().backward(grad)
    return torch.cuda.max_memory_allocated(device) - base


def measure(
    name: str, mode: str, shape: tuple[int, ...], device: str, repeats: int
) -> list[dict[str, object]]:
    x = (torch.rand(*shape, device=device) * 3.0).requires_grad_()
    grad = torch.rand(*shape, device=device)
    found = contenders(name, mode, x)

    def runner(node: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            functional.reset_net(node)
            x.grad = None
            return forward(node, mode, x)

        return run

    runs = {contender: runner(node) for contender, (node, _) in found.items()}
    times: dict[str, list[float]] = {contender: [] for contender in runs}
    for _ in range(repeats):
        for contender, run in runs.items():
            seconds(run, grad, device)  # untimed: it finds the allocator as it leaves it itself
            times[contender].append(seconds(run, grad, device))
    base = statistics.median(times["alone"])
    if device.startswith("cuda"):
        peaks = {contender: peak(run, grad, device) for contender, run in runs.items()}
        extra = {contender: value - peaks["alone"] for contender, value in peaks.items()}
    else:
        extra = {c: held(node, observer, mode, x) for c, (node, observer) in found.items()}
    return [
        {
            "node": name,
            "step_mode": mode,
            "shape": "x".join(map(str, shape)),
            "contender": contender,
            "forward_backward_ms": round(1e3 * statistics.median(measured), 3),
            "times_alone": round(statistics.median(measured) / base, 3),
            "extra_bytes": extra[contender] if contender in ("observed", "criticality") else "",
            "input_bytes": x.nbytes,
            **environment(device),
        }
        for contender, measured in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one repeat, nothing is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shapes = CUDA_SHAPES if args.device.startswith("cuda") else CPU_SHAPES
    rows = []
    for shape in shapes:
        for name, mode in CLASSES:
            if hasattr(neuron, name):
                measured = measure(name, mode, shape, args.device, 1 if args.quick else 9)
                for row in measured:
                    print(name, mode, row["shape"], row["contender"], row["times_alone"])
                rows += measured
    if not args.quick:
        print(write_csv(f"observe_{label(args.device)}", rows))


if __name__ == "__main__":
    main()
