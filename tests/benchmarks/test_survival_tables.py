"""What the pages of the settling experiment say, of rows written by hand."""

import json
import math
import shutil
from pathlib import Path

import pytest
from scipy import stats

from benchmarks.accuracy.table import NOT_MEASURED
from benchmarks.survival import pages, tables, verdicts

DOCS = Path(__file__).parents[2] / "docs"
MAGNITUDE = [40.0, 42.0, 44.0, 46.0]


def row(recipe, arm, seed, accuracy, energy=1000.0, survival=((200, 10, 1), (300, 30, 3))):
    regrown = {"features.conv1": 30, "classifier.linear": 0} if survival else {}
    values = {
        **{"recipe": recipe, "arm": arm, "seed": seed, "accuracy": accuracy, "energy_nj": energy},
        **{"synops": 2e5, "survival": json.dumps(survival), "regrown": json.dumps(regrown)},
        "density": json.dumps({"features.conv1": 0.5, "classifier.linear": 0.25}),
        **{"curve": json.dumps([accuracy / 2, accuracy]), "parameters_nonzero": 5000},
        **{"wall_seconds": 10, "cpu_seconds": 5, "device": "a GPU", "torch": "2", "python": "3"},
        **{"spikingjelly": "2", "commit": "abc", "images": "CIFAR-10", "test_images": 10000},
    }
    return {name: str(value) for name, value in values.items()}


def arm(recipe, name, gains, start=0, **others):
    """Rows of an arm that is so many points above magnitude, a value a seed."""
    return [
        row(recipe, name, start + i, base + gain, **others)
        for i, (base, gain) in enumerate(zip(MAGNITUDE, gains, strict=False))
    ]


SETTLE = [
    *arm("x1", "magnitude", [0, 0, 0, 0], survival=()),
    *arm("x1", "published", [-2, -1.5, -2.5, -2.2], energy=3000.0),
    *arm("x1", "published-permuted", [-3, -2.4, -3.6, -3.2]),
    *arm("x1", "keeps", [-0.5, 0.4, 0.1, -0.2]),
    *arm("x1", "keeps-permuted", [-0.4, 0.3, 0.2, -0.1]),
    *arm("x1", "keeps-r0.03", [1, 1.1, 0.9, 1.2]),
    *arm("x1", "cqp", [-1, -1], survival=()),
    *arm("x1", "dense", [9, 9, 9, 9], survival=()),
]


def confirmed(gains):
    return [
        *arm("x2", "magnitude", [0, 0, 0, 0], start=100, survival=()),
        *arm("x2", "keeps-r0.03", gains, start=100),
    ]


def test_differences_are_of_pairs():
    values = tables.differences(SETTLE, "x1", "published", "magnitude")
    assert values == pytest.approx([-2, -1.5, -2.5, -2.2])
    theirs = stats.ttest_rel([40 - 2, 42 - 1.5, 44 - 2.5, 46 - 2.2], MAGNITUDE)
    low, high = theirs.confidence_interval(0.95)
    mean, half = tables.interval(values)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert tables.differences(SETTLE, "x1", "cqp", "magnitude") == [-1, -1]
    assert tables.differences(SETTLE, "x2", "published", "magnitude") == []
    assert tables.interval([3.0]) == (3.0, math.inf)
    assert tables.text([3.0]) == "+3.00 (one seed)"


@pytest.mark.parametrize(
    ("values", "sign"), [([1, 1.2, 0.9], 1), ([-1, -1.1, -1], -1), ([1, -1, 0.5], 0), ([5], 0)]
)
def test_sign(values, sign):
    assert tables.sign(values) == sign


def test_best_arms_are_no_controls():
    assert tables.best_arms(SETTLE) == ["keeps-r0.03", "keeps", "cqp"]
    with pytest.raises(ValueError, match="Expected rows of 3 arms to choose by but got 0"):
        tables.best_arms([])


def test_survival_is_of_all_seeds():
    found = [row("x1", "keeps", 0, 1.0), row("x1", "keeps", 1, 1.0, survival=((200, 30, 11),))]
    assert tables.survival(found) == {200: 12 / 40, 300: 3 / 30}


def test_tables():
    lines = tables.comparison_table(SETTLE).splitlines()
    assert any("Criticality as published" in line and "-2.05 ± 0.67" in line for line in lines)
    assert "10.0 %" in lines[3]  # 30 of each update's 300, after the first
    control = tables.control_table(SETTLE)
    assert "| 4 of 4" in control
    assert "| 1 of 4" in control
    assert "100 % / 50.0 %" in tables.layer_table(SETTLE)
    assert "CQP" not in tables.survival_table(SETTLE)
    assert "1.00" in tables.confirm_table(confirmed([1, 1, 1, 1.1]))
    for table in (tables.comparison_table, tables.control_table, tables.survival_table):
        assert table([]) == NOT_MEASURED
    assert tables.layer_table([]) == tables.confirm_table([]) == NOT_MEASURED


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        (
            [1, 1.1, 0.9, 1],
            "1 are above 0: keeps_value, r = 0.03 (16 epochs: +1.00 ± 0.13), 0 below.",
        ),
        ([1, -1, 0.5, 0], "0 are above 0, 0 below."),
        ([-1, -1.1, -1, -1], "0 are above 0, 1 below: keeps_value, r = 0.03"),
    ],
)
def test_verdicts_whichever_way_it_comes_out(gains, says):
    text = verdicts.says(SETTLE + confirmed(gains))
    assert says in text
    assert "as published** is +1.00 ± 0.13 points" in text
    assert "picks better than chance" in text
    assert "keeps_value** is -0.05 ± 0.16 points" in text
    assert "cannot be told from chance" in text
    assert "Above it: keeps_value, r = 0.03." in text
    assert "Criticality as published 3.0" in text


def test_controls_of_longer_training_are_no_criticality():
    longer = [
        *arm("x4", "magnitude", [0, 0, 0, 0], start=100, survival=()),
        *arm("x4", "keeps", [2, 2.1, 1.9, 2], start=100, energy=4000.0),
        *arm("x4", "keeps-permuted", [1, 1.1, 0.9, 1], start=100),
        *arm("x4", "magnitude-erk", [3, 3.1, 2.9, 3], start=100, energy=2000.0, survival=()),
    ]
    text = verdicts.says(SETTLE + longer)
    assert "of 1 differences to `Magnitude`" in text
    assert "keeps_value**, 32 epochs, is +1.00 ± 0.00 points" in text
    assert "32 epochs: +3.00 ± 0.13 (4 pairs), and keeps_value is -1.00 ± 0.00 (4 pairs)" in text
    assert "2.0 times its energy" in text
    assert "-1.00 ± 0.00 (4 pairs)" in tables.confirm_table(longer)


def test_an_arm_is_held_against_magnitude_of_its_allocation():
    longer = [
        *arm("x4", "magnitude", [0, 0, 0, 0], start=100, survival=()),
        *arm("x4", "magnitude-erk", [3, 3.1, 2.9, 3], start=100, survival=()),
        *arm("x4", "keeps-erk", [2, 2.1, 1.9, 2], start=100),
    ]
    assert "1 below: keeps_value within layers, ERK (32 epochs: -1.00" in verdicts.says(
        SETTLE + longer
    )


def test_a_pair_is_of_one_device():
    mine = arm("x4", "keeps", [1, 1, 1], start=100)
    theirs = arm("x4", "magnitude", [0, 0, 0], start=100)
    theirs[1]["device"] = "cpu"
    assert tables.differences(mine + theirs, "x4", "keeps", "magnitude") == [1.0, 1.0]
    twice = [*mine, *arm("x4", "keeps", [5], start=100)]
    twice[-1]["device"] = "cpu"
    assert tables.differences(twice + theirs, "x4", "keeps", "magnitude") == [1.0, 1.0]


def test_energy_is_compared_in_pairs():
    rows = [
        *arm("x1", "magnitude", [0, 0], energy=100.0),
        *arm("x1", "keeps", [0, 0, 0], energy=300.0),
        row("x1", "magnitude", 9, 40.0, energy=9e9),
    ]
    assert tables.energy_ratio(rows, "x1", "keeps", "magnitude") == 3.0


def test_before_anything_is_confirmed():
    assert verdicts.says([]) == verdicts.trained([]) == verdicts.groups([]) == NOT_MEASURED
    assert "not measured yet" in verdicts.says(SETTLE)


TRAINED = [
    row("cifar", name, seed, accuracy + seed, energy, survival=())
    for seed in (0, 1)
    for name, accuracy, energy in (
        *(("dense", 80.0, 9000.0), ("magnitude-90", 78.0, 1000.0)),
        ("criticality-90", 77.5, 2500.0),
    )
]


def test_trained():
    table = tables.trained_table(TRAINED)
    assert "80.50" in table
    assert "78.00 to 79.00" in table
    text = verdicts.trained(TRAINED)
    assert "At 90 % `Criticality` is -0.50, -0.50 points" in text
    assert "2.5 times its energy" in text
    assert "98 %" not in text


def test_pages_are_written_with_their_pictures(tmp_path):
    docs, results = tmp_path / "docs", tmp_path / "results"
    docs.mkdir()
    results.mkdir()
    for name in pages.pages([]):
        shutil.copy(DOCS / name, docs)
    longer = [
        *arm("x4", "magnitude", [0, 0, 0, 0], start=106, survival=()),
        *arm("x4", "keeps", [9, 2, 2.1, 1.9], start=106),
        *arm("x4", "keeps-permuted", [0, 1, 1, 1], start=106),
        *arm("x4", "magnitude-erk", [1, 2, 1, 2], start=106, survival=()),
        *arm("x2", "magnitude-erk", [1, 2, 1, 2], start=100, survival=()),
    ]
    for line in longer:
        line["device"] = "cpu x1" if line["seed"] == "106" else "a GPU"
    lines = SETTLE + confirmed([1, 1, 1, 1.1]) + longer + TRAINED
    from benchmarks.accuracy.rows import append_row

    for i, line in enumerate(lines):
        append_row(results / "survival_x.csv", {"cell": str(i), **line}, tmp_path / "lock")
    pages.main(["--results", str(results), "--docs", str(docs)])
    text = (docs / "survival.md").read_text()
    assert tables.comparison_table(lines) in text
    assert "CPU: +9.00 (one seed) to magnitude, +9.00 (one seed) to its permuted" in text
    assert "GPU: +2.00 ± 0.25 (3 pairs) to magnitude, +1.00 ± 0.25 (3 pairs) to its" in text
    assert NOT_MEASURED not in text
    assert (docs / "survival.png").stat().st_size > 10_000
    assert (docs / "cifar_training.png").stat().st_size > 10_000


def test_committed_pages_are_what_the_rows_say():
    """Run `python -m benchmarks.survival.pages` after an experiment."""
    found = tables.read(pages.RESULTS)
    for name, parts in pages.pages(found).items():
        text = (DOCS / name).read_text()
        for marker, write in parts.items():
            assert f"<!-- {marker} -->\n{write()}\n<!-- end -->" in text
