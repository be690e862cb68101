"""NIR files, read back by SpikingJelly's importer here and not only by the proof."""

import copy
import logging

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune.export.folded import ExportError
from tests.export.networks import Residual, plain, pruned

nir = pytest.importorskip("nir")
pytest.importorskip("nirtorch")
exchange = pytest.importorskip(
    "spikingjelly.activation_based.nir_exchange", reason="SpikingJelly 2.0.0's importer"
)

X = torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
NEURONS = {
    "IF": lambda **k: neuron.IFNode(**k),
    "LIF": lambda **k: neuron.LIFNode(tau=3.0, **k),
    "LIF, input not decayed": lambda **k: neuron.LIFNode(tau=1.5, decay_input=False, **k),
    "LIF, reset below 0": lambda **k: neuron.LIFNode(v_reset=-0.2, v_threshold=0.8, **k),
    "PLIF": lambda **k: neuron.ParametricLIFNode(init_tau=2.5, **k),
}


def read(path, x_seq, dt):
    graph = exchange.import_from_nir(str(path), dt=dt, dtype=torch.float64, step_mode="m")
    with torch.no_grad():
        return graph(x_seq.double())[0]


def expected(net, x_seq):
    net = copy.deepcopy(net).double().eval()
    functional.reset_net(net)
    with torch.no_grad():
        return net(x_seq.double())


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("mean", [True, False])
def test_round_trip(tmp_path, kind, mean):
    net = pruned(Residual(NEURONS[kind], mean=mean), X)
    before = copy.deepcopy(net.state_dict())
    path = tmp_path / "net.nir"
    graph = sj_prune.export_nir(net, path, X, dt=2e-3)
    found = read(path, X, 2e-3)
    found = found.mean(0) if mean else found
    torch.testing.assert_close(found, expected(net, X), rtol=0, atol=1e-6)
    assert float(found.abs().max()) > 0
    written = nir.read(str(path))
    for name in ("stem_0", "block_0", "head_2"):
        given = net.get_submodule(name.replace("_", ".")).weight
        assert ((written.nodes[name].weight == 0) == (given == 0).numpy()).all()
    density = float((net.stem[0].weight != 0).double().mean())
    assert graph.metadata["density"]["stem_0"] == pytest.approx(density)
    assert graph.metadata["T"] == 4
    assert graph.metadata["output"] == ("mean over time" if mean else "sequence")
    assert graph.metadata["sj_prune"] == sj_prune.__version__
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_addition_is_two_edges(tmp_path):
    graph = sj_prune.export_nir(pruned(Residual(), X), tmp_path / "net.nir", X)
    into = {source for source, target in graph.edges if target == "head_0"}
    assert into == {"pool", "block_2"}


def test_recording_nodes_and_a_network_that_trained_export_alike(tmp_path):
    net = pruned(Residual(), X)
    stock = sj_prune.export_nir(net, tmp_path / "stock.nir", X)
    recording = sj_prune.to_recording(copy.deepcopy(net)).train()
    recording.eval()(X)  # leaves potentials behind
    other = sj_prune.export_nir(recording, tmp_path / "recording.nir", X)
    assert stock.edges == other.edges
    for name, node in stock.nodes.items():
        for key, value in node.to_dict().items():
            np.testing.assert_array_equal(value, other.nodes[name].to_dict()[key])


def test_pruned_file_is_small(tmp_path):
    net = plain(neuron.IFNode(), layer.Conv2d(6, 300, 3), neuron.IFNode(), layer.Conv2d(300, 99, 3))
    functional.set_step_mode(net, "m")
    sj_prune.export_nir(net, tmp_path / "dense.nir", X, prove=False)
    pruned(net, X, sparsity=0.95)
    sj_prune.export_nir(net, tmp_path / "sparse.nir", X)
    sizes = [(tmp_path / f"{name}.nir").stat().st_size for name in ("sparse", "dense")]
    assert sizes[0] <= 0.1 * sizes[1]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((neuron.IFNode(v_reset=None),), "0: 2 resets softly"),
        ((neuron.IFNode(), layer.MaxPool2d(2)), "3: NIR has no maximum pooling"),
        ((neuron.IFNode(), layer.Conv2d(6, 6, 3, groups=2)), "3: its 2 groups"),
        ((neuron.IFNode(), layer.AdaptiveAvgPool2d(3)), "3: .*whole windows"),
        ((neuron.IFNode(), layer.BatchNorm2d(6)), "3: a norm that follows no layer"),
        ((neuron.IFNode(), layer.AvgPool2d(3, ceil_mode=True)), "3: .*whole windows"),
    ],
)
def test_what_nir_cannot_say_is_refused_by_name(tmp_path, parts, said):
    net = plain(*parts).eval()
    path = tmp_path / "net.nir"
    path.write_bytes(b"older")
    with pytest.raises(ExportError, match=f"that NIR can say but {said}"):
        sj_prune.export_nir(net, path, X)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_an_input_that_is_added_twice_is_refused(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain(neuron.IFNode())

        def forward(self, x):
            x = self.net(x)
            return x + x

    with pytest.raises(ExportError, match="adds net_2 twice"):
        sj_prune.export_nir(Twice().eval(), tmp_path / "net.nir", X)


def test_proof_finds_a_wrong_file(tmp_path, monkeypatch):
    from sj_prune.export import to_nir

    net, path = pruned(Residual(), X), tmp_path / "net.nir"
    right = to_nir._Builder._weights

    def wrong(self, layer):
        node = right(self, layer)
        node.weight = np.where(node.weight == 0, np.float32(change), node.weight)
        return node

    monkeypatch.setattr(to_nir._Builder, "_weights", wrong)
    change = 1e-3
    with pytest.raises(ExportError, match=r"zeros to stay but \d+ of stem.0 are lost"):
        sj_prune.export_nir(net, path, X)
    monkeypatch.setattr(
        to_nir._Builder, "_weights", lambda self, layer: _scaled(right(self, layer))
    )
    with pytest.raises(ExportError, match="outputs differ, by up to"):
        sj_prune.export_nir(net, path, X)
    assert not path.exists()


def _scaled(node):
    node.weight = node.weight * np.float32(1.5)
    return node


def test_silent_layers_are_said(tmp_path, caplog):
    net = Residual().eval()
    with torch.no_grad():
        net.block[1].bias.fill_(-9.0)
    with caplog.at_level(logging.WARNING, "sj_prune"):
        sj_prune.export_nir(net, tmp_path / "net.nir", X)
    assert any("block.2 fires at 0 %" in r.getMessage() for r in caplog.records)


def test_wrong_arguments(tmp_path):
    net = Residual()
    with pytest.raises(ValueError, match="dt to be positive"):
        sj_prune.export_nir(net, tmp_path / "net.nir", X, dt=0)
    with pytest.raises(TypeError, match=r"Expected net to be a torch\.nn\.Module"):
        sj_prune.export_nir("net", tmp_path / "net.nir", X)
    with pytest.raises(TypeError, match="x_seq to be a floating tensor"):
        sj_prune.export_nir(net, tmp_path / "net.nir", X.bool())
