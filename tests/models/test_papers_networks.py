"""Parameter counts of the papers, shapes, step modes, and what each network refuses."""

import copy
import pickle

import pytest
import torch
from spikingjelly.activation_based import base, functional, neuron, surrogate
from torch import nn

from sj_prune import models
from tests.support.model_cases import CASES, NETWORKS, build, sequence


def weights(net):
    return [m.weight for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


# Weights of convolutions and linear layers, and all parameters. Stated by the papers:
# SixConvTwoFC 36.72 M, VGGSNN 9.27 M, SEW-ResNet18 11.69 M; VGG16, VGG16SCA, DVSNet and ResNet19
# are what the released codes' widths, kernels and strides come to.
COUNTS = {
    "VGG16": (14_715_584, 14_724_042),
    "VGG16SCA": (15_239_872, 15_250_378),
    "SixConvTwoFC": (36_715_264, 36_718_336),
    "VGGSNN": (9_263_232, 9_268_746),
    "DVSNet": (1_148_032, 1_149_706),
    "ResNet19": (12_558_720, 12_569_226),
    "sew_resnet18": (11_678_912, 11_689_512),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_parameter_counts(kind):
    if kind == "sew_resnet18":
        pytest.importorskip("torchvision")
    with torch.device("meta"):  # shapes alone: nothing is drawn
        net = getattr(models, kind)()
    counts = sum(w.numel() for w in weights(net)), sum(p.numel() for p in net.parameters())
    assert counts == COUNTS[kind]


def test_counts_follow_from_the_layers():
    """The counts once more, by hand, from what the papers write."""
    convs = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    vgg = sum(9 * a * b for a, b in zip(convs[:-1], convs[1:], strict=True))
    assert COUNTS["VGG16"][0] == vgg + 512 * 10
    assert COUNTS["VGG16SCA"][0] == vgg + 2 * 512 * 512 + 512 * 10
    six = 9 * 256 * (3 + 5 * 256) + 256 * 8 * 8 * 2048 + 2048 * 100
    assert COUNTS["SixConvTwoFC"][0] == six
    dvs = 9 * (2 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 256 * 256) + 256 * 4 * 4 * 10
    assert COUNTS["DVSNet"][0] == dvs


@pytest.mark.parametrize(("name", "size"), CASES)
def test_shapes(name, size):
    net = build(name, size, num_classes=7)
    with torch.no_grad():
        assert net(sequence(name, 2, 3, size)).shape == (2, 3, 7)


def test_static_images_are_shown_several_times(name):
    net = build(name, T=3).eval()
    x_seq = sequence(name, 3)
    with torch.no_grad():
        from_images = net(x_seq[0])
        functional.reset_net(net)
        assert torch.equal(from_images, net(x_seq))
    assert from_images.shape[0] == 3


def test_single_step_mode_gives_the_same(name):
    net = build(name).eval().double()  # sums in another order could flip a spike in float32
    x_seq = sequence(name, 3).double()
    with torch.no_grad():
        expected = net(x_seq)
        functional.reset_net(net)
        functional.set_step_mode(net, "s")
        steps = [net(x) for x in x_seq]
    assert torch.allclose(torch.stack(steps), expected, rtol=0, atol=1e-9)


def test_every_neuron_layer_fires_after_norm_warm_up(name):
    net = build(name)
    x_seq = sequence(name, 4, 8)
    rates = {}

    def note(layer_name):
        def hook(module, inputs, spikes):
            rates[layer_name] = spikes.mean().item()

        return hook

    for layer_name, module in net.named_modules():
        if isinstance(module, neuron.BaseNode):
            module.register_forward_hook(note(layer_name))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # one batch warms it up
    with torch.no_grad():
        net(x_seq)
        net.eval()
        functional.reset_net(net)
        net(x_seq)
    assert len(rates) == sum(isinstance(m, neuron.BaseNode) for m in net.modules())
    assert {n: r for n, r in rates.items() if not 0.01 < r < 0.9} == {}


def test_state_dict_round_trip(name):
    net, other = build(name).eval(), build(name, seed=1).eval()
    other.load_state_dict(net.state_dict(), strict=True)
    x_seq = sequence(name, 2)
    with torch.no_grad():
        assert torch.equal(net(x_seq), other(x_seq))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    functional.reset_net(twin)
    functional.reset_net(net)
    with torch.no_grad():
        assert torch.equal(net(x_seq), twin(x_seq))


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        (neuron.IFNode, {"v_reset": None}),
        (neuron.ParametricLIFNode, {"init_tau": 1.5, "decay_input": False}),
    ],
)
def test_any_neuron(name, kind, kwargs):
    net = build(name, spiking_neuron=kind, surrogate_function=surrogate.Sigmoid(2.0), **kwargs)
    nodes = [m for m in net.modules() if isinstance(m, neuron.BaseNode)]
    assert {type(node) for node in nodes} == {kind}
    assert len({id(node.surrogate_function) for node in nodes}) == len(nodes)
    assert all(isinstance(node.surrogate_function, surrogate.Sigmoid) for node in nodes)
    with torch.no_grad():
        assert net(sequence(name, 2)).isfinite().all()


def test_papers_neurons_and_their_override():
    node = build("VGG16").features.neuron1
    assert type(node) is neuron.LIFNode
    assert (node.tau, node.decay_input, node.v_reset, node.detach_reset) == (
        4 / 3,
        False,
        0.0,
        True,
    )
    assert type(build("VGG16SCA").features.neuron1) is neuron.IFNode
    changed = build("VGG16", tau=3.0, v_threshold=0.5).features.neuron1
    assert (changed.tau, changed.v_threshold, changed.decay_input) == (3.0, 0.5, False)


def test_every_layer_is_in_multi_step_mode(name):
    modes = {m.step_mode for m in build(name).modules() if isinstance(m, base.StepModule)}
    assert modes == {"m"}


# ---- refusals ------------------------------------------------------------------------------------

REFUSED = {
    "channels": (
        lambda: build("VGG16")(torch.zeros(2, 1, 4, 32, 32)),
        "3 input channels but got 4",
    ),
    "too small": (lambda: build("VGG16")(torch.zeros(1, 1, 3, 16, 16)), "least 32x32 .* 16x16"),
    "other size": (lambda: build("VGGSNN")(torch.zeros(1, 1, 2, 32, 32)), "48x48 .* 32x32.*size="),
    "no T": (lambda: build("VGGSNN")(torch.zeros(1, 2, 48, 48)), r"\[T, N, C, H, W\].* with T="),
    "rank": (lambda: build("VGG16")(torch.zeros(3, 32, 32)), r"\(3, 32, 32\)"),
    "widths": (lambda: models.VGG16(widths=(8, 8)), "Expected 13 widths.* got 2"),
    "width": (lambda: models.DVSNet(widths=(8, 8, 0, 8, 8)), r"widths\[2\] to be at least 1"),
    "pool": (lambda: models.DVSNet(pool="min"), r"Expected pool to be one of .* but got 'min'"),
    "size": (lambda: models.DVSNet(size=16), "size to be at least 32"),
    "T": (lambda: models.VGG16(T=0), "T to be at least 1 but got 0"),
    "classes": (lambda: models.ResNet19(0), "num_classes to be at least 1"),
    "connect": (lambda: models.sew_resnet18(connect="XOR"), '"ADD", "AND" or "IAND" .* \'XOR\''),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_refusal_of_a_type():
    with pytest.raises(TypeError, match="T to be an integer but got 2.5"):
        models.VGG16(T=2.5)


def test_single_step_mode_refuses_a_sequence(name):
    net = build(name)
    functional.set_step_mode(net, "s")
    with pytest.raises(ValueError, match="single-step mode .* loop over the steps"):
        net(sequence(name))


# ---- the host's network --------------------------------------------------------------------------


def test_sew_resnet18():
    pytest.importorskip("torchvision")
    net = models.sew_resnet18(5, T=2).eval()
    assert type(net).__module__.startswith("spikingjelly.")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        from_images = net(x)
        functional.reset_net(net)
        assert torch.equal(from_images, net(x.expand(2, *x.shape)))
        assert from_images.shape == (2, 2, 5)
        functional.set_step_mode(net, "s")
        functional.reset_net(net)
        assert net(x).shape == (2, 5)
    pickle.loads(pickle.dumps(copy.deepcopy(net)))


def test_all_networks_are_tested():
    assert set(NETWORKS) | {"sew_resnet18", "SpikingNetwork"} == set(models.__all__)
