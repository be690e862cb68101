"""The command for a rented GPU, all of it, on a CPU."""

import csv
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu_all, neuron_bytes, neuron_step

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_dry_run_is_green_and_brings_everything_home(tmp_path):
    command = [sys.executable, "benchmarks/gpu_all.py", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    card, *parts = (tmp_path / "summary.txt").read_text().splitlines()
    assert len(parts) == len(gpu_all.PARTS)
    assert all(line.split()[-1] == "ok" for line in parts)
    with tarfile.open(tmp_path / f"gpu_all_{card}.tar.gz") as file:
        logs = {Path(name).stem.replace("_", " ") for name in file.getnames() if ".log" in name}
    assert logs == set(gpu_all.PARTS)


def test_a_part_that_fails_or_runs_out_of_time_is_told(tmp_path):
    python = [sys.executable, "-c"]
    run = gpu_all.run
    assert run([*python, "pass"], tmp_path / "log", {}, 60.0) == "ok"
    assert "exit code 3" in run([*python, "exit(3)"], tmp_path / "log", {}, 60.0)
    assert "out of time" in run([*python, "import time; time.sleep(60)"], tmp_path / "log", {}, 5.0)
    assert "not measured" in run([*python, "exit(3)"], tmp_path / "log", {}, 4.0)


def test_children_find_the_package_without_an_installation(tmp_path):
    environment = gpu_all.environment_of(gpu_all.installed(None, tmp_path), tmp_path)
    code = "import sj_prune, pathlib; print(pathlib.Path(sj_prune.__file__).parents[1])"
    command = [sys.executable, "-c", code]
    found = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(ROOT)


def test_bytes_are_summed_between_the_marks():
    """Of what ncu prints: its own words, a header, a line of units, a line a kernel."""
    text = io.StringIO()
    table = csv.DictWriter(
        text, ["ID", "Kernel Name", *neuron_bytes.METRICS], quoting=csv.QUOTE_ALL
    )
    table.writeheader()
    rows = [("", "", "byte", "byte", "ns"), ("0", "warmup", "7", "7", "7")]
    rows += [("1", "spin_kernel(long)", "0", "0", "1"), ("2", "sj_rows", "1,000", "500", "10")]
    rows += [("3", "sj_merge", "20", "3", "5"), ("4", "spin_kernel(long)", "0", "0", "1")]
    rows += [("5", "sj_backward", "300", "40", "2")]
    for row in rows:
        table.writerow(dict(zip(table.fieldnames, row, strict=True)))
    lines = ["==PROF== Connected to process 1", *text.getvalue().splitlines()]
    found = list(neuron_bytes.sections(lines))
    assert found == [
        {"kernels": 2, "read": 1020, "written": 503, "nanoseconds": 15},
        {"kernels": 1, "read": 300, "written": 40, "nanoseconds": 2},
    ]


def test_half_rows_say_what_the_stock_node_ran():
    rows = [
        {"shape": "1", "surrogate": "ATan", "contender": c, "dtype": d, "total_ms": t}
        for c, d, t in (("stock", "float32", 2.0), ("stock", "float16", 6.0), ("x", "float16", 1.0))
    ]
    neuron_step.compare_with_triton(rows)
    assert [row["stock_runs"] for row in rows] == ["Triton", "torch reference", "torch reference"]
    assert [row["over_triton_float32"] for row in rows] == [1.0, 0.333, 2.0]
