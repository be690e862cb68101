"""What the CUDA side costs the host, without a GPU: time a neuron layer, launches a step.

    python benchmarks/cuda_host_time.py [--other CHECKOUT] [--turns 5] [--only times|launches]

*Time*: forward and backward of a small recording LIF layer through the CUDA engine, CuPy and
launches stubbed, on tensors of the CPU: what is left is the work of the host, per layer; processor
seconds, the median over calls and turns. *Launches*: what masks add to a step without an update,
counted on the meta device (`launches.py`): operators, kernels of our own, copies from the host.

With another checkout, the library as it was, both take turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from measure import environment, write_csv

HERE = Path(__file__).resolve().parent.parent
STATISTICS = {
    "nothing recorded": (),
    "one statistic": ("criticality_max",),
    "five statistics": (
        *("firing_rate", "abs_potential", "abs_charge", "criticality_mean", "criticality_max"),
    ),
}
CALLS = 300


# ---- time ----------------------------------------------------------------------------------------


class Entered:
    """A device or a stream of CuPy, which do nothing."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> Entered:
        return self

    def __exit__(self, *_: object) -> None: ...

    @classmethod
    def from_external(cls, stream: Any) -> Entered:
        return cls(*stream.__cuda_stream__())


class RawModule:
    """A module of CuPy whose kernels do nothing."""

    def __init__(self, code: str, options: tuple[str, ...]) -> None: ...

    def get_function(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def stub() -> None:
    """Pretend a device, and let nodes on the CPU go the way of CUDA tensors."""
    from sj_prune.engines import cupy_engine
    from sj_prune.neurons import activity, op

    cupy: Any = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(Device=Entered, Stream=Entered, ExternalStream=Entered)
    cupy.RawModule = RawModule
    sys.modules["cupy"] = cupy
    cuda: Any = torch.cuda
    cuda.current_stream = lambda device: SimpleNamespace(device_index=0, cuda_stream=77)
    cuda.current_device = lambda: 0
    cuda.device = Entered
    cuda.is_current_stream_capturing = lambda: False
    cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=132)
    op.choose = lambda device, dtype: cupy_engine
    if hasattr(activity, "_is_on_host"):
        activity._is_on_host = lambda tensor: False


def times() -> dict[str, float]:
    """Return milliseconds of a forward and backward pass, by what is recorded."""
    from sj_prune.neurons import RecordingLIFNode

    stub()
    found = {}
    for what, names in STATISTICS.items():
        node = RecordingLIFNode(step_mode="m")
        node.statistics = names or node.statistics
        node.recording = bool(names)
        x = torch.randn(4, 2, 8, 4, 4, requires_grad=True)
        grad = torch.randn_like(x)
        spent = []
        for _ in range(CALLS):
            start = time.process_time()
            node.reset()
            node(x).backward(grad)
            spent.append(time.process_time() - start)
        found[what] = 1e3 * statistics.median(spent[CALLS // 10 :])
    return found


# ---- launches ------------------------------------------------------------------------------------


def networks() -> dict[str, Any]:
    from spikingjelly.activation_based import functional, neuron, surrogate
    from spikingjelly.activation_based.model import sew_resnet

    from sj_prune.models import VGG16

    def resnet() -> torch.nn.Module:
        net = sew_resnet.sew_resnet50(
            cnf="ADD", spiking_neuron=neuron.IFNode, surrogate_function=surrogate.ATan()
        )
        functional.set_step_mode(net, "m")
        return net

    return {
        "VGG16": (lambda: VGG16(10, T=1), (2, 3, 32, 32)),
        "SEW-ResNet50": (resnet, (1, 2, 3, 32, 32)),
    }


def launches_of_steps() -> list[dict[str, Any]]:
    """Return rows of networks, methods and optimizers."""
    import launches

    import sj_prune
    from sj_prune import methods

    long = {"interval": 1000, "end": 2000}
    plans = {
        "single weights (Magnitude)": methods.Magnitude(sparsity=0.9, **long),
        "channels (FPGM)": methods.FPGM(sparsity=0.5, end=2000),
        "channels, gradients of every step (Taylor)": methods.TaylorChannels(sparsity=0.5, **long),
    }
    make = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    rows = []
    for network, (build, shape) in networks().items():
        for plan, method in plans.items():
            model = sj_prune.PruningWrapper(build(), method, example_input=torch.rand(shape))
            if "gradients" in plan:
                launches.train_step(model, make(model.parameters()), torch.rand(shape))
            model.update_masks()
            found, copies = launches.counted(model, make, shape)[-1]
            print(network, plan, dict(found), len(copies), file=sys.stderr)
            row = {"network": network, "plan": plan, "optimizer": "SGD with momentum"}
            rows.append({**row, "launches": sum(found.values()), "host_copies": len(copies)})
    return rows


# ---- both trees ----------------------------------------------------------------------------------


def child(tree: Path, part: str) -> Any:
    """Return what a process with the library of `tree` measures."""
    environment_ = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    environment_ |= {"SJ_PRUNE_ENGINE": "torch"} if part == "launches" else {}
    done = subprocess.run(
        [sys.executable, __file__, "--part", part],
        env=environment_,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def where(tree: Path) -> dict[str, str]:
    """Return the columns that say where a number comes from, with the commit of its tree."""
    done = subprocess.run(
        ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {**environment("cpu"), "commit": done.stdout.strip() or "unknown"}


def write_times(trees: dict[str, Path], turns: int) -> None:
    """Measure times in turns, print and write them."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for _ in range(turns):
        for name, tree in trees.items():
            found[name].append(child(tree, "times"))
    rows: list[dict[str, object]] = [
        {
            "library": name,
            "recorded": what,
            "milliseconds": round(statistics.median(turn[what] for turn in each), 4),
            **where(trees[name]),
        }
        for name, each in found.items()
        for what in STATISTICS
    ]
    for row in rows:
        print(f"{row['library']:10} {row['recorded']:18} {row['milliseconds']:8} ms a layer")
    print(write_csv("cuda_host_time_cpu", rows))


def write_launches(trees: dict[str, Path]) -> None:
    """Count launches, print and write them."""
    rows: list[dict[str, object]] = [
        {"library": name, **row, **where(tree)}
        for name, tree in trees.items()
        for row in child(tree, "launches")
    ]
    for row in rows:
        print(
            f"{row['library']:10} {row['network']:13} {row['plan']:43} "
            f"{row['launches']:5} launches, {row['host_copies']} copies from the host"
        )
    print(write_csv("cuda_launches_cpu", rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, help="another checkout: the library as it was")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=("times", "launches"))
    parser.add_argument("--part", choices=("times", "launches"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part:
        with contextlib.redirect_stdout(sys.stderr):
            found = times() if args.part == "times" else launches_of_steps()
        print(json.dumps(found))
        return
    trees = {"this tree": HERE} | ({"before": args.other.resolve()} if args.other else {})
    if args.only != "launches":
        write_times(trees, args.turns)
    if args.only != "times":
        write_launches(trees)


if __name__ == "__main__":
    main()
