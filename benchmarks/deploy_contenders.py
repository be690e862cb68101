"""What a deployed network is measured against; each is called with nothing and returns outputs."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable

import torch
from deploy_networks import folded, fuse, unrolled
from spikingjelly.activation_based import functional
from torch import Tensor, nn

Run = Callable[[], Tensor]


def eager(net: nn.Module, x: Tensor) -> Run:
    def run() -> Tensor:
        with torch.inference_mode():
            functional.reset_net(net)
            return net(x)

    return run


def compiled(net: nn.Module, x: Tensor) -> Run:
    """Return `torch.compile` with weights frozen into the graph, neurons unrolled over time."""
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    inductor.freezing = True
    fast = torch.compile(net)

    def run() -> Tensor:
        with torch.no_grad():
            return fast(x)

    return run


def onnx_missing() -> str | None:
    """Return None if networks can be exported and run by ONNX Runtime, else what is missing."""
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: pip install onnx onnxruntime"
    return None


def by_onnx_runtime(net: nn.Module, x: Tensor) -> Run:
    """Return the network exported over all steps, run by ONNX Runtime on torch's threads."""
    import onnxruntime

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), file, dynamo=False, input_names=["x"], output_names=["y"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Its idle threads would go on turning on the cores of whoever is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    given = {"x": x.numpy()}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def contenders(net: nn.Module, x: Tensor, names: tuple[str, ...]) -> dict[str, Run]:
    """Return stock SpikingJelly, folded norms, fused neurons, and what `names` asks for besides."""
    plain = folded(net)
    runs = {"stock": eager(net, x), "folded": eager(plain, x), "nodes": eager(fuse(plain), x)}
    if "torch.compile" in names:
        runs["torch.compile"] = compiled(unrolled(plain), x)
    if "ONNX Runtime" in names:
        runs["ONNX Runtime"] = by_onnx_runtime(unrolled(plain), x)
    return runs
