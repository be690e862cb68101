"""Networks of the papers to files and back, pruned to 95 %, every layer firing at 10 %."""

import pytest
import torch
from spikingjelly.activation_based import layer

import sj_prune
from benchmarks.deploy_networks import prune, set_rate
from sj_prune import models

pytestmark = pytest.mark.slow


def sew():
    """SEW-ResNet18 (ADD); NIR has no maximum pooling for its stem."""
    net = models.sew_resnet18(num_classes=10, T=None)
    net.maxpool = layer.AvgPool2d(3, 2, 1, step_mode="m")
    return net


ZOO = {
    "VGG16": (models.VGG16, (3, 32, 32)),
    "ResNet19": (models.ResNet19, (3, 32, 32)),
    "VGGSNN": (lambda: models.VGGSNN(in_channels=2, size=48), (2, 48, 48)),
    "DVSNet": (lambda: models.DVSNet(size=48), (2, 48, 48)),
    "SEW-ResNet18": (sew, (3, 32, 32)),
}


@pytest.fixture(params=ZOO)
def network(request):
    torch.manual_seed(0)
    make, tail = ZOO[request.param]
    net, x_seq = make(), torch.rand(4, 1, *tail)
    set_rate(net, x_seq, 0.1)
    return net, x_seq


def sparse(net, x_seq):
    prune(net, 0.95, "uniform")
    assert min(set_rate(net, x_seq, 0.1)) > 0.05
    return net


def test_nir(network, tmp_path):
    pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    net, x_seq = network
    sj_prune.export_nir(net, tmp_path / "dense.nir", x_seq, prove=False)
    sj_prune.export_nir(sparse(net, x_seq), tmp_path / "sparse.nir", x_seq)  # proved
    sizes = [(tmp_path / f"{name}.nir").stat().st_size for name in ("sparse", "dense")]
    assert sizes[0] <= 0.1 * sizes[1]


def test_onnx(network, tmp_path):
    pytest.importorskip("onnxruntime")
    net, x_seq = network
    sj_prune.export_onnx(net, tmp_path / "dense.onnx", x_seq, prove=False)
    sj_prune.export_onnx(sparse(net, x_seq), tmp_path / "sparse.onnx", x_seq)  # proved
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("sparse", "dense")]
    assert sizes[0] <= 0.1 * sizes[1]
