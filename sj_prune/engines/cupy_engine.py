"""The CUDA engine: `lif.cu` with the launches of `cupy_device`.

Contiguous and channels-last tensors are used as they are, other layouts copied. How a call is cut
and what does not differ from call to call is kept by shape, type, alignment and settings.

CuPy compiles with ``-ftz=true``: a potential below 1.2e-38 counts as 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sj_prune.engines import cupy_device, geometry, launch
from sj_prune.engines.cupy_device import Launch, Source, processors, run
from sj_prune.engines.memory import Layout, copy_back
from sj_prune.neurons.reference import PLIF, Equations
from sj_prune.neurons.statistics import rows_of
from sj_prune.neurons.surrogates import Known, form_of

available = cupy_device.available

# So many plans are kept.
_MOST = 1024


# ---- plans ---------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """What calls alike share.

    Attributes:
        source: the variant of `lif.cu`.
        launches: with argument blocks that lack the pointers.
        parts: rows of what a pass leaves for the next kernel: splits of a map, chunks of time but
            one, blocks.
    """

    source: Source
    launches: tuple[Launch, ...]
    parts: tuple[int, ...]


_plans: dict[Hashable, _Plan] = {}


def _key(
    x: Tensor, eq: Equations, known: Known, elementwise: Iterable[Tensor | None], *others: Hashable
) -> Hashable:
    """Return what a plan is a function of; own rows of the tables of surrogates may come and go."""
    aligned = [-1 if t is None else t.data_ptr() % 16 for t in elementwise]
    return (x.shape, x.dtype, x.device, eq, known, form_of(known).code, *others, *aligned)


def _keep(key: Hashable, plan: _Plan) -> _Plan:
    if len(_plans) >= _MOST:
        _plans.clear()
    _plans[key] = plan
    return plan


def _pointed(one: Launch, tensors: dict[str, Tensor | None]) -> Launch:
    """Return a launch with pointers; an empty tensor's is null."""
    block = type(one.arguments).from_buffer_copy(one.arguments)
    for name, tensor in tensors.items():
        if tensor is not None:
            setattr(block, name, tensor.data_ptr())
    return one._replace(arguments=block)


# ---- tensors -------------------------------------------------------------------------------------


def _each(v0: Tensor) -> tuple[Tensor, ...]:
    """Return the initial potentials if each has its own place in memory, else nothing."""
    return (v0,) if any(v0.stride()) else ()


def _q(w: Tensor | None) -> Tensor | None:
    """Return PLIF's ``sigmoid(w)`` in single precision; it stays on the device."""
    if w is None:
        return None
    return (w if w.dtype == torch.float64 else w.float()).sigmoid().float()


def partial_rows(x_seq: Tensor) -> int:
    """Return how many rows partials need, each a sum over as many samples but for the last.

    Fewer than samples where a map is one element: one would write and read five numbers for it.
    """
    samples = x_seq.shape[1]
    channels = x_seq.shape[2] if x_seq.ndim > 2 else 1
    if x_seq[0].numel() > samples * channels:
        return samples
    size = x_seq.element_size()
    return geometry.partial_rows(samples, channels, size, processors(x_seq.device))


# ---- the two passes ------------------------------------------------------------------------------


def forward(
    x_seq: Tensor,
    v_init: Tensor,
    w: Tensor | None,
    eq: Equations,
    known: Known,
    statistics: int,
    outputs: tuple[Tensor, ...],
) -> None:
    """Fill `outputs` (spikes, v, partials, v_seq, h_seq, g_seq; empty where not wanted).

    Partials have a row a sample, or as many as `partial_rows` says.
    """
    layout = Layout.of(x_seq)
    x, v0 = layout.arrange(x_seq, x_seq.dtype), layout.initial(v_init)
    spikes, v, partials, *sequences = outputs
    buffers = [layout.writable(spikes, x.dtype), layout.writable(v), partials]
    buffers += map(layout.writable, sequences)
    each = _each(v0)
    elementwise = (x, *each, *buffers[:2], *buffers[3:])
    store = int(sequences[0].numel() > 0) | int(sequences[1].numel() > 0) << 1
    rows = rows_of(statistics)
    which = (layout.last, rows, statistics, len(partials), store, len(each))
    key = _key(x, eq, known, elementwise, "forward", *which)
    plan = _plans.get(key)
    if plan is None:
        shared = (eq, known, statistics, store)
        plan = _keep(key, _forward_plan(x, layout.last, elementwise, partials, len(each), *shared))
    (splits,), q = plan.parts, _q(w)
    scratch = partials.new_empty(splits, *partials.shape) if splits > 1 else partials
    names = ("spikes", "v", "partials", "v_seq", "h_seq", "g_seq")
    pointers = {**dict(zip(names, buffers, strict=True)), "partials": scratch}
    first, *merge = plan.launches
    launches = [_pointed(first, {"x": x, "v0": v0, "q": q, **pointers})]
    launches += [_pointed(one, {"scratch": scratch, "partials": partials}) for one in merge]
    run(x.device, plan.source, *launches)
    copy_back(outputs, buffers)


def _forward_plan(  # noqa: PLR0917
    x: Tensor,
    last: bool,
    elementwise: tuple[Tensor, ...],
    partials: Tensor,
    each: int,
    eq: Equations,
    known: Known,
    statistics: int,
    store: int,
) -> _Plan:
    summed, found = len(partials) < x.shape[1], processors(x.device)
    plan = geometry.forward_plan(x, last, statistics, elementwise, found, len(partials))
    arguments = launch.ForwardArguments(
        stride=x[0].numel(),
        units=plan.samples if plan.last else plan.samples * plan.channels,
        channels=plan.channels,
        map=plan.elements,
        positions=x.shape[1] if summed else plan.samples * plan.elements,
        steps=x.shape[0],
        group=plan.grid.group,
        log_lanes=plan.grid.lanes.bit_length() - 1,
        log_columns=plan.grid.columns.bit_length() - 1,
        v0_each=each,
        per_element=1.0 / (x.shape[0] * (1 if summed else plan.elements)),
        **launch.neuron(eq, known),
    )
    variant = launch.forward_variant(eq, known, x.dtype, plan.vec, statistics, store, summed)
    launches = [Launch(plan.grid.kernel, plan.grid.blocks, plan.grid.threads, arguments)]
    splits = plan.grid.splits if statistics else 1
    if splits > 1:
        merge = launch.MergeArguments(count=partials.numel(), splits=splits)
        blocks = -(-partials.numel() // geometry.FORWARD_THREADS)
        launches.append(Launch("sj_merge", (blocks, 1), geometry.FORWARD_THREADS, merge))
    return _Plan(Source("lif.cu", variant.options()), tuple(launches), (splits,))


def backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    x_seq: Tensor,
    v_init: Tensor,
    w: Tensor | None,
    eq: Equations,
    known: Known,
    outputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill `outputs` (gradients of x_seq, v_init and w; empty where not wanted)."""
    layout = Layout.of(x_seq)
    x, v0 = layout.arrange(x_seq, x_seq.dtype), layout.initial(v_init)
    types = (x.dtype, torch.float32, torch.float32)
    given = [
        None if grad is None else layout.arrange(grad, dtype)
        for grad, dtype in zip(grads, types, strict=True)
    ]
    grad_x, grad_v, grad_w = outputs
    buffers = [layout.writable(grad_x, x.dtype), layout.writable(grad_v)]
    each = _each(v0)
    elementwise = (x, *each, *given, *buffers)
    key = _key(x, eq, known, elementwise, "backward", len(each))
    plan = _plans.get(key)
    if plan is None:
        plan = _keep(key, _backward_plan(x, elementwise, len(each), given, eq, known))
    chunks, blocks = plan.parts
    q = _q(w)
    pointers: dict[str, Tensor | None] = {
        **dict(zip(("grad_spikes", "grad_v", "grad_v_seq"), given, strict=True)),
        **{"x": x, "v0": v0, "q": q, "grad_x": buffers[0], "grad_v0": buffers[1]},
    }
    if chunks:
        pointers["starts"] = v0.new_empty(chunks, v0.numel())
    first, *finish = plan.launches
    if finish:
        pointers["grad_q"] = v0.new_empty(blocks, dtype=torch.float64)
        buffers.append(grad_w if grad_w.dtype == torch.float32 else grad_w.float())
    sums = {"grad_q": pointers.get("grad_q"), "q": q, "grad_w": buffers[-1]}
    run(x.device, plan.source, _pointed(first, pointers), *(_pointed(one, sums) for one in finish))
    copy_back(outputs[: len(buffers)], buffers)


def _backward_plan(  # noqa: PLR0917
    x: Tensor,
    elementwise: tuple[Tensor | None, ...],
    each: int,
    given: list[Tensor | None],
    eq: Equations,
    known: Known,
) -> _Plan:
    plan = geometry.backward_plan(x, eq.kind, elementwise, processors(x.device))
    arguments = launch.BackwardArguments(
        elements=x[0].numel(), steps=x.shape[0], v0_each=each, **launch.neuron(eq, known)
    )
    which = int(given[0] is not None) | int(given[2] is not None) << 1
    variant = launch.backward_variant(eq, known, x.dtype, plan.vec, plan.chunk, which)
    launches = [Launch("sj_backward", (plan.blocks, 1), geometry.BACKWARD_THREADS, arguments)]
    if eq.kind == PLIF:
        finish = launch.FinishArguments(blocks=plan.blocks)
        launches.append(Launch("sj_finish", (1, 1), geometry.BACKWARD_THREADS, finish))
    parts = (plan.chunks - 1, plan.blocks)
    return _Plan(Source("lif.cu", variant.options()), tuple(launches), parts)
