"""Tables from a CSV written by hand, against numbers worked out by hand."""

import math
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.accuracy import pages
from benchmarks.accuracy.pages import expected
from benchmarks.accuracy.rows import COLUMNS, append_row
from benchmarks.accuracy.table import (
    HEADERS,
    NOT_MEASURED,
    criterion_table,
    drops,
    main_table,
    mean_and_interval,
    parts_table,
    surrogate_table,
)

DOCS = Path(__file__).parents[2] / "docs"
CIFAR = pages.CIFAR


def row(method="dense", settings="", sparsity="0.0", seed=0, accuracy_=90.0, **others):
    """Return a row as it is read: text in every column."""
    values = {
        **{"suite": "cpu", "group": "main", "dataset": CIFAR, "network": "DVSNet"},
        **{"method": method, "settings": settings, "sparsity": sparsity},
        **{"sparsity_reached": sparsity, "seed": seed, "epochs": 8, "schedule": "short"},
        **{"accuracy": accuracy_, "best_accuracy": 99, "synops": 2_000_000, "analog_macs": 500_000},
        **{"energy_nj": 4100.4, "parameters": 135_000, "parameters_nonzero": 13_500},
        **{"wall_seconds": 100.0, "cpu_seconds": 60.0, "sessions": 1, "imp_epochs": 72},
        **{"epochs_over_imp": 0.1111, "commit": "abc1234", "device": "cpu x1", "sj_prune": "1"},
        **{"torch": "2.11", "spikingjelly": "2.0.0", "python": "3.11"},
        "arguments": f"cifar.py --seed {seed} --method {method}",
        "cell": f"{method}{settings}{sparsity}{seed}",
        **others,
    }
    assert set(values) == set(COLUMNS)
    return {name: str(value) for name, value in values.items()}


# Drops of Criticality: 1, 2 and 6 points: mean 3, standard deviation sqrt(7), Student's quantile of
# 2 degrees of freedom 4.30265: 4.30265 * sqrt(7) / sqrt(3) = 6.5725.
DENSE = [row(seed=s, accuracy_=a) for s, a in enumerate((90.0, 91.0, 95.0))]
CRITICALITY = [
    row("Criticality", "regrow=0.2", "0.9", s, a) for s, a in enumerate((89.0, 89.0, 89.0))
]
MAGNITUDE = [row("Magnitude", "", "0.9", s, a) for s, a in enumerate((88.0, 89.5, 92.0))]
ROWS = [*MAGNITUDE, *CRITICALITY, *DENSE]


def cells(table):
    """Return a Markdown table as lists of text, without its rule."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    found = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return [found[0], *found[2:]]


def test_interval_is_students():
    mean, half = mean_and_interval([1.0, 2.0, 6.0])
    assert mean == 3.0
    assert half == pytest.approx(4.30265 * math.sqrt(7 / 3), rel=1e-5)
    # 1 degree of freedom: 12.7062; the standard deviation of 1 and 2 is 1 / sqrt(2).
    assert mean_and_interval([1.0, 2.0])[1] == pytest.approx(12.7062 / 2, rel=1e-5)
    assert mean_and_interval([1.5]) == (1.5, None)
    assert mean_and_interval([2.0, 2.0, 2.0]) == (2.0, 0.0)


def test_drops_are_paired_by_seed():
    assert drops(CRITICALITY, ROWS) == [1.0, 2.0, 6.0]
    # A seed without its dense training does not count; neither does another schedule's.
    other = row(seed=2, accuracy_=95.0, schedule="full")
    assert drops(CRITICALITY, [*DENSE[:2], other]) == [1.0, 2.0]


def test_main_table():
    header, *lines = cells(main_table(ROWS, CIFAR))
    assert header == list(HEADERS)
    assert [line[:5] for line in lines] == [
        ["-", "dense", "92.00", "-", "3"],
        ["90.00 %", "Criticality", "89.00", "3.00 ± 6.57", "3"],
        # Drops of 2, 1.5 and 3: mean 2.17, deviation 0.7638, half width 1.897.
        ["90.00 %", "Magnitude", "89.83", "2.17 ± 1.90", "3"],
    ]
    assert lines[1][5:] == ["2.000", "0.500", "4100", "13.5", "8", "0.111", "60", "100"]


def test_what_is_not_there_is_not_measured():
    assert main_table([], CIFAR).strip() == NOT_MEASURED
    assert main_table(ROWS, "generated DVS").strip() == NOT_MEASURED
    lines = cells(main_table(CRITICALITY, CIFAR))
    assert lines[1][3] == NOT_MEASURED  # without dense training no drop
    killed = [row("Magnitude", "", "0.9", 0, 88.0, wall_seconds="", cpu_seconds="")]
    assert cells(main_table([*DENSE, *killed], CIFAR))[2][-2:] == [NOT_MEASURED] * 2
    for table in (criterion_table, parts_table):
        assert table(ROWS, CIFAR).strip() == NOT_MEASURED
    assert surrogate_table(ROWS, CIFAR, "sigmoid").strip() == NOT_MEASURED
    assert expected([], "cifar", [("dense", "0.0")]).strip() == NOT_MEASURED


def test_one_seed_has_no_interval():
    assert cells(main_table([DENSE[0], CRITICALITY[0]], CIFAR))[2][3] == "1.00 (one seed)"


def ablation(settings, seed, accuracy_, group, method="Criticality", sparsity="0.95"):
    return row(method, settings, sparsity, seed, accuracy_, group=group)


def test_criterion_table():
    rows = [
        *DENSE,
        *[row("Criticality", "regrow=0.1", "0.95", s, 88.0) for s in range(3)],
        *[row("Magnitude", "", "0.95", s, a) for s, a in enumerate((88.0, 89.0, 93.0))],
        ablation("regrow=0.1 growth=random", 0, 85.0, "main"),
        ablation("regrow=0.3 growth=gradient", 1, 80.0, "regrow criterion"),
        ablation("regrow=0.3 drop=random", 1, 10.0, "prune and regrow"),
        ablation("regrow=0.3 surrogate=tanh", 1, 10.0, "surrogate"),
    ]
    header, *lines = cells(criterion_table(rows, CIFAR))
    assert header == ["regrow ratio", "criticality", "gradient", "random", "none (= Magnitude)"]
    none = "2.00 ± 0.00, 3 seeds"
    # Drops of 2, 3 and 7: as 1, 2 and 6.
    assert lines == [
        ["0.1", "4.00 ± 6.57, 3 seeds", NOT_MEASURED, "5.00 (one seed)", none],
        ["0.3", NOT_MEASURED, "11.00 (one seed)", NOT_MEASURED, none],
    ]


def test_parts_table():
    rows = [
        *DENSE,
        row("Criticality", "regrow=0.1", "0.95", 0, 88.0),
        row("Magnitude", "", "0.95", 0, 87.0),
        row("Magnitude", "", "0.9", 0, 50.0),
        row("Random", "", "0.95", 0, 60.0),
        ablation("regrow=0.1 drop=random", 0, 70.0, "prune and regrow"),
    ]
    lines = cells(parts_table(rows, CIFAR))[1:]
    assert [line[1:] for line in lines] == [
        ["88.00", "2.00 (one seed)"],
        ["87.00", "3.00 (one seed)"],
        ["70.00", "20.00 (one seed)"],
        [NOT_MEASURED, NOT_MEASURED],
        ["60.00", "30.00 (one seed)"],
    ]


def test_surrogates_are_compared_with_their_own_dense_training():
    rows = [
        *DENSE,
        row("Criticality", "regrow=0.1", "0.95", 0, 88.0),
        row("dense", "surrogate=atan", "0.0", 0, 80.0, group="surrogate"),
        ablation("regrow=0.1 surrogate=atan", 0, 77.0, "surrogate"),
    ]
    lines = cells(surrogate_table(rows, CIFAR, "sigmoid"))[1:]
    assert lines == [
        ["atan", "80.00", "77.00", "3.00 (one seed)"],
        ["sigmoid", "92.00", "88.00", "2.00 (one seed)"],
        ["tanh", NOT_MEASURED, NOT_MEASURED, NOT_MEASURED],
    ]
    # Nor does the main table take them for its own.
    assert cells(main_table(rows, CIFAR))[1][:5] == ["-", "dense", "92.00", "-", "3"]


def test_expected_result_is_a_command_with_its_figures():
    text = expected(ROWS, "cifar", [("Criticality", "0.9")])
    command = re.search(r"```bash\n(.*?)\n```", text, re.DOTALL)[1]
    assert command.replace("\\\n", "").split() == (
        ["python", "examples/cifar.py", "--seed", "0", "--method", "Criticality"]
    )
    assert "89.00 % (mean of 3 seeds, 89.00 to 89.00) at sparsity 90.00 %" in text
    assert "100 s, 60 s of CPU; cpu x1, torch 2.11, commit abc1234; short" in text


def test_pages_are_written_between_their_markers(tmp_path):
    pytest.importorskip("matplotlib")
    shutil.copytree(DOCS, tmp_path / "docs")
    (tmp_path / "docs" / "accuracy_cpu.png").unlink(missing_ok=True)
    for r in ROWS:
        append_row(tmp_path / "accuracy_cpu.csv", r, tmp_path / "lock")
    arguments = ["--results", str(tmp_path), "--docs", str(tmp_path / "docs")]
    pages.main(arguments)
    text = (tmp_path / "docs" / "accuracy.md").read_text()
    assert "3.00 ± 6.57" in text
    assert text.count(NOT_MEASURED) >= 5  # event data, ablations, gpu
    assert "9 trainings" in text
    assert (tmp_path / "docs" / "accuracy_cpu.png").stat().st_size > 5_000
    assert "89.00 % (mean of 3 seeds" in (tmp_path / "docs" / "cifar.md").read_text()
    assert NOT_MEASURED in (tmp_path / "docs" / "tiny_imagenet.md").read_text()
    pages.main(arguments)
    assert (tmp_path / "docs" / "accuracy.md").read_text() == text


def test_committed_pages_are_those_of_the_committed_results(tmp_path):
    """Nobody has changed a figure by hand, or a CSV without writing the pages anew."""
    shutil.copytree(DOCS, tmp_path / "docs")
    pages.main(["--docs", str(tmp_path / "docs"), "--no-plots"])
    for path in DOCS.glob("*.md"):
        assert (tmp_path / "docs" / path.name).read_text() == path.read_text(), path.name
