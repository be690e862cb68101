"""Sparse weights in ONNX files: small, whole, and what a runtime makes of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune.export.onnx_sparse import packed, unpacked
from tests.export.networks import pruned


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 3000),
    density=st.sampled_from([0.0, 0.001, 0.01, 0.2, 1.0]),
    kind=st.sampled_from([np.float32, np.int8]),
    seed=st.integers(0, 999),
)
def test_packed_is_undone(size, density, kind, seed):
    random = np.random.default_rng(seed)
    array = np.where(random.random(size) < density, random.integers(1, 99, size), 0).astype(kind)
    values, gaps = packed(array)
    assert gaps.dtype == np.uint8
    stored = {"w_values": values, "w_gaps": gaps, "w_shape": np.array([size])}
    found = unpacked(stored, "w")
    assert found.dtype == kind
    np.testing.assert_array_equal(found, array)
    assert int((values != 0).sum()) == np.count_nonzero(array)


@pytest.mark.parametrize("bits", [None, 8])
def test_file_is_small_and_computes_the_same(tmp_path, bits):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = nn.Sequential(
        *(layer.Conv2d(2, 64, 3, padding=1), neuron.IFNode(), layer.AvgPool2d(2)),
        *(layer.Conv2d(64, 128, 3, padding=1), neuron.LIFNode(), layer.Flatten()),
        layer.Linear(128 * 16, 100),
    )
    functional.set_step_mode(net, "m")
    x = torch.rand(2, 3, 2, 8, 8)
    sj_prune.export_onnx(net, tmp_path / "dense.onnx", x, prove=False)
    net = pruned(net, x, sparsity=0.95)
    if bits is not None:
        sj_prune.quantize(net, bits)
    model = sj_prune.export_onnx(net, tmp_path / "net.onnx", x)  # proved
    onnx.checker.check_model(model, full_check=True)
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("net", "dense")]
    assert sizes[0] <= (0.1 if bits is None else 0.05) * sizes[1]
    # The weights that the runtime computes with, each once and all zeros 0.
    names = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(names) == 3
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for name, module in zip(names, [m for m in net if hasattr(m, "weight")], strict=True):
        (found,) = session.run([name], {"x_seq": x.numpy()})
        weight = module.weight.detach().numpy().reshape(found.shape)
        np.testing.assert_array_equal(found == 0, weight == 0)
        np.testing.assert_allclose(found, weight, rtol=1e-6)
