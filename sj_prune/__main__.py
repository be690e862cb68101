"""``python -m sj_prune``: the environment, as plain text to paste into a bug report.

``python -m sj_prune methods [--markdown]`` prints the table of methods, and
``python -m sj_prune report CHECKPOINT`` what the checkpoint of a wrapper holds.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata

import torch

from sj_prune import _files, _host
from sj_prune._version import __version__
from sj_prune.engines import choice
from sj_prune.engines.request import NAMES
from sj_prune.neurons import RecordingLIFNode
from sj_prune.reports.catalogue import methods_table
from sj_prune.reports.saved import describe_checkpoint

Row = tuple[str, str]


def _attempt(compute: Callable[[], str]) -> str:
    """Return the text of `compute`, or its error: a report never fails on what it reports."""
    try:
        return compute()
    except Exception as error:  # whatever is broken here is the finding
        lines = str(error).strip().splitlines() or ["no message"]
        return f"failed: {type(error).__name__}: {lines[0]}"


def _distribution(name: str) -> str:
    """Return the installed version of an optional package, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _torch() -> str:
    return f"{torch.__version__} (CUDA build: {torch.version.cuda or 'none'})"


def _cupy_hint() -> str:
    """Return which extra brings the CuPy that shares torch's CUDA, where one does."""
    cuda = torch.version.cuda
    if cuda is None:
        return "not installed (of no use: this torch has no CUDA)"
    major = cuda.split(".")[0]
    if major not in ("12", "13"):
        return f"not installed (no extra of sj_prune fits CUDA {cuda})"
    return f"not installed: pip install sj_prune[cuda{major}]"


def _cupy() -> str:
    # Imported, for the name of the distribution depends on the CUDA version, and by name at run
    # time, for only the CuPy engine may depend on it.
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name != "cupy":  # it is here, and something that it needs is not
            raise
        return _cupy_hint()

    def runtime() -> str:
        number = cupy.cuda.runtime.runtimeGetVersion()
        return f"{number // 1000}.{number % 1000 // 10}"

    return f"{cupy.__version__} (CUDA runtime: {_attempt(runtime)})"


def version_rows() -> list[Row]:
    """Return the versions of everything a result may depend on."""
    return [
        ("sj_prune", __version__),
        ("python", platform.python_version()),
        ("torch", _torch()),
        ("spikingjelly", _attempt(_host.release)),
        ("numpy", _distribution("numpy")),
        ("cupy", _attempt(_cupy)),
        ("triton", _distribution("triton")),
        ("torch_pruning", _distribution("torch-pruning")),
    ]


def _devices() -> list[torch.device]:
    """Return every device an engine could run on, the CPU first."""
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(_cuda_count()))]


def _cuda_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cuda_device(index: int) -> str:
    device = torch.cuda.get_device_properties(index)
    memory = device.total_memory / 2**30
    return f"{device.name}, {memory:.1f} GiB, compute capability {device.major}.{device.minor}"


def machine_rows() -> list[Row]:
    """Return the platform, the CPUs and the CUDA devices."""
    count = _cuda_count()
    devices = [(f"cuda:{i}", _attempt(partial(_cuda_device, i))) for i in range(count)]
    return [
        ("platform", platform.platform()),
        ("CPUs", str(os.cpu_count())),
        ("torch threads", str(torch.get_num_threads())),
        *(devices or [("CUDA devices", "none")]),
    ]


def _run_node(device: torch.device) -> str:
    """Run a small recording layer forward and backward on `device`."""
    node = RecordingLIFNode(step_mode="m").to(device)
    x_seq = torch.linspace(0.0, 3.0, 12, device=device).reshape(2, 2, 3).requires_grad_()
    spikes = node(x_seq)
    spikes.sum().backward()
    if not spikes.any():
        raise RuntimeError("Expected spikes from an input above threshold but got none")
    if x_seq.grad is None or not x_seq.grad.isfinite().all() or not x_seq.grad.any():
        raise RuntimeError(f"Expected a finite gradient but got {x_seq.grad}")
    return "ok"


def _try_engine(name: str, device: torch.device) -> str:
    with choice.forced(name):
        return _attempt(partial(_run_node, device))


def _chosen(device: torch.device) -> str:
    engine = choice.choose(device, torch.float32)
    return next(name for name in NAMES if choice.load(name) is engine)


def engine_rows() -> list[Row]:
    """Return what each engine does on each device, ``ok`` or its error, and which one is used."""
    rows = []
    for device in _devices():
        fitting = [name for name in NAMES if choice.fits(name, device)]
        rows += [(f"{name} on {device}", _try_engine(name, device)) for name in fitting]
        rows.append((f"used on {device}", _attempt(partial(_chosen, device))))
    return rows


def _section(title: str, rows: list[Row]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def report() -> str:
    """Return the whole report as plain text."""
    sections = (
        ("Versions", version_rows()),
        ("Machine", machine_rows()),
        ("Engines", engine_rows()),
    )
    return "\n\n".join(_section(title, rows) for title, rows in sections)


def _saved(path: str) -> str:
    """Return what a checkpoint holds: numbers and tensors alone are read, no code is run."""
    return describe_checkpoint(_files.load(path, "sj_prune.save or torch.save"))


def main(arguments: Sequence[str] = ()) -> int:
    """Print what is asked for; of the environment the exit code is 0 whatever it says."""
    parser = argparse.ArgumentParser(prog="python -m sj_prune", description=__doc__)
    commands = parser.add_subparsers(dest="command", title="instead of the environment")
    listed = commands.add_parser("methods", help="the table of methods")
    listed.add_argument("--markdown", action="store_true", help="as a table of GitHub's")
    saved = commands.add_parser("report", help="what the checkpoint of a wrapper holds")
    saved.add_argument("checkpoint", help="a file that torch.save wrote")
    given = parser.parse_args(arguments)
    try:
        text = (
            methods_table(given.markdown)
            if given.command == "methods"
            else _saved(given.checkpoint)
            if given.command == "report"
            else report()
        )
    except (OSError, RuntimeError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    _show(text)
    return 0


def _show(text: str) -> None:
    try:
        print(text, flush=True)  # noqa: T201 (printing is what this module is for)
    except BrokenPipeError:
        # `| head` has seen enough; what is still to be written must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
