"""The chip example: what did not fit fits in the end, with 8 bits, and is exported."""

import importlib.util

import pytest

from tests.support.example_cases import EXAMPLES

pytest.importorskip("tqdm")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("examples_to_chip", EXAMPLES / "to_chip.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.TIME_STEPS = 2
    return script


def test_what_does_not_fit_fits_in_the_end(example, tmp_path, capsys):
    example.main(["--images", "6", "--epochs", "1", "--threads", "1", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "over the largest core" in text
    results = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert results in text
    dense, pruned, quantized = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in results.splitlines()[2:5]
    )
    assert dense[2] == "32-64-128-128"
    assert not dense[-1].endswith("fits")
    assert pruned[-1] == quantized[-1] == "5 of 5: fits"
    assert pruned[2:4] == quantized[2:4]
    kib = [float(each[4].split()[0]) for each in (dense, pruned, quantized)]
    assert kib[0] > kib[1]
    assert kib[1] / kib[2] == pytest.approx(4, rel=0.01)
    for kind in ("nir", "onnx"):
        written = (tmp_path / f"net.{kind}").exists()
        assert f"net.{kind}: " in results
        assert written == (f"net.{kind}: Expected" not in results)
