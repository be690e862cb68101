import importlib
import os
import re
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from sj_prune import __main__, _host, methods
from sj_prune._version import __version__
from tests.support.pruning_cases import criticality, train, wrapped


@pytest.fixture
def run(capsys):
    """Run the report; return ``{name: value}`` of one of its sections."""

    def run_main(section):
        assert __main__.main() == 0
        blocks = capsys.readouterr().out.strip().split("\n\n")
        (block,) = [block for block in blocks if block.startswith(f"{section}\n")]
        rows = (line.strip().partition("  ") for line in block.splitlines()[1:])
        return {name: value.strip() for name, _, value in rows}

    return run_main


@pytest.fixture
def import_of_cupy(monkeypatch):
    """Return a setter of the module or error that ``import cupy`` gives."""
    original = importlib.import_module

    def set_result(result):
        def import_module(name, *args):
            if name != "cupy":
                return original(name, *args)
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(importlib, "import_module", import_module)

    return set_result


def missing(name):
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


class FakeCupy:
    __version__ = "14.2.0"

    class cuda:  # noqa: N801
        class runtime:  # noqa: N801
            @staticmethod
            def runtimeGetVersion():  # noqa: N802
                return 12090


def test_versions(run):
    versions = run("Versions")
    assert versions["sj_prune"] == __version__
    assert versions["spikingjelly"] == _host.release()
    assert versions["torch"].startswith(f"{torch.__version__} (CUDA build: ")
    assert {"python", "numpy", "cupy", "triton", "torch_pruning"} <= versions.keys()


def test_engine_runs_on_every_device_present(run):
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    engines = run("Engines")
    assert {engines[f"torch on {device}"] for device in devices} == {"ok"}
    # The tests force the reference engine; whether a C++ compiler is here depends on the machine.
    assert engines["used on cpu"] == "torch"
    assert engines["cpp on cpu"] == "ok" or "no C++ compiler" in engines["cpp on cpu"]


def test_engine_is_forced_only_while_it_is_tried(run, monkeypatch):
    monkeypatch.delenv("SJ_PRUNE_ENGINE")
    run("Engines")
    assert "SJ_PRUNE_ENGINE" not in os.environ


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [
        ("13.0", "not installed: pip install sj_prune[cuda13]"),
        ("12.6", "not installed: pip install sj_prune[cuda12]"),
        ("11.8", "not installed (no extra of sj_prune fits CUDA 11.8)"),
        (None, "not installed (of no use: this torch has no CUDA)"),
    ],
)
def test_missing_cupy_names_the_extra(run, import_of_cupy, monkeypatch, cuda, expected):
    import_of_cupy(missing("cupy"))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert run("Versions")["cupy"] == expected


def test_cupy_with_its_cuda_runtime(run, import_of_cupy):
    import_of_cupy(FakeCupy)
    assert run("Versions")["cupy"] == "14.2.0 (CUDA runtime: 12.9)"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError("libcudart.so.13: no such file\nsecond line"),
            "OSError: libcudart.so.13: no such",
        ),
        (missing("fastrlock"), "ModuleNotFoundError: No module named 'fastrlock'"),
        (ImportError(), "ImportError: no message"),
    ],
)
def test_broken_cupy_is_reported(run, import_of_cupy, error, expected):
    import_of_cupy(error)
    found = run("Versions")["cupy"]
    assert found.startswith(f"failed: {expected}")
    assert "second line" not in found


def test_missing_optional_packages_are_named(run, monkeypatch):
    original = metadata.version

    def version(name):
        if name in ("triton", "torch-pruning"):
            raise metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(metadata, "version", version)
    versions = run("Versions")
    assert versions["triton"] == versions["torch_pruning"] == "not installed"


def test_failing_engine_is_reported(run, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(__main__, "RecordingLIFNode", fail)
    assert run("Engines")["torch on cpu"] == "failed: RuntimeError: no kernel image"


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_wrong_engine_is_not_ok(run, monkeypatch, offset):
    """A layer without spikes, or without a gradient, must not be reported as ok."""

    class Wrong(torch.nn.Module):
        def forward(self, x_seq):
            return 0.0 * x_seq + offset

    monkeypatch.setattr(__main__, "RecordingLIFNode", lambda **_: Wrong())
    assert run("Engines")["torch on cpu"].startswith("failed: RuntimeError: Expected")


def test_cuda_devices_are_listed(run, monkeypatch):
    class Properties:
        name, total_memory, major, minor = "NVIDIA Test", 3 * 2**29, 9, 0

    def properties(index):
        if index == 1:
            raise RuntimeError("CUDA error: out of memory")
        return Properties

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(__main__, "engine_rows", lambda: [("test", "ok")])
    machine = run("Machine")
    assert machine["cuda:0"] == "NVIDIA Test, 1.5 GiB, compute capability 9.0"
    assert machine["cuda:1"] == "failed: RuntimeError: CUDA error: out of memory"


def test_no_cuda_device(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("Machine")["CUDA devices"] == "none"


# ---- the table of methods, and what a checkpoint holds -------------------------------------------


def printed(capsys, *arguments):
    assert __main__.main(arguments) == 0
    return capsys.readouterr().out


def test_methods_are_all_in_the_table(capsys):
    lines = printed(capsys, "methods", "--markdown").splitlines()
    cells = {(row := [c.strip() for c in line.strip("|").split("|")])[0]: row for line in lines}
    bases = {"Method", "ScheduledMethod", "ChannelMethod"}
    kinds = {name: getattr(methods, name) for name in methods.__all__}
    known = {n for n, k in kinds.items() if isinstance(k, type) and issubclass(k, methods.Method)}
    assert known - bases <= cells.keys()
    assert not bases & cells.keys()
    assert cells["RigL"][1:6] == [
        *("unstructured", "magnitude", "gradient magnitude, 0.3 to 0 of kept", "constant"),
        "Evci et al., 2020",
    ]
    assert cells["FPGM"][1:5] == ["channels", "distance to others", "none", "one shot"]
    assert "rho=0.001" in cells["ADMM"][6]
    assert "emergent" in cells["STDS"]
    assert "| " not in printed(capsys, "methods")


def test_report_of_a_checkpoint(capsys, tmp_path):
    model, optimizer = wrapped(criticality())
    train(model, optimizer, 6)
    path = tmp_path / "state.pt"
    torch.save({"epoch": 3, "model": model.state_dict()}, path)
    text = printed(capsys, "report", str(path))
    assert "in: model\nmethod: Criticality\n" in text
    assert "\n  regrow = 0.25\n" in text
    assert "\nstep: 6\n" in text
    record = model.history[-1]
    assert f"last update: step {record.step}, sparsity {record.sparsity:.4f}" in text
    rows = [line.split() for line in text.splitlines()]
    for name, found in model.sparsity().items():
        (row,) = [row for row in rows if row[:1] == [name] and len(row) > 4 - (name == "total")]
        assert row[-1] == f"{found:.4f}"
    weight = "x".join(map(str, model.net[3].weight.shape))
    kept = int(model.masks["3"].sum())
    assert ["3", weight, str(kept), "216", f"{1 - kept / 216:.4f}"] in rows
    assert ["3", str(record.kept["3"]), str(record.dropped["3"]), str(record.grown["3"])] in rows


def test_report_of_channels_before_and_after_a_forward(capsys, tmp_path):
    model, optimizer = wrapped(methods.FilterNorm(sparsity=0.5, end=2))
    path = tmp_path / "state.pt"
    torch.save(model.state_dict(), path)
    assert "no masks" in printed(capsys, "report", str(path))
    train(model, optimizer, 2)
    torch.save(torch.nn.ModuleDict({"inner": model}).state_dict(), path)
    text = printed(capsys, "report", str(path))
    assert "in: inner\n" in text
    assert f"{model.sparsity()['total']:.4f}" in text
    assert "last update: step 2" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(2)}, "Expected the state_dict of a PruningWrapper"),
        ({"_extra_state": {"masks": {}, "method": {}}}, "Expected a whole '_extra_state'"),
        ({"_extra_state": {"masks": 3, "method": {"name": "x"}}}, "is damaged"),
        (None, "No such file"),
        (b"", "is empty"),
        (b"not a checkpoint", "but .* begins with b'not a checkpoint'"),
    ],
)
def test_no_checkpoint_to_report(capsys, tmp_path, content, message):
    path = tmp_path / "state.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(SystemExit) as found:
        __main__.main(["report", str(path)])
    assert found.value.code == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_reader_that_has_seen_enough():
    """As ``python -m sj_prune methods | head -1``, where head is faster."""
    child = subprocess.Popen(
        [sys.executable, "-m", "sj_prune", "methods"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    child.stdout.close()
    assert b"Error" not in child.stderr.read()  # an old SpikingJelly warns
    child.stderr.close()
    assert child.wait() == 0


def test_report_of_an_empty_mask(tmp_path, capsys):
    model, _ = wrapped(criticality())
    state = model.state_dict()
    name = next(iter(state["_extra_state"]["masks"]))
    state["_extra_state"]["masks"][name] = torch.empty(0, dtype=torch.bool)
    torch.save(state, tmp_path / "empty.pt")
    with pytest.raises(SystemExit, match="1"):
        __main__.main(["report", str(tmp_path / "empty.pt")])
    assert f"Expected a mask of {name!r} but it is empty" in capsys.readouterr().err
