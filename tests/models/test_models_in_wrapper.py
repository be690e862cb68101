"""Every network trains inside a `PruningWrapper`, with masks that keep."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron

import sj_prune
from sj_prune import models
from tests.support.model_cases import build, sequence


def one_step(net, x, name):
    method = sj_prune.methods.Criticality(sparsity=0.6, regrow=0.2, interval=1, end=2)
    model = sj_prune.PruningWrapper(net, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.attach(optimizer)
    for _ in range(3):
        functional.reset_net(model)
        output = model(x).mean(0)
        loss = F.cross_entropy(output, torch.arange(len(output)) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.sparsity()["total"] == pytest.approx(0.6, abs=1e-3)
    for layer_name, mask in model.masks.items():
        weight = model.masks.weight(layer_name)
        assert not weight[~mask].any(), layer_name
        assert weight[mask].any(), layer_name
    return model


def test_training_step_keeps_masks(name):
    model = one_step(build(name, num_classes=5), sequence(name, 2), name)
    # Every layer but the last linear one feeds a neuron layer.
    silent = [n for n, nodes in model.topology.neurons.items() if not nodes]
    assert len(silent) == (0 if name == "SixConvTwoFC" else 1), silent
    assert all(problem is None for problem in model.topology.problems.values())
    state = model.state_dict()
    net = model.finalize()
    stock = build(name, num_classes=5, seed=3)
    stock.load_state_dict(net.state_dict(), strict=True)
    assert type(net.features.neuron1) in (neuron.IFNode, neuron.LIFNode)
    assert sum(key.startswith("net.") for key in state) == len(net.state_dict())


def test_images_repeated_inside_the_wrapper():
    model = one_step(build("VGG16", num_classes=5, T=2), sequence("VGG16")[0], "VGG16")
    assert "VGG16" in repr(model.net)
    report = model.report(sequence("VGG16")[0])
    assert report.totals["synops"] > 0


def test_host_network():
    pytest.importorskip("torchvision")
    model = one_step(models.sew_resnet18(5, T=2), torch.randn(4, 3, 32, 32), "sew_resnet18")
    assert isinstance(model.finalize().sn1, neuron.IFNode)
