"""Networks as users write them: pooling functions, layers that run again, other precisions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from tests.export.networks import pruned
from tests.support.deploy_cases import output_of

X = torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1))


class Functions(nn.Module):
    """Pools by functions of torch, over samples of all steps together."""

    def __init__(self, first, last):
        super().__init__()
        self.first, self.last = first, last
        self.conv1 = layer.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm1, self.node1 = layer.BatchNorm2d(6), neuron.LIFNode()
        self.conv2 = layer.Conv2d(6, 8, 3, padding=1)
        self.norm2, self.node2 = layer.BatchNorm2d(8), neuron.IFNode()
        self.head = layer.Linear(8, 5)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.node1(self.norm1(self.conv1(x)))
        x = self.first(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        x = self.node2(self.norm2(self.conv2(x)))
        x = self.last(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.head(x)


POOLS = {
    "average": (lambda s: F.avg_pool2d(s, 2), lambda s: s.mean((2, 3))),
    "overlap": (lambda s: F.avg_pool2d(s, 3, 2, 1), lambda s: s.mean((2, 3), True).flatten(1)),
    "maximum": (lambda s: F.max_pool2d(s, 2), lambda s: F.adaptive_avg_pool2d(s, 1).flatten(1)),
    "adaptive": (lambda s: F.adaptive_avg_pool2d(s, 4), lambda s: F.avg_pool2d(s, 4).flatten(1)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling_functions(name, tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = pruned(Functions(*POOLS[name]), X)
    sj_prune.export_onnx(net, tmp_path / "net.onnx", X)  # proved
    assert [m.shape[0] for m in sj_prune.synapses(net, X)] == [384, 128, 5]
    if name == "maximum":
        with pytest.raises(ValueError, match="NIR has no maximum pooling"):
            sj_prune.export_nir(net, tmp_path / "net.nir", X)


@pytest.mark.parametrize("name", [name for name in POOLS if name != "maximum"])
def test_pooling_functions_through_nir(name, tmp_path):
    """A mean over the map leaves features and not a map of one place."""
    pytest.importorskip("nir")
    pytest.importorskip("nirtorch")
    pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    torch.manual_seed(0)
    sj_prune.export_nir(pruned(Functions(*POOLS[name]), X), tmp_path / "net.nir", X)  # proved


@pytest.mark.parametrize("name", ["average", "maximum"])
def test_pooling_functions_are_deployed(name):
    torch.manual_seed(0)
    net = pruned(Functions(*POOLS[name]), X)
    torch.testing.assert_close(sj_prune.deploy(net, X)(X), output_of(net.eval(), X))  # proved


class Again(nn.Module):
    """A layer with its norm runs twice; another weight is tied, and two are all zero."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.norm = (
            layer.Conv2d(2, 6, 3, padding=1),
            layer.Conv2d(6, 6, 3, padding=1, bias=False),
            layer.BatchNorm2d(6),
        )
        self.tied = layer.Conv2d(6, 6, 3, padding=1, bias=False)
        self.tied.weight = self.conv.weight
        self.empty = nn.ModuleList(layer.Linear(4, 4) for _ in range(2))
        for each in self.empty:
            nn.init.zeros_(each.weight)
        self.head = layer.Linear(6 * 64, 4)
        self.nodes = nn.ModuleList(neuron.IFNode() for _ in range(5))
        functional.set_step_mode(self, "m")

    def forward(self, x):
        nodes = iter(self.nodes)
        x = next(nodes)(self.stem(x))
        for conv in (self.conv, self.conv, self.tied):
            x = next(nodes)(self.norm(conv(x)))
        x = next(nodes)(self.head(x.flatten(2)))
        return self.empty[0](x) + self.empty[1](x)


@pytest.mark.parametrize("bits", [None, 8])
def test_layers_that_run_again(tmp_path, bits):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = pruned(Again(), X)
    if bits is not None:
        sj_prune.quantize(net, bits)
    model = sj_prune.export_onnx(net, tmp_path / "net.onnx", X)  # proved
    onnx.checker.check_model(model)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(set(names)) == len(names)


def test_pruned_channels_that_are_still_there(tmp_path):
    pytest.importorskip("onnxruntime")
    net = pruned(Functions(*POOLS["average"]), X, sparsity=0.0)
    model = sj_prune.PruningWrapper(net, sj_prune.methods.FilterNorm(), example_input=X)
    model.update_masks(sparsity=0.5)
    net = model.finalize()
    sj_prune.export_onnx(net, tmp_path / "net.onnx", X)  # proved
    matrices = sj_prune.synapses(net, X)
    small = sj_prune.synapses(sj_prune.compact(net, X), X)
    assert [m.nnz for m in matrices[1:]] == [m.nnz for m in small[1:]]


def test_other_precisions(tmp_path):
    pytest.importorskip("onnxruntime")
    net = pruned(Functions(*POOLS["average"]), X)
    fit = str(sj_prune.fits(net, X, "speck2f"))
    net = net.double()
    sj_prune.export_onnx(net, tmp_path / "net.onnx", X.double())  # proved
    assert next(net.parameters()).dtype == torch.float64
    assert str(sj_prune.fits(net, X.double(), "speck2f")) == fit
    with pytest.raises(ValueError, match=r"conv1\.weight is in torch\.bfloat16: net\.float\(\)"):
        sj_prune.synapses(copy.deepcopy(net).bfloat16(), X.bfloat16())


def test_steps_one_by_one_are_refused_with_what_to_do():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(layer.Conv2d(2, 3, 3), neuron.IFNode())

        def forward(self, x):
            return torch.stack([self.net(step) for step in x])

    with pytest.raises(ValueError, match=r'Loop .*: a loop over time\? .* step_mode="m"'):
        sj_prune.synapses(Loop(), X)
    with pytest.raises(ValueError, match=r"forward fails.*\(0 is in single-step mode"):
        sj_prune.synapses(Loop().net, X)


def test_norm_behind_a_dead_layer(tmp_path):
    """Its input is one number a channel and its variance 0: what it gives is rounding."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = pruned(Functions(*POOLS["average"]), X)
    with torch.no_grad():
        net.conv2.weight.zero_()
        net.norm2.running_mean.copy_(net.conv2.bias * (1 + 1e-6))
        net.norm2.running_var.zero_()
        net.norm2.bias.zero_()
    sj_prune.export_onnx(net, tmp_path / "net.onnx", X)
