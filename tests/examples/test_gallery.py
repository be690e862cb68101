"""The gallery draws every picture of its page."""

import importlib.util
import re

import pytest

from tests.support.example_cases import EXAMPLES

pytest.importorskip("matplotlib").use("Agg")
pytest.importorskip("tqdm")

pytestmark = pytest.mark.xdist_group("quickstart")  # one process compiles what both deploy


def test_every_picture_of_the_page_is_drawn(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("examples_gallery", EXAMPLES / "gallery.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    small = {"WIDTHS": (4, 4, 4), "TIME_STEPS": 4, "HELD_OUT": 5, "DENSE_EPOCHS": 1}
    for name, value in {**small, "PRUNE_EPOCHS": 8}.items():
        monkeypatch.setattr(script, name, value)
    script.main(["--per-class", "3", "--out", str(tmp_path)])
    page = (EXAMPLES.parent / "docs" / "gallery.md").read_text()
    shown = re.findall(r"\(gallery/(\w+)\.png\)", page)
    assert sorted(shown) == sorted(path.stem for path in tmp_path.glob("*.png"))
    assert all((tmp_path / f"{n}.png").read_bytes().startswith(b"\x89PNG") for n in shown)
