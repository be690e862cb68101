"""ONNX files, run by ONNX Runtime here and not only by the proof."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron

import sj_prune
from sj_prune.export.folded import ExportError
from tests.export.networks import Residual, plain, pruned

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

X = torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
NETWORKS = {
    "residual, LIF": lambda: Residual(),
    "IF, soft reset": lambda: Residual(neuron.IFNode, v_reset=None),
    "PLIF, soft reset": lambda: Residual(neuron.ParametricLIFNode, v_reset=None),
    "input not decayed": lambda: Residual(neuron.LIFNode, decay_input=False, v_reset=0.1),
    "sequence": lambda: Residual(mean=False),
    "maximum pooling": lambda: plain(
        neuron.LIFNode(), layer.MaxPool2d(3, 2, 1), layer.Flatten(), layer.Linear(96, 5)
    ),
    "groups": lambda: plain(
        neuron.IFNode(), layer.Conv2d(6, 6, 3, groups=3, padding=1), neuron.IFNode()
    ),
    "norm alone": lambda: plain(neuron.IFNode(), layer.BatchNorm2d(6), neuron.IFNode()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(tmp_path, name):
    net = NETWORKS[name]()
    functional.set_step_mode(net, "m")
    pruned(net, X)
    path = tmp_path / "net.onnx"
    model = sj_prune.export_onnx(net, path, X)
    onnx.checker.check_model(model)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for x in (X, X[:, :1], torch.rand(4, 7, 2, 8, 8)):  # any number of samples
        functional.reset_net(net)
        with torch.no_grad():
            expected = copy.deepcopy(net).eval()(x)
        found = torch.from_numpy(session.run(None, {"x_seq": x.numpy()})[0])
        assert found.shape == expected.shape
        differ = float(((found - expected).abs() > 1e-5).double().mean())
        assert differ < 0.01  # a potential on the threshold, in float32
    stored = sum(int((onnx.numpy_helper.to_array(t) == 0).sum())
                 for t in model.graph.initializer if t.name.startswith("weight"))  # fmt: skip
    zeros = sum(int((m.weight == 0).sum()) for m in net.modules()
                if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)))  # fmt: skip
    assert stored == zeros > 0


def test_proof_finds_a_wrong_file(tmp_path, monkeypatch):
    from sj_prune.export import unrolled

    net, path = pruned(Residual(), X), tmp_path / "net.onnx"
    right = unrolled.fire
    monkeypatch.setattr(unrolled, "fire", lambda x, eq, decay: right(1.3 * x, eq, decay))
    with pytest.raises(ExportError, match="the ONNX file to compute what the network does"):
        sj_prune.export_onnx(net, path, X)
    assert list(tmp_path.iterdir()) == []
    sj_prune.export_onnx(net, path, X, prove=False)
    assert path.exists()
