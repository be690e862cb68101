"""The example of all analyses: two pruned networks, four tables, four pictures."""

import importlib.util

import pytest

from tests.support.example_cases import EXAMPLES

pytest.importorskip("matplotlib").use("Agg")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

#: its modules are those of the quickstart
pytestmark = pytest.mark.xdist_group("quickstart")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("examples_analyses", EXAMPLES / "analyses.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.WIDTHS = (4, 4, 4)
    return script


def test_all_analyses_of_two_networks(example, tmp_path, capsys):
    small = ["--epochs", "2", "--orders", "2", "--images", "256", "--threads", "1"]
    example.main([*small, "--out", str(tmp_path)])
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert text.rstrip() in capsys.readouterr().out
    for title in ("Clusters: dense", "Shapley values: NetworkSlimming", "Noise: SCA"):
        assert f"## {title}\n" in text
    assert "6 silent channels, worth 0, are left out" in text  # half of all
    epochs = [line for line in text.splitlines() if line.startswith(("| 0  ", "| 1  "))]
    assert len(epochs) >= 2
    for name in ("clusters", "transition", "shapley", "noise"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
