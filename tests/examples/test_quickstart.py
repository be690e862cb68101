"""The quickstart runs, and what it writes is what it says."""

import csv
import importlib.util
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import neuron

pytest.importorskip("matplotlib").use("Agg")
pytest.importorskip("sklearn")


SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart.py"
RUNS = [
    ("dense", 0.0),
    ("Criticality", 0.95),
    ("Magnitude", 0.95),
    ("Criticality", 0.98),
    ("Magnitude", 0.98),
]


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Accuracies repeat exactly with one number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def out(quickstart, tmp_path_factory):
    """The folder of one quick run."""
    folder = tmp_path_factory.mktemp("quickstart")
    quickstart.QUICK_IMAGES = 128  # two batches
    quickstart.main(["--quick", "--out", str(folder), "--threads", "1"])
    return folder


def _rows(out):
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _checkpoint(out, method, sparsity):
    return torch.load(out / f"{method.lower()}_{sparsity:g}_seed0.pt", weights_only=True)


def test_every_training_has_a_row_that_says_where_it_was_measured(out):
    rows = _rows(out)
    assert [(row["method"], float(row["sparsity"])) for row in rows] == RUNS
    for row in rows:
        for column in ("commit", "device", "sj_prune", "torch", "spikingjelly", "python"):
            assert row[column]
        assert float(row["cpu_seconds"]) > 0
        assert float(row["ms_deployed"]) > 0
        assert float(row["ms_spikingjelly"]) > 0
        assert row["device"].endswith("x1")
    ends = [float(row["at_cpu_second"]) for row in rows]
    assert ends == sorted(ends)


def test_sparsities_are_exact(quickstart, out):
    weights = [p for p in quickstart.build_network().parameters() if p.ndim > 1]
    total = sum(weight.numel() for weight in weights)
    assert total == 210_720  # as the comment on CHANNELS says
    for row, (method, sparsity) in zip(_rows(out), RUNS, strict=True):
        kept = round((1 - sparsity) * total)
        assert round((1 - float(row["sparsity_reached"])) * total) == kept
        if method != "dense":
            state = _checkpoint(out, method, sparsity)
            tensors = [value for value in state.values() if value.ndim > 1]
            assert sum(tensor.numel() for tensor in tensors) == total
            assert sum(int((tensor == 0).sum()) for tensor in tensors) >= total - kept
            assert int(row["synops_after"]) < int(row["synops_before"])
            assert int(row["analog_macs_after"]) <= int(row["analog_macs_before"])


def test_pruned_checkpoints_load_into_a_stock_network(quickstart, out):
    _, _, images, labels = quickstart.load_data()
    for row, (method, sparsity) in zip(_rows(out), RUNS, strict=True):
        net = quickstart.build_network()
        net.load_state_dict(_checkpoint(out, method, sparsity), strict=True)
        nodes = [m for m in net.modules() if isinstance(m, neuron.BaseNode)]
        assert {type(node) for node in nodes} == {neuron.LIFNode}
        assert quickstart.accuracy_of(net, images, labels) == float(row["accuracy"])


def test_table_is_made_of_the_rows(quickstart, out):
    rows = _rows(out)
    table = quickstart.markdown_table(rows)  # of what was read back from the CSV
    assert (out / "results.md").read_text(encoding="utf-8") == table + "\n"
    lines = table.splitlines()[2:]
    assert [line.split()[1] for line in lines] == [method for method, _ in RUNS]
    for line, row in zip(lines, rows, strict=True):
        assert f"{float(row['accuracy']):.2f} %" in line
        assert row["method"] == "dense" or f"{100 * float(row['sparsity']):.2f} %" in line


def test_table_averages_over_seeds(quickstart, out):
    rows = _rows(out)
    first = [row | {"accuracy": "98", "ms_deployed": "1"} for row in rows]
    second = [row | {"accuracy": "99", "ms_deployed": "", "seed": "1"} for row in rows]
    lines = quickstart.markdown_table(first + second).splitlines()
    assert len(lines) == 2 + len(RUNS)
    assert all("98.50 % (98.00 to 99.00)" in line for line in lines[2:])
    assert all("=> 1.00 ms" in line for line in lines[2:])  # where it could be deployed


def test_picture_shows_every_run_and_its_range(quickstart, out):
    rows = _rows(out)
    rows += [row | {"seed": "1", "accuracy": "50", "ms_deployed": "9"} for row in rows]
    left, right = quickstart.overview(rows).axes
    assert [text.get_text() for text in left.texts] == ["", "95%", "98%", "95%", "98%"]
    means = [(float(row["ms_deployed"]) + 9) / 2 for row in rows[: len(RUNS)]]
    widths = [bar.get_width() for bar in right.patches]
    assert widths[1:] == pytest.approx(means)
    assert len(right.get_yticklabels()) == 1 + len(RUNS)


def test_what_cannot_be_deployed_is_said_and_the_rest_goes_on(quickstart, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(quickstart.sj_prune, "deploy", fails)
    x_seq = quickstart.over_time(torch.rand(1, 1, 8, 8))
    found = quickstart.milliseconds(quickstart.build_network().eval(), x_seq)
    assert found == {"ms_spikingjelly": "", "ms_deployed": ""}
    assert "Not deployed: no compiler" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["overview", "density", "criticality"])
def test_plots_are_written(out, name):
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_seed_repeats_itself_and_differs_from_the_next(quickstart):
    images, labels, _, _ = quickstart.load_data()
    small = images[:128], labels[:128], 3

    def weights(seed):
        model = quickstart.train("Criticality", 0.95, seed, *small)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_shift_moves_by_a_pixel_at_most(quickstart):
    images = torch.zeros(64, 1, 8, 8)
    images[:, :, 4, 4] = 1.0
    moved = quickstart.shift(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.flatten(1).sum(1).eq(1).all()
    places = {(int(y), int(x)) for _, _, y, x in moved.nonzero()}
    assert places == {(y, x) for y in (3, 4, 5) for x in (3, 4, 5)}


def test_split_is_fixed_and_stratified(quickstart):
    images, labels, test_images, test_labels = quickstart.load_data()
    assert (len(images), len(test_images)) == (1347, 450)
    again = quickstart.load_data()
    assert torch.equal(again[2], test_images)
    shares = torch.bincount(test_labels) / torch.bincount(torch.cat([labels, test_labels]))
    assert (shares - 0.25).abs().max() < 0.01


@pytest.mark.parametrize("option", ["--epochs", "--threads"])
def test_options_are_refused_by_name(quickstart, capsys, option):
    with pytest.raises(SystemExit):
        quickstart.main([option, "0"])
    assert f"argument {option}: Expected at least 1 but got 0" in capsys.readouterr().err
