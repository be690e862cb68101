"""`export_onnx`: the whole sequence of a network as an ONNX file, proved with ONNX Runtime."""

from __future__ import annotations

import io
import warnings
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sj_prune._files import replace_file
from sj_prune.compaction.build import copied
from sj_prune.deploy.plan import Layer, Plan
from sj_prune.export.folded import check_equal, check_zeros, folded, grid, layers, outputs
from sj_prune.export.onnx_sparse import store_sparse, unpacked
from sj_prune.export.unrolled import Unrolled

_OPSET = 17


def export_onnx(
    net: nn.Module, path: str | PathLike[str], x_seq: Tensor, *, prove: bool = True
) -> Any:  # noqa: ANN401
    """Write a network as an ONNX graph that takes a whole sequence, neurons unrolled over time.

    The graph has the network's input, named ``x_seq``, and its output, ``output``; the number of
    samples is dynamic, that of time steps is that of `x_seq`. Norms are folded into weights, those
    that are 0 stay 0. Layers that `quantize` has rounded are stored as integers and scales. Large
    sparse weights are nonzero values and the gaps between them, which plain nodes scatter.

    Args:
        net: a stock network in multi-step mode, or one with recording nodes; left as it was.
        path: of the file; an older one is replaced when the new one is whole.
        x_seq: an input ``[T, N, *]``, or ``[N, *]`` where the network repeats still images; with
            `prove` one at which the neurons fire.
        prove: run the file with ONNX Runtime on `x_seq`, and with another number of samples;
            compare the outputs with the network's own in float32, and the zeros.

    Returns:
        The `onnx.ModelProto` that was written.

    Raises:
        ImportError: without onnx, or onnxruntime to prove: ``pip install "sj_prune[onnx]"``.
        ExportError: a ValueError: for what it cannot say, naming layer and reason; and if the file
            does not compute what the network does. Then nothing is written.
    """
    onnx = _needed("onnx")
    made = folded(net, x_seq)
    module = Unrolled(made, "ONNX").eval()
    written = _exported(module, x_seq.detach().float(), made)
    model = onnx.load_model_from_string(written)
    model.producer_name = "sj_prune"
    store_sparse(onnx, model, _store_integers(onnx, model, module))
    if prove:
        _check_zeros(model, module)
        _run_and_compare(model.SerializeToString(), net, x_seq.detach().float(), made)
    with replace_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return model


def _needed(name: str) -> Any:  # noqa: ANN401
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(
            f'Expected {name} to be installed: pip install "sj_prune[onnx]"'
        ) from error


def _exported(module: nn.Module, x: Tensor, made: Plan) -> bytes:
    batch = 1 if made.graph.sequence else 0
    out = 1 if made.graph.timed else 0
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's remarks on Python loops over T
        torch.onnx.export(
            module,
            (x,),
            file,  # type: ignore[arg-type]
            input_names=["x_seq"],
            output_names=["output"],
            dynamic_axes={"x_seq": {batch: "N"}, "output": {out: "N"}},
            opset_version=_OPSET,
            dynamo=False,
        )
    return file.getvalue()


def _store_integers(onnx: Any, model: Any, module: Unrolled) -> list[str]:  # noqa: ANN401
    """Put integers and scales in place of the weights of layers that are quantized.

    Returns:
        Names of all weights, as floats or integers.
    """
    stored, names = {t.name: t for t in model.graph.initializer}, []
    for layer in layers(module.plan):
        name = module.names[f"weight{layer.output}"]
        if name not in stored:
            continue
        if (found := grid(layer)) is None:
            names.append(name)
            del stored[name]
            continue
        names.append(f"{name}_integers")
        parts = {f"{name}_integers": found.integers, f"{name}_scale": found.scale}
        model.graph.initializer.remove(stored.pop(name))
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(tensor.numpy(), part) for part, tensor in parts.items()
        )
        node = onnx.helper.make_node("DequantizeLinear", list(parts), [name], axis=0)
        model.graph.node.insert(0, node)
    return names


def _check_zeros(model: Any, module: Unrolled) -> None:  # noqa: ANN401
    from onnx import numpy_helper

    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}

    def written(layer: Layer) -> np.ndarray:
        name = module.names[f"weight{layer.output}"]
        integers = f"{name}_integers"
        whole = {integers, f"{integers}_values"}.isdisjoint(stored)
        return unpacked(stored, name if whole else integers)

    check_zeros(module.plan, written)


def _run_and_compare(file: bytes, net: nn.Module, x: Tensor, made: Plan) -> None:
    runtime = _needed("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    batch, net = 1 if made.graph.sequence else 0, copied(net).float()
    for given in (x, torch.cat([x, x.flip(batch)], batch)):
        found = torch.from_numpy(session.run(None, {"x_seq": given.numpy()})[0])
        check_equal(found, outputs(net, given)[0], "the ONNX file")
