"""Generated tables: made of the CSV files, and no winner where ranges overlap."""

import importlib.util
import sys
from pathlib import Path

import pytest

from benchmarks import choosing, gpu_tables

ROOT = Path(__file__).parents[2]


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def readme():
    return loaded("readme")


def row(seed, sparsity, growth, accuracy):
    dense = growth == "dense"
    return {
        **{"seed": str(seed), "sparsity": str(sparsity), "growth": growth},
        **{"accuracy": str(accuracy), "macs": "2e6", "synops": "3e5", "latency_ratio": "0.5"},
        **{"channels_before": "" if dense else "100", "channels_after": "" if dense else "50"},
        **{"regrow": "0.1" if growth == "gradient" else "0.0", "cpu_seconds": "40"},
        **{"train_images": "4096", "test_images": "2000", "epochs": "12", "time_steps": "2"},
        "device": "cpu",
    }


def study(with_growth, without):
    pairs = zip(with_growth, without, strict=True)
    rows = [
        row(seed, 0.5, growth, accuracy)
        for seed, pair in enumerate(pairs)
        for growth, accuracy in zip(("gradient", "none"), pair, strict=True)
    ]
    return [row(0, 0.0, "dense", 60.0), *rows]


@pytest.mark.parametrize(
    ("with_growth", "without", "verdict"),
    [
        ((42.0, 43.0, 44.0), (39.0, 40.0, 41.0), "+3.00 points; every seed with growth is above"),
        ((42.0, 43.0, 44.0), (39.0, 40.0, 42.0), "+2.67 points; the ranges overlap, so no winner"),
        ((39.0, 40.0, 41.0), (42.0, 43.0, 44.0), "-3.00 points; every seed with growth is below"),
        ((39.0, 40.0, 45.0), (42.0, 43.0, 44.0), "-1.67 points; the ranges overlap, so no winner"),
    ],
)
def test_no_winner_where_ranges_overlap(readme, monkeypatch, with_growth, without, verdict):
    monkeypatch.setattr(readme, "rows", lambda name: study(with_growth, without))
    text = readme.channel_growth()
    assert f"50 %: growth by gradient against none {verdict}" in text
    mean = sum(with_growth) / 3
    cells = (
        f"{mean:.2f} %|{min(with_growth):.2f} to {max(with_growth):.2f} %|50 of 100|2.00 M|300 k"
    )
    lines = [line.replace(" | ", "|") for line in text.splitlines()]
    assert any(cells in "|".join(cell.strip() for cell in line.split("|")) for line in lines)
    assert "test accuracy, mean of 3 seeds" in text


def test_cells_of_the_catalogue_are_means_over_seeds(readme, monkeypatch):
    def cell(group, method, sparsity, seed, accuracy, epochs=10):
        text = {"group": group, "method": method, "sparsity": str(sparsity), "seed": str(seed)}
        numbers = {"sparsity_reached": sparsity, "synops": 1500.0, "epochs": epochs}
        return {**text, "accuracy": str(accuracy), **{k: str(v) for k, v in numbers.items()}}

    found = [cell("", "dense", 0.0, seed, 96 + seed) for seed in range(3)]
    found += [cell("weights", "IMP", 0.9, seed, 90 + 2 * seed, 82) for seed in range(3)]
    found += [cell("weights", "IMP", 0.95, 0, 80.0, 109)]
    monkeypatch.setattr(readme, "rows", lambda name: found)
    text = readme.catalogue()
    assert text.startswith("Dense: 97.0 ± 1.0.\n\n**Weights**")
    line = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    wanted = ["IMP", "92.0 ± 2.0", "90.0 %", "1.5 k", "80.0 (1 seed)", "95.0 %", "1.5 k"]
    assert line == [*wanted, "82 to 109"]


def test_every_seed_and_growth_keeps_as_many_channels(readme):
    found = [row for row in readme.rows("channel_growth_cpu") if row["growth"] != "dense"]
    assert len({row["seed"] for row in found}) >= 3
    for sparsity in {row["sparsity"] for row in found}:
        kept = {row["channels_after"] for row in found if row["sparsity"] == sparsity}
        assert len(kept) == 1
        total = int(found[0]["channels_before"])
        assert int(kept.pop()) == round((1 - float(sparsity)) * total)


def test_pages_show_the_measured_tables(readme):
    """What stands in a page is what the CSV, or the class, says: run the script after a study."""
    of_others = {"docs/choosing.md": choosing.TABLES, "docs/cost.md": gpu_tables.TABLES}
    pages = [*readme.PAGES.items(), *of_others.items()]
    for name, tables in pages:
        page = (ROOT / name).read_text()
        for marker, table in tables.items():
            assert readme.insert(page, marker, table()) == page, f"{name}: {marker}"


def test_the_run_command_is_within_its_limits(readme):
    """Two minutes of a processor for all of it, one for the first pruned result."""
    found = readme.rows("quickstart_cpu")
    assert len({row["seed"] for row in found}) >= 3
    assert all(float(row["run_cpu_seconds"]) <= 120 for row in found)
    first = [row for row in found if row["method"] == "Criticality" and row["sparsity"] == "0.95"]
    assert all(float(row["at_cpu_second"]) <= 60 for row in first)


def test_unknown_marker(readme):
    with pytest.raises(ValueError, match="markers <!-- no table -->"):
        readme.insert("text", "no table", "")


def test_what_other_scripts_import_needs_no_path_of_its_own(monkeypatch):
    """`python -m benchmarks.choosing` has the root in its path, and not benchmarks/."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p).name != "benchmarks"])
    monkeypatch.delitem(sys.modules, "gpu_tables", raising=False)
    loaded("readme")
