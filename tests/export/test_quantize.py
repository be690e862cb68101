"""Quantized weights against a brute force, in training under masks, and in exports."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from tests.chips.test_fits import convolutions
from tests.export.networks import Residual, pruned
from tests.support.pruning_cases import assert_masked, criticality, loss_of, magnitude, wrapped

X = torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def filters(module):
    """Return the weights of each output channel, one row each, by loops."""
    w = module.weight.detach()
    if not isinstance(module, nn.ConvTranspose2d):
        return [row.flatten() for row in w]
    into, out = w.shape[0] // module.groups, w.shape[1]
    return [
        torch.cat([w[g * into + i, o].flatten() for i in range(into)])
        for g in range(module.groups)
        for o in range(out)
    ]


LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "conv": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv1d": lambda: nn.Conv1d(4, 6, 3),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
}


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(LAYERS)),
    bits=st.sampled_from([4, 8]),
    power=st.booleans(),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-4, 1.0, 64.0]),
)
def test_against_every_level(kind, bits, power, seed, size):
    torch.manual_seed(seed)
    module = LAYERS[kind]().double()
    with torch.no_grad():
        module.weight.mul_(size * (torch.rand_like(module.weight) < 0.5))
        module.weight[0] = 0.0
    before = filters(module)
    assert sj_prune.quantize(module, bits, power_of_two=power) is module
    most = 2 ** (bits - 1) - 1
    for row, old, scale in zip(filters(module), before, module.weight_scale, strict=True):
        if old.any():
            exact = float(old.abs().max()) / most
            wanted = 2.0 ** math.ceil(math.log2(exact)) if power else exact
            assert float(scale) == pytest.approx(wanted, rel=1e-12)
        levels = torch.arange(-most, most + 1) * scale
        nearest = (old[:, None] - levels).abs().amin(1)
        torch.testing.assert_close((row - old).abs(), nearest, rtol=0, atol=1e-12 * size)
        assert (nearest <= scale / 2 * (1 + 1e-9)).all()
        assert (row[old == 0] == 0).all()
        assert (row[:, None] == levels).any(1).all()
        assert len(row.unique()) <= 2**bits - 1


@pytest.mark.parametrize("power", [False, True])
def test_again_is_the_same(power):
    torch.manual_seed(0)
    net = sj_prune.quantize(nn.Linear(50, 40), 4, power_of_two=power)
    first, scale = net.weight.clone(), net.weight_scale.clone()
    sj_prune.quantize(net, 4, power_of_two=power)
    torch.testing.assert_close(net.weight, first, rtol=1e-6, atol=0)
    torch.testing.assert_close(net.weight_scale, scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_gradient_goes_straight_through(kind):
    torch.manual_seed(0)
    module = LAYERS[kind]()
    x = torch.rand(2, 7 if kind == "linear" else 4, *[5] * (module.weight.ndim - 2))
    rounded = sj_prune.quantize(copy.deepcopy(module), 4)
    given, names = module.weight.clone(), [*dict(module.named_parameters())]
    with sj_prune.fake_quantize(module, 4):
        out = module(x)
    out.square().sum().backward()
    expected = rounded(x)
    expected.square().sum().backward()
    assert torch.equal(out, expected)  # to the last bit
    assert torch.equal(module.weight.grad, rounded.weight.grad)
    assert torch.equal(module.weight, given)
    assert sorted(dict(module.named_parameters())) == sorted(names)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_one_block_at_a_time():
    module, x = nn.Linear(7, 5), torch.rand(2, 7)
    with sj_prune.fake_quantize(module):
        expected = module(x)
        with (
            pytest.raises(ValueError, match="one fake_quantize at a time but layer '' is"),
            sj_prune.fake_quantize(module, 4),
        ):
            pass
        assert torch.equal(module(x), expected)
    with sj_prune.fake_quantize(module, 4):
        assert not torch.equal(module(x), expected)


def test_layer_is_whole_after_an_error():
    module = nn.Linear(7, 5)
    with sj_prune.fake_quantize(module), pytest.raises(RuntimeError):
        module(torch.rand(2, 6))
    assert isinstance(module.weight, nn.Parameter)
    assert "weight" in module.state_dict()


@pytest.mark.parametrize("method", [magnitude, criticality])
@pytest.mark.parametrize("kind", ["sgd_momentum", "adam"])
def test_masks_hold_while_it_trains(method, kind):
    model, optimizer = wrapped(method(), kind)
    with sj_prune.fake_quantize(model, 4):
        for step in range(1, 13):  # masks are updated in this block
            functional.reset_net(model)
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
            assert_masked(model, optimizer)
    assert model.sparsity()["total"] > 0.5
    zeros = {n: p == 0 for n, p in model.net.named_parameters() if p.ndim > 1}
    net = sj_prune.quantize(model.finalize(), 4)
    for name, weight in net.named_parameters():
        if weight.ndim > 1:
            assert (weight[zeros[name]] == 0).all()
            assert all(len(row.unique()) <= 15 for row in weight.flatten(1))
    # A checkpoint is that of a stock network.
    assert not [key for key in net.state_dict() if "scale" in key]


def quantized(bits, power, net=None):
    net = pruned(Residual() if net is None else net, X)
    with torch.no_grad():
        net.stem[1].weight[::2] *= -1  # the norm turns signs
    return sj_prune.quantize(net, bits, power_of_two=power)


@pytest.mark.parametrize(("bits", "power"), [(8, False), (4, False), (8, True)])
def test_nir_carries_integers_and_scales(tmp_path, bits, power):
    nir = pytest.importorskip("nir")
    pytest.importorskip("nirtorch")
    pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    net = quantized(bits, power)
    sj_prune.export_nir(net, tmp_path / "net.nir", X)  # proved
    nodes = nir.read(str(tmp_path / "net.nir")).nodes
    for name in ("stem_0", "block_0", "head_2"):
        node = nodes[name]
        integers, scale = (torch.from_numpy(node.metadata[k]) for k in ("integers", "scale"))
        assert int(node.metadata["bits"]) == bits
        assert integers.dtype == torch.int8
        assert int(integers.abs().max()) <= 2 ** (bits - 1) - 1
        made = integers * scale.view(-1, *[1] * (integers.ndim - 1))
        torch.testing.assert_close(made, torch.from_numpy(node.weight), rtol=1e-6, atol=0)
        weight = net.get_submodule(name.replace("_", ".")).weight
        assert ((integers == 0) == (weight == 0)).all()


@pytest.mark.parametrize(("bits", "power"), [(8, False), (4, True)])
def test_onnx_stores_integers(tmp_path, bits, power):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    net = quantized(bits, power)
    model = sj_prune.export_onnx(net, tmp_path / "net.onnx", X)  # proved, with any batch
    onnx.checker.check_model(model)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    integers = [value for name, value in stored.items() if name.endswith("_integers")]
    assert [value.shape[0] for value in integers] == [6, 6, 20]
    assert all(value.dtype == "int8" and abs(value).max() < 2 ** (bits - 1) for value in integers)
    zeros = [int((m.weight == 0).sum()) for m in net.modules() if hasattr(m, "weight_scale")]
    assert [int((value == 0).sum()) for value in integers] == zeros


def test_weights_that_changed_are_refused(tmp_path):
    pytest.importorskip("onnx")
    net = quantized(8, False)
    with torch.no_grad():
        net.block[0].weight.mul_(1.01)
    with pytest.raises(ValueError, match=r"layer 'block\.0' to be as quantize\(\) left them"):
        sj_prune.export_onnx(net, tmp_path / "net.onnx", X)


def test_refusals():
    net = nn.Sequential(layer.Linear(3, 4), neuron.IFNode(), layer.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="bits"):
        sj_prune.quantize(net, 3)
    with pytest.raises(TypeError, match="power_of_two"):
        sj_prune.quantize(net, power_of_two=2)
    with torch.no_grad():
        net[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="those of layer '2' are not"):
        sj_prune.quantize(net)
    assert torch.equal(net[0].weight, before["0.weight"])
    nn.utils.parametrizations.weight_norm(net[0])
    with pytest.raises(ValueError, match="layer '0' to be a parameter but it is computed"):
        sj_prune.quantize(net)


def test_layers_that_share_a_weight():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    x = torch.rand(3, 4)
    expected = copy.deepcopy(net)
    sj_prune.quantize(expected[0], 4)
    with sj_prune.fake_quantize(net, 4):
        assert torch.equal(net(x), expected(x))
    assert torch.equal(sj_prune.quantize(net, 4)[1].weight, expected[0].weight)
    assert torch.equal(net[1].weight_scale, expected[0].weight_scale)


def test_quantized_compact_network_is_saved_and_loaded_and_quantized_again(tmp_path):
    torch.manual_seed(0)
    x_seq = 4 * torch.rand(2, 1, 2, 16, 16)
    method = sj_prune.methods.FilterNorm(sparsity=0.5)
    net, _ = sj_prune.prune(convolutions((8, 8), size=16), [x_seq], method)
    dense = copy.deepcopy(net)
    small = sj_prune.quantize(sj_prune.compact(net.eval(), x_seq), 4)
    sj_prune.save_compact(tmp_path / "small.pt", small)
    again = sj_prune.load_compact(tmp_path / "small.pt", convolutions((8, 8), size=16))
    for name, weight in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    scales = [m.weight_scale for m in small if hasattr(m, "weight_scale")]
    sj_prune.quantize(again, 4)
    for scale, module in zip(scales, [m for m in again if hasattr(m, "weight_scale")], strict=True):
        torch.testing.assert_close(module.weight_scale, scale, rtol=1e-6, atol=0)
    # The other way round the scales are those of other channels, and exports say so.
    pytest.importorskip("onnx")
    late = sj_prune.compact(sj_prune.quantize(dense.eval(), 4), x_seq)
    with pytest.raises(ValueError, match=r"layer '0' .* quantize last"):
        sj_prune.export_onnx(late, tmp_path / "late.onnx", x_seq)
    sj_prune.export_onnx(sj_prune.quantize(late, 4), tmp_path / "late.onnx", x_seq, prove=False)
