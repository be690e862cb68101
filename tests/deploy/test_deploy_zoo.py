"""Networks of the zoo: integer twins bit by bit, and float weights within the proof."""

import importlib.util

import pytest
import torch
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.model import parametric_lif_net, spiking_vgg

import sj_prune
from sj_prune import models
from tests.support import zoo
from tests.support.deploy_cases import integers, make_twin, output_of, rates_of

ZOO = {
    "VGG16": lambda: models.VGG16(widths=(6,) * 13, tau=2.0),
    "VGG16SCA": lambda: models.VGG16SCA(widths=(6,) * 13),
    "ResNet19": lambda: models.ResNet19(tau=2.0, widths=(6, 8, 10)),
    "SixConvTwoFC": lambda: models.SixConvTwoFC(widths=(8,) * 6, size=32),
    **{f"sew {cnf}": zoo.sew12(cnf) for cnf in ("ADD", "AND", "IAND")},
    "spiking_resnet": zoo.resnet12,
    "spiking_vgg11_bn": zoo.vgg("vgg11_bn"),
    "CIFAR10Net": lambda: parametric_lif_net.CIFAR10Net(
        channels=8, spiking_neuron=neuron.ParametricLIFNode
    ),
}
IF = {"spiking_neuron": neuron.IFNode}
if importlib.util.find_spec("spikingjelly.activation_based.model.spikformer"):
    from spikingjelly.activation_based.model import ms_resnet, spikformer

    ZOO |= {
        "ms_resnet18": lambda: ms_resnet.ms_resnet18(T=4, num_classes=10, **IF),
        # Its attention stays in torch.
        "Spikformer": lambda: spikformer.Spikformer(
            **{"img_size_h": 32, "img_size_w": 32, "patch_size": 4, "num_classes": 10},
            **{"embed_dims": 32, "num_heads": 4, "mlp_ratio": 2.0, "depths": 2, **IF},
        ),
    }


def prove(net):
    make_twin(net, keep=0.2)
    x = integers(4, 2, 3, 32, 32)
    assert sum(rate > 0 for rate in rates_of(net, x)) >= 5
    fast = sj_prune.deploy(net, x)
    y = output_of(net, x)
    assert torch.equal(fast(x), y)
    other = integers(3, 1, 3, 32, 32, seed=1)
    assert torch.equal(fast(other), output_of(net, other))


@pytest.mark.parametrize("name", ZOO)
def test_integer_twin(name):
    prove(ZOO[name]())


WHOLE = {
    **{f"sew_resnet18_{cnf}": zoo.sew(18, cnf) for cnf in ("ADD", "AND", "IAND")},
    "spiking_resnet18": zoo.resnet(18),
    "spiking_vgg11_bn": lambda: spiking_vgg.spiking_vgg11_bn(num_classes=10, **zoo.node()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_integer_twin_at_full_size(name):
    prove(WHOLE[name]())


@pytest.mark.parametrize("name", ["VGG16SCA", "ResNet19", "sew ADD", "CIFAR10Net"])
def test_float_weights_pass_the_proof(name):
    net = ZOO[name]().eval()
    make_twin(net)  # multi-step mode; the weights are replaced
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    x = torch.rand(4, 2, 3, 32, 32) * 3
    report = sj_prune.deploy(net, x).report()
    assert report.checked
    spikes, unknown = (sum(getattr(r, k) for r in report.rows) for k in ("spikes", "open"))
    assert unknown < 1e-2 * spikes
    assert report.difference is not None


def test_still_images_that_the_network_repeats():
    net = make_twin(models.VGG16(widths=(6,) * 13, tau=2.0, T=3))
    x = integers(2, 3, 32, 32)
    fast = sj_prune.deploy(net, x)
    assert fast(x).shape == (3, 2, 10)
    assert torch.equal(fast(x), output_of(net, x))
