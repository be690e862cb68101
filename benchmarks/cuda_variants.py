"""What the CUDA kernels should do, without a GPU: bytes, registers, occupancy, expected bandwidth.

    python benchmarks/cuda_variants.py

For layers of usual networks: how `geometry` cuts them on a device of 132 multiprocessors, the bytes
that a pass moves per neuron and step, counted operand by operand as the kernels load and store
them, and what the assembler reports of the variant on five architectures (NVRTC, from torch's
wheels).
Writes results/cuda_variants.csv and docs/cuda.md. Needs the extra `test`, and `cuobjdump` for the
numbers of instructions, which triton brings.

The expected fraction of the bandwidth of a copy is the least of: bytes that the resident threads
have in flight over those that the latency of memory asks for, what the instructions leave, and 1,
times the lanes that do not idle. Its constants below are a datasheet's, not measured.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import environment, write_csv

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from sj_prune.engines import cupy_device, geometry, launch  # noqa: E402
from sj_prune.neurons.reference import LIF, PLIF, Equations  # noqa: E402
from sj_prune.neurons.surrogates import Known  # noqa: E402
from tests.support import nvrtc  # noqa: E402

# Architecture -> threads a multiprocessor holds, its shared memory, blocks.
ARCHITECTURES = {
    75: (1024, 64 << 10, 16),
    80: (2048, 164 << 10, 32),
    90: (2048, 228 << 10, 32),
    100: (2048, 228 << 10, 32),
    120: (1536, 100 << 10, 24),
}
PROCESSORS = 132
BYTES_PER_SECOND, LATENCY = 3.0e12, 650e-9  # of an H100's copy, and of its device memory
INSTRUCTIONS_PER_SECOND = 0.75 * PROCESSORS * 128 * 1.7e9  # of single threads
LAYERS = [
    (LIF, (4, 128, 64, 32, 32)),
    (LIF, (4, 128, 256, 8, 8)),
    (LIF, (4, 32, 512, 7, 7)),
    (LIF, (10, 64, 128, 24, 24)),
    (PLIF, (10, 64, 128, 24, 24)),
    (LIF, (64, 32, 128, 16, 16)),
    (LIF, (4, 128, 4096)),
]
ALL = 31  # statistics


@functools.cache
def compiled(variant: launch.Variant, kernel: str, architecture: int) -> dict[str, int]:
    """Return registers, spilled bytes and shared memory of a kernel; on sm_90 its instructions."""
    options = (*cupy_device.OPTIONS, *variant.options())
    log, code = nvrtc.compile_(cupy_device.code("lif.cu"), architecture, options)
    report = log.split(f"entry function '{kernel}'")[1].split("entry function")[0]
    stack, stores, loads = re.findall(r"(\d+) bytes (?:stack|spill)", report)[:3]
    shared = re.search(r"(\d+) bytes smem", report)
    found = {
        "registers": int(re.findall(r"Used (\d+) registers", report)[0]),
        "spills": int(stack) + int(stores) + int(loads),
        "shared": int(shared[1]) if shared else 0,
    }
    if architecture == 90:
        found["instructions"] = instructions(code, kernel)
    return found


def instructions(code: bytes, kernel: str) -> int:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [tool, "--dump-sass", "-fun", kernel, file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return len(re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?!NOP)", done.stdout, re.MULTILINE))


def resident(found: dict[str, int], threads: int, architecture: int) -> int:
    """Return the threads of a kernel that a multiprocessor holds."""
    most, shared, blocks = ARCHITECTURES[architecture]
    registers = -(-found["registers"] // 8) * 8 * threads  # given to warps in eights a thread
    by_memory = shared // (found["shared"] + (1024 if architecture >= 80 else 0) or 1)
    return threads * min(most // threads, 65536 // registers, by_memory, blocks)


def passes(
    kind: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Iterator[tuple[str, launch.Variant, geometry.Grid, float, int]]:
    """Yield a pass: its name, variant, grid, bytes a neuron and step, loads in flight a thread."""
    equations, known = Equations(kind, 2.0, True, 1.0, 0.0, False), Known(1, 2.0)
    x = torch.empty(shape, dtype=dtype, device="meta")
    steps, size, neurons = shape[0], x.element_size(), x[0].numel()
    rows, channels = shape[1], shape[2]
    summed = neurons == rows * channels
    if summed:
        rows = geometry.partial_rows(rows, channels, size, PROCESSORS)
    for name, statistics in (("forward", 0), ("forward, statistics", ALL)):
        plan = geometry.forward_plan(x, False, statistics, [], PROCESSORS, rows)
        variant = launch.forward_variant(
            equations, known, dtype, plan.vec, statistics, 0, summed and statistics > 0
        )
        # x, spikes; V once; partials, written and read once more.
        moved = 2 * size + 4 / steps
        moved += 2 * 4 * rows * channels * statistics.bit_count() / (neurons * steps)
        yield name, variant, plan.grid, moved, min(steps, 4)
    back = geometry.backward_plan(x, kind, [], PROCESSORS)
    variant = launch.backward_variant(equations, known, dtype, back.vec, back.chunk, 1)
    # dS, x, dx; all chunks but the last read x twice, and leave V for later.
    again = (back.chunks - 1) * (back.chunk * size + 8) / steps
    grid = geometry.Grid("sj_backward", (back.blocks, 1), 1, threads=geometry.BACKWARD_THREADS)
    # One group of dS beside one of x.
    in_flight = 2 * min(steps, 4 if back.vec > 1 or back.chunk < 8 else 8)
    yield "backward", variant, grid, 3 * size + again, in_flight


def expected(row: dict[str, object], grid: geometry.Grid, in_flight: int, body: float) -> float:
    """Return the fraction of a copy's bandwidth on an H100.

    Args:
        row: the columns so far.
        grid: of the launch.
        in_flight: loads of a thread.
        body: instructions per neuron and step.
    """
    threads, vec, size = int(row["resident_90"]), int(row["vec"]), int(row["itemsize"])  # type: ignore[call-overload]
    needed = BYTES_PER_SECOND / PROCESSORS * LATENCY
    latency = threads * in_flight * vec * size / needed
    moved = float(row["bytes"])  # type: ignore[arg-type]
    issue = INSTRUCTIONS_PER_SECOND / body * moved / BYTES_PER_SECOND
    return min(1.0, latency, issue) * (1 - grid.idle)


def rows() -> Iterator[dict[str, object]]:
    for kind, shape in LAYERS:
        for dtype in (torch.float32, torch.float16):
            for name, variant, grid, moved, in_flight in passes(kind, shape, dtype):
                row: dict[str, object] = {
                    "node": "PLIF" if kind == PLIF else "LIF",
                    "shape": "x".join(map(str, shape)),
                    "dtype": str(dtype).removeprefix("torch."),
                    "pass": name,
                    "kernel": grid.kernel,
                    "itemsize": dtype.itemsize,
                    "vec": variant.vec,
                    "chunk": variant.chunk,
                    "threads": grid.threads,
                    "blocks": grid.blocks[0] * grid.blocks[1],
                    "idle": round(grid.idle, 4),
                    "bytes": round(moved, 3),
                }
                for architecture in ARCHITECTURES:
                    found = compiled(variant, grid.kernel, architecture)
                    row[f"registers_{architecture}"] = found["registers"]
                    row[f"spills_{architecture}"] = found["spills"]
                    row[f"resident_{architecture}"] = resident(found, grid.threads, architecture)
                steps = variant.chunk or 4  # in the body that the compiler unrolls
                body = compiled(variant, grid.kernel, 90)["instructions"] / (steps * variant.vec)
                row["instructions"] = round(body, 1)
                row["expected"] = round(expected(row, grid, in_flight, body), 2)
                print(*row.values())
                yield row


def page(found: list[dict[str, object]]) -> str:
    """Return docs/cuda.md."""
    lines = [
        "# The CUDA kernels: what to expect of a first measurement",
        "",
        "Written by `python benchmarks/cuda_variants.py`, which needs no GPU. **Nothing here is",
        "measured on one**: bytes are counted, registers the assembler's, the rest is a prediction",
        f"for a device of {PROCESSORS} multiprocessors (H100), of a copy at"
        f" {BYTES_PER_SECOND / 1e12:g} TB/s and {LATENCY * 1e9:g} ns of latency.",
        "What a GPU said since: [On a GPU](cost.md#on-a-gpu).",
        "",
        "## Bytes per neuron and step, forward and backward",
        "",
        "Each operand once: x, spikes, V of the last step; dS, x, dx. With statistics: all five,",
        "written and read again.",
        "",
        "| layer | type | T | without statistics | with |",
        "|---|---|---|---|---|",
    ]
    for off, on, back in zip(found[::3], found[1::3], found[2::3], strict=True):
        one, two, three = (float(row["bytes"]) for row in (off, on, back))  # type: ignore[arg-type]
        steps = str(off["shape"]).split("x")[0]
        lines.append(
            f"| {off['node']} {off['shape']} | {off['dtype']} | {steps} | {one + three:.2f}"
            f" | {two + three:.2f} ({two - one:+.2f}, {(two - one) / (one + three):.1%}) |"
        )
    lines += [
        "",
        "## Kernels",
        "",
        "Idle: lanes without an element. Instructions: of the unrolled body and all around it, per",
        "neuron and step: an upper bound. Expected: fraction of a copy's bandwidth, of one launch",
        "that fills the device; small layers are bound by latency and by the launch itself.",
        "",
        "| layer | type | pass | kernel | elements a thread | chunk | idle | resident (sm_90)"
        " | instructions | expected |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    keys = ("dtype", "pass", "kernel", "vec", "chunk", "idle", "resident_90", "instructions")
    for row in found:
        cells = [f"{row['node']} {row['shape']}", *(row[key] for key in keys), row["expected"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "## Registers, spilled bytes and threads resident on a multiprocessor", ""]
    names = [f"sm_{architecture}" for architecture in ARCHITECTURES]
    lines += [
        "| node | type | kernel | statistics | elements, chunk | " + " | ".join(names) + " |",
        "|---" * (5 + len(names)) + "|",
    ]
    told = []
    for row in found:
        recorded = "all" if "statistics" in str(row["pass"]) else "none"
        if row["kernel"] == "sj_backward":
            recorded = ""
        cells = [row["node"], row["dtype"], row["kernel"], recorded]
        cells += [f"{row['vec']}, {row['chunk'] or '-'}"]
        cells += [
            f"{row[f'registers_{a}']}, {row[f'spills_{a}']}, {row[f'resident_{a}']}"
            for a in ARCHITECTURES
        ]
        told.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([*lines, *dict.fromkeys(told), ""])


def main() -> None:
    found = list(rows())
    (ROOT / "docs" / "cuda.md").write_text(page(found))
    where = environment("cpu")
    print(write_csv("cuda_variants", [{**row, "commit": where["commit"]} for row in found]))


if __name__ == "__main__":
    main()
