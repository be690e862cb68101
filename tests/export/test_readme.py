"""What README shows of chips and exports runs."""

import re
from pathlib import Path

import pytest
import torch

import sj_prune
from tests.chips.test_fits import convolutions

for name in (
    "nir",
    "nirtorch",
    "onnx",
    "onnxruntime",
    "spikingjelly.activation_based.nir_exchange",
):
    pytest.importorskip(name)

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_what_readme_shows_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (snippet,) = [c for c in re.findall("```python\n(.*?)```", README, re.S) if "export_nir" in c]
    torch.manual_seed(0)
    x_seq = 4 * torch.rand(2, 1, 2, 32, 32)
    names = {
        **{"sj_prune": sj_prune, "net": convolutions((32, 64, 128, 128)).eval()},
        **{"x_seq": x_seq, "loader": [x_seq], "method": sj_prune.methods.FilterNorm()},
    }
    exec(snippet, names)  # noqa: S102
    assert "over the largest core" in capsys.readouterr().out
    assert sj_prune.fits(names["small"], x_seq, "speck2f").ok
    assert {path.name for path in tmp_path.iterdir()} == {"net.nir", "net.onnx"}
    assert len(names["matrices"]) == 5
