"""The suites are what they say, and a cell is known by everything that its result depends on."""

import dataclasses
import math
from pathlib import Path

import pytest

from benchmarks.accuracy.cells import CIFAR_CPU, SUITES, Cell, imp_epochs, imp_rounds, shortened
from sj_prune import methods

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("suite", SUITES, ids="suite-{}".format)
def test_cells_are_unique_and_dense_comes_with_every_seed(suite):
    cells = SUITES[suite]()
    assert len({cell.name for cell in cells}) == len(cells)
    dense = {(cell.setup, cell.seed) for cell in cells if cell.method == "dense"}
    assert {(cell.setup, cell.seed) for cell in cells} == dense


def test_cpu_suite_has_the_whole_table():
    cells = [c for c in SUITES["cpu"]() if c.group == "main" and c.setup is CIFAR_CPU]
    found = {(c.method, c.settings_text, c.sparsity, c.seed) for c in cells}
    for seed in range(3):
        assert ("dense", "", 0.0, seed) in found
        for sparsity, regrow in ((0.9, 0.2), (0.95, 0.1), (0.98, 0.01)):  # as the paper pairs them
            assert ("Criticality", f"regrow={regrow}", sparsity, seed) in found
            assert ("Criticality", f"regrow={regrow} growth=random", sparsity, seed) in found
            for method in ("Magnitude", "RigL", "Random"):
                assert (method, "", sparsity, seed) in found


def test_gpu_suite_begins_with_vgg16_at_full_width():
    first = SUITES["gpu"]()[:3]
    assert [(c.method, c.sparsity) for c in first] == [
        ("dense", 0.0),
        ("Magnitude", 0.9569),
        ("Criticality", 0.9569),
    ]
    assert all(c.setup.network == "VGG16" and c.setup.epochs == 200 for c in first)
    assert not any("--widths" in c.arguments for c in SUITES["gpu"]())


def test_methods_share_all_arguments_but_their_own():
    own = {"--method", "--sparsity", "--regrow", "--set", "--surrogate", "--seed"}
    for setup in {cell.setup for suite in SUITES.values() for cell in suite()}:
        mine = [c for suite in SUITES.values() for c in suite() if c.setup == setup]
        shared = {tuple(_options(c.arguments, own)) for c in mine}
        assert len(shared) == 1, setup


def _options(arguments, without):
    kept, skip = [], False
    for word in arguments:
        if word.startswith("--"):
            skip = word in without
        if not skip:
            kept.append(word)
    return kept


@pytest.mark.parametrize("suite", SUITES, ids="suite-{}".format)
def test_settings_are_fields_of_the_method(suite):
    for cell in SUITES[suite]():
        pairs = dict(pair.split("=") for pair in cell.settings_text.split())
        pairs.pop("surrogate", None)
        if cell.method != "dense":
            fields = {field.name for field in dataclasses.fields(getattr(methods, cell.method))}
            assert set(pairs) <= fields
        else:
            assert not pairs


def test_name_depends_on_every_argument():
    cell = Cell("cpu", "main", CIFAR_CPU, "Criticality", 0.9, ("--regrow", "0.2"))
    others = [
        dataclasses.replace(cell, seed=1),
        dataclasses.replace(cell, sparsity=0.95),
        dataclasses.replace(cell, method="Magnitude"),
        dataclasses.replace(cell, settings=("--regrow", "0.1")),
        dataclasses.replace(cell, setup=CIFAR_CPU.shortened(0.5)),
        dataclasses.replace(cell, setup=dataclasses.replace(CIFAR_CPU, arguments=("--lr", "1"))),
    ]
    assert len({c.name for c in [cell, *others]}) == 7
    # Where it stands in the tables is none of its result.
    assert dataclasses.replace(cell, group="elsewhere").name == cell.name


def test_shortened_schedule_says_so():
    (cell,) = shortened([SUITES["gpu"]()[0]], 0.1)
    assert cell.setup.epochs == 20
    assert cell.setup.schedule == "shortened: 20 of 200 epochs"
    assert cell.arguments[cell.arguments.index("--epochs") + 1] == "20"


# Of arXiv 2311.16141: what 25 % a round leave, to the papers' sparsities.
@pytest.mark.parametrize(
    ("sparsity", "rounds"),
    [(0.0, 0), (0.25, 1), (0.9, 8), (0.9569, 11), (0.98, 14), (0.9813, 14)],
)
def test_rounds_of_lottery_tickets(sparsity, rounds):
    assert imp_rounds(sparsity) == rounds
    assert imp_epochs(sparsity, 10) == 10 * (rounds + 1)
    left, count = 1.0, 0
    while left > (1 - sparsity) * 1.01 + 1e-12:
        left, count = 0.75 * left, count + 1
    assert count == rounds
    assert math.isclose(left, 0.75**rounds)


@pytest.mark.parametrize("suite", SUITES, ids="suite-{}".format)
def test_options_are_known_to_the_scripts(suite):
    texts = [path.read_text() for path in (ROOT / "examples").rglob("*.py")]
    words = {word for cell in SUITES[suite]() for word in cell.arguments if word[:2] == "--"}
    for word in words:
        assert any(f'"{word}"' in text for text in texts), word
