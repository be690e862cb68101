"""The deploy example runs from dense networks to deployed ones, and leaves tables and plots."""

import functools
import importlib.util
import re

import pytest

import sj_prune
from sj_prune import models
from tests.support.example_cases import EXAMPLES

pytest.importorskip("matplotlib").use("Agg")
pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

pytestmark = pytest.mark.xdist_group("quickstart")


@pytest.fixture
def example(monkeypatch):
    spec = importlib.util.spec_from_file_location("examples_deploy", EXAMPLES / "deploy.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    images, labels, test_images, test_labels = script.quickstart.load_data()
    few = (images[:256], labels[:256], test_images[:60], test_labels[:60])
    monkeypatch.setattr(script.quickstart, "load_data", lambda: few)
    small = functools.partial(models.VGG16SCA, widths=(8,) * 13, hidden=16)
    monkeypatch.setattr(models, "VGG16SCA", small)
    return script


def test_both_networks_are_deployed(example, tmp_path, capsys):
    example.main(["--epochs", "2", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert len(re.findall(r"unlike float64's", text)) == 2
    assert "features.conv13" in text
    for name in ("quickstart", "vgg16"):
        assert (tmp_path / f"{name}_layers.png").exists()
        assert sj_prune.load_deployed(tmp_path / f"{name}.pt").report().checked
