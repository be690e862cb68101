"""The benchmark of accuracy, end to end on generated images, stopped and taken up again."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.accuracy.cells import QUICK, Cell, quick
from benchmarks.accuracy.rows import COLUMNS, append_row, locked, make_row, read_rows
from benchmarks.accuracy.run import ROOT, _clock, main

pytest.importorskip("tqdm")


def command(tmp_path, *more):
    program = [sys.executable, "-m", "benchmarks.accuracy"]
    return [*program, "--quick", "--device", "cpu", "--out", str(tmp_path), *more]


def start(*arguments):
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def call(capsys):
    """Return what runs the command in this process: its exit status, and what it says."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        status = None
        try:
            main(command(*arguments)[3:])
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().out

    yield run
    signal.signal(signal.SIGTERM, handler)


def rows_of(tmp_path):
    return read_rows(tmp_path / "accuracy_quick.csv")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run, two trainings at a time."""
    out = tmp_path_factory.mktemp("accuracy")
    process = start(out, "--workers", "2")
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert "3 done" in printed
    return out


def test_every_cell_has_a_row(finished):
    rows = rows_of(finished)
    assert {row["cell"] for row in rows} == {cell.name for cell in quick()}
    by_method = {row["method"]: row for row in rows}
    assert set(by_method) == {"dense", "Criticality", "Magnitude"}
    for row in rows:
        assert list(row) == list(COLUMNS)
        assert all(row[name] for name in COLUMNS if name not in ("settings",))
        assert row["sessions"] == "1"
        assert float(row["cpu_seconds"]) > 0
        assert 0 < float(row["wall_seconds"]) < 200
        assert float(row["energy_nj"]) * 1000 == pytest.approx(
            4.6 * float(row["analog_macs"]) + 0.9 * float(row["synops"]), rel=1e-3
        )
    for row in (by_method["Criticality"], by_method["Magnitude"]):
        assert float(row["sparsity_reached"]) == pytest.approx(0.9, abs=1e-3)
        assert float(row["analog_macs"]) < float(by_method["dense"]["analog_macs"])
        assert int(row["parameters"]) == int(by_method["dense"]["parameters"])
        assert int(row["parameters_nonzero"]) < 0.25 * int(row["parameters"])
        assert (row["imp_epochs"], row["epochs_over_imp"]) == ("18", "0.1111")
    assert by_method["dense"]["sparsity_reached"] == "0.0"
    assert float(by_method["dense"]["epochs_over_imp"]) == 1


def test_accuracy_is_that_of_the_network_that_was_saved(finished):
    for row in rows_of(finished):
        with (finished / row["cell"] / "log.csv").open(newline="") as file:
            *_, last = csv.DictReader(file)
        assert float(row["accuracy"]) == pytest.approx(float(last["test_accuracy"]), abs=1e-4)
        assert int(last["epoch"]) == QUICK.epochs


def test_what_is_done_is_skipped(finished, call):
    before = (finished / "accuracy_quick.csv").read_bytes()
    status, printed = call(finished)
    assert status is None
    assert "3 cells, 3 done before." in printed
    assert (finished / "accuracy_quick.csv").read_bytes() == before


@pytest.mark.slow
def test_killed_between_cells_goes_on(tmp_path, finished):
    """Killed outright once a row is there: the other cells follow, and come out the same."""
    process = start(tmp_path)
    deadline = time.monotonic() + 200
    while not rows_of(tmp_path):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "the same command goes on" in printed
    first = rows_of(tmp_path)
    assert 1 <= len(first) < 3
    process = start(tmp_path)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert f"3 cells, {len(first)} done before." in printed
    rows = rows_of(tmp_path)
    assert rows[: len(first)] == first
    assert results(rows) == results(rows_of(finished))


def results(rows):
    """Return what does not depend on time and interruptions."""
    names = (
        "accuracy",
        "best_accuracy",
        "sparsity_reached",
        "synops",
        "analog_macs",
        "parameters_nonzero",
    )
    return {row["cell"]: [row[name] for name in names] for row in rows}


@pytest.mark.slow
def test_budget_stops_a_cell_and_its_checkpoint_survives(tmp_path, finished):
    """With no time at all every cell is stopped; without a limit it is finished later."""
    name = quick()[1].name
    process = start(tmp_path, "--only", name, "--budget", "0.01")
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert "1 stopped" in printed
    assert not rows_of(tmp_path)
    process = start(tmp_path, "--only", name)
    printed, _ = process.communicate(timeout=200)
    assert "1 done" in printed
    (row,) = rows_of(tmp_path)
    assert results([row])[name] == results(rows_of(finished))[name]


def test_time_of_the_whole_run(tmp_path, call):
    _, printed = call(tmp_path, "--minutes", "0.0001")
    assert "0 done" in printed
    assert "2 not started" in printed or "3 not started" in printed
    assert not rows_of(tmp_path)


def test_cell_is_trained_by_one_process_at_a_time(tmp_path, call):
    name = quick()[0].name
    (tmp_path / name).mkdir()
    with locked(tmp_path / name / "lock"):
        status, _ = call(tmp_path, "--cell", name)
    assert "another process trains it" in status


def test_failure_is_told(tmp_path, call):
    name = quick()[0].name
    (tmp_path / name).mkdir()
    (tmp_path / name / "last.pt").write_bytes(b"no checkpoint")
    status, printed = call(tmp_path, "--only", name)
    assert status == 1
    assert "failed, exit status 1" in printed
    assert not rows_of(tmp_path)


# ---- rows ----------------------------------------------------------------------------------------

CELL = Cell("quick", "main", QUICK, "Criticality", 0.98, ("--regrow", "0.01"))
RESULT = {
    **{"accuracy": 81.25, "best": 82.5, "sparsity": 0.98, "synops": 1000.4, "analog_macs": 20.0},
    **{"picojoules": 992.36, "parameters": 50, "parameters_nonzero": 5},
}


def test_seconds_add_up_over_sessions_unless_one_was_killed():
    sessions = [{"wall": 10.0, "cpu": 7.0}, {"wall": 2.5, "cpu": 2.0}]
    row = make_row(CELL, RESULT, sessions, "cpu")
    assert (row["wall_seconds"], row["cpu_seconds"], row["sessions"]) == (12.5, 9.0, 2)
    assert (row["synops"], row["energy_nj"]) == (1000, 0.992)
    row = make_row(CELL, RESULT, [None, *sessions], "cpu")
    assert (row["wall_seconds"], row["cpu_seconds"], row["sessions"]) == ("", "", 3)


def test_session_that_is_killed_is_remembered(tmp_path):
    with pytest.raises(SystemExit), _clock(tmp_path):
        raise SystemExit(130)
    (first,) = json.loads((tmp_path / "clock.json").read_text())
    assert first["cpu"] > 0
    pid = os.fork()
    if not pid:
        with _clock(tmp_path):
            os._exit(9)
    os.waitpid(pid, 0)
    assert json.loads((tmp_path / "clock.json").read_text()) == [first, None]


def test_rows_are_added_whole_and_once(tmp_path):
    path, lock = tmp_path / "results" / "a.csv", tmp_path / "lock"
    rows = [
        make_row(Cell("quick", "main", QUICK, "dense", seed=s), RESULT, [], "cpu") for s in range(3)
    ]
    for row in [*rows, rows[1]]:
        append_row(path, row, lock)
    found = read_rows(path)
    assert [row["cell"] for row in found] == [row["cell"] for row in rows]
    assert found[0] == {name: str(value) for name, value in rows[0].items()}


def test_rows_survive_a_failed_write(tmp_path, monkeypatch):
    path, lock = tmp_path / "a.csv", tmp_path / "lock"
    append_row(path, make_row(CELL, RESULT, [], "cpu"), lock)
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    other = make_row(Cell("quick", "main", QUICK, "dense"), RESULT, [], "cpu")
    with pytest.raises(OSError, match="disk full"):
        append_row(path, other, lock)
    assert path.read_bytes() == before
