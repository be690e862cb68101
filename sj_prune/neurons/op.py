"""The multi-step neuron pass as functional custom ops of torch.

``sj_prune::multi_step`` runs a whole sequence and reduces the statistics to ``[N, C, k]``
partials; ``sj_prune::multi_step_backward`` recomputes `H` from what was saved (``x_seq`` in its
own type, the initial `V`, PLIF's `w`) and returns the gradients. Neither mutates anything, both
have fake implementations, so ``torch.compile(fullgraph=True)`` captures them. In plain eager mode
an autograd function makes the same calls: torch takes 0.3 ms through a custom op written in
Python, as long as a small layer on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sj_prune.engines import check_without_closed_form, choose
from sj_prune.neurons import reference
from sj_prune.neurons.reference import PLIF, Equations, compute_dtype
from sj_prune.neurons.statistics import bits as bits_of
from sj_prune.neurons.surrogates import Known, spike

# `Equations` and `Known`, field by field, as the custom ops take them.
_SETTINGS = (
    "int kind, float tau, bool decay_input, float v_threshold, float? v_reset, bool detach_reset, "
    "int surrogate, float alpha"
)


class Outputs(NamedTuple):
    """Results of one pass; `v_seq`, `h_seq` and `g_seq` are None unless asked for.

    Shapes: `spikes` and the sequences ``[T, N, *]``, `v` ``[N, *]``, `partials` ``[N, C, k]``,
    or fewer rows that are sums over samples as `Activity.update` takes them.
    """

    spikes: Tensor
    v: Tensor
    partials: Tensor
    v_seq: Tensor | None
    h_seq: Tensor | None
    g_seq: Tensor | None


def _channels(x_seq: Tensor) -> int:
    return x_seq.shape[2] if x_seq.ndim > 2 else 1


def _empty_outputs(
    x_seq: Tensor, bits: int, store_v_seq: bool, trace: bool, rows: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate the six outputs; layout and type are a function of ``x_seq`` alone."""
    dtype = compute_dtype(x_seq.dtype)
    rows = x_seq.shape[1] if rows is None else rows
    kept = x_seq.new_empty(rows, _channels(x_seq), bits.bit_count(), dtype=dtype)

    def sequence(wanted: bool) -> Tensor:
        return torch.empty_like(x_seq, dtype=dtype) if wanted else x_seq.new_empty(0, dtype=dtype)

    spikes, v = torch.empty_like(x_seq), torch.empty_like(x_seq[0], dtype=dtype)
    return spikes, v, kept, sequence(store_v_seq), sequence(trace), sequence(trace)


@torch.library.custom_op(
    "sj_prune::multi_step",
    mutates_args=(),
    schema=f"(Tensor x_seq, Tensor v_init, Tensor? w, {_SETTINGS}, int statistics, "
    "bool store_v_seq, bool trace) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _multi_step(x_seq: Tensor, v_init: Tensor, w: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    *settings, surrogate, alpha, statistics, store_v_seq, trace = rest
    outputs = _empty_outputs(x_seq, statistics, store_v_seq, trace)
    engine, known = choose(x_seq.device, x_seq.dtype), Known(surrogate, alpha)
    engine.forward(x_seq, v_init, w, Equations(*settings), known, statistics, outputs)
    return outputs


@_multi_step.register_fake
def _(x_seq: Tensor, *rest: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    return _empty_outputs(x_seq, *rest[-3:])


def _empty_gradients(
    x_seq: Tensor, v: Tensor, w: Tensor | None, wants_v: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad_v = torch.empty_like(x_seq[0], dtype=v.dtype) if wants_v else v.new_empty(0)
    grad_w = x_seq.new_empty(0) if w is None else torch.empty_like(w)
    return torch.empty_like(x_seq), grad_v, grad_w


def _backward_now(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    saved: tuple[Tensor, Tensor, Tensor | None],
    settings: tuple[Any, ...],
    wants_v: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x_seq, v_init, w = saved
    outputs = _empty_gradients(x_seq, v_init, w, wants_v)
    engine, known = choose(x_seq.device, x_seq.dtype), Known(*settings[-2:])
    engine.backward(grads, x_seq, v_init, w, Equations(*settings[:-2]), known, outputs)
    return outputs


@torch.library.custom_op(
    "sj_prune::multi_step_backward",
    mutates_args=(),
    schema="(Tensor? grad_spikes, Tensor? grad_v, Tensor? grad_v_seq, Tensor x_seq, Tensor v_init, "
    f"Tensor? w, {_SETTINGS}, bool wants_v) -> (Tensor, Tensor, Tensor)",
)
def _multi_step_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    return _backward_now(args[:3], args[3:6], args[6:-1], args[-1])


@_multi_step_backward.register_fake
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    x_seq, v_init, w, *_, wants_v = args[3:]
    return _empty_gradients(x_seq, v_init, w, wants_v)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    x_seq, v_init, w, *settings = inputs
    ctx.save_for_backward(x_seq, v_init, w)
    ctx.settings = tuple(settings[:-3])
    _keep_gradients(ctx, output, settings[-2])


def _keep_gradients(ctx: Any, output: tuple[Tensor, ...], store_v_seq: bool) -> None:  # noqa: ANN401
    _, _, partials, v_seq, h_seq, g_seq = output
    ctx.store_v_seq = store_v_seq
    fixed = (partials, h_seq, g_seq) if store_v_seq else (partials, v_seq, h_seq, g_seq)
    ctx.mark_non_differentiable(*fixed)
    ctx.set_materialize_grads(False)


def _autograd_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # noqa: ANN401
    grad_spikes, grad_v, _, grad_v_seq, _, _ = grads
    saved = ctx.saved_tensors
    wanted = (grad_spikes, grad_v, grad_v_seq if ctx.store_v_seq else None)
    wants_v = ctx.needs_input_grad[1]
    results: Sequence[Tensor | None]
    if torch.is_grad_enabled():
        results = _higher_order(wanted, saved, ctx.settings)
    elif _plain(saved[0]):
        results = _backward_now(wanted, saved, ctx.settings, wants_v)
    else:
        results = torch.ops.sj_prune.multi_step_backward(*wanted, *saved, *ctx.settings, wants_v)
    grad_x, grad_v_init, grad_w = results
    grad_v_init, grad_w = grad_v_init if wants_v else None, None if saved[2] is None else grad_w
    return grad_x, grad_v_init, grad_w, *(None,) * 11


def _higher_order(
    grads: tuple[Tensor | None, ...], saved: tuple[Tensor | None, ...], settings: tuple[Any, ...]
) -> list[Tensor | None]:
    """Differentiable gradients (``create_graph=True``) through the step-by-step reference."""
    # Aliases stand for the saved tensors: these may depend on each other (a carried-over `v_init`
    # on `w`), and those paths belong to the calls that made them.
    saved = tuple(None if t is None else t.view_as(t) for t in saved)
    x_seq, v_init, w = saved
    assert x_seq is not None  # noqa: S101 (for the type checker)
    assert v_init is not None  # noqa: S101
    *numbers, surrogate, alpha = settings
    known = Known(surrogate, alpha)
    store = grads[2] is not None
    result = reference.differentiable(
        x_seq, v_init, w, Equations(*numbers), lambda u: spike(u, known), store_v_seq=store
    )
    outputs = [torch.stack(result.spikes), result.v]
    if store:
        outputs.append(torch.stack(result.v_seq))
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=False) if g is not None]
    inputs = [t for t in saved if t is not None and t.requires_grad]
    ends, weights = [o for o, _ in pairs], [g for _, g in pairs]
    made = torch.autograd.grad(ends, inputs, weights, create_graph=True, allow_unused=True)
    found = iter(made)
    return [next(found) if t is not None and t.requires_grad else None for t in saved]


_multi_step.register_autograd(_autograd_backward, setup_context=_setup_context)


def _plain(x_seq: Tensor) -> bool:
    """Tell whether nothing but autograd watches: no compiler, transform, mode or subclass."""
    if torch.compiler.is_compiling() or type(x_seq) not in (Tensor, torch.nn.Parameter):
        return False
    return not (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
    )


def _refuse_tangents(*tensors: Tensor | None) -> None:
    """Raise in forward mode: torch takes a custom op's missing derivative for zero there."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(
            "Expected derivatives of neurons in reverse mode but got forward mode: use "
            "torch.autograd.grad or backward"
        )


class _Eager(torch.autograd.Function):
    """``sj_prune::multi_step`` without the way through torch's dispatcher."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,  # noqa: ANN401
        x_seq: Tensor,
        v_init: Tensor,
        w: Tensor | None,
        settings: tuple[Any, ...],
        statistics: int,
        store_v_seq: bool,
        trace: bool,
        summed: bool,
    ) -> tuple[Tensor, ...]:
        engine = choose(x_seq.device, x_seq.dtype)
        rows = engine.partial_rows(x_seq) if summed else None
        outputs = _empty_outputs(x_seq, statistics, store_v_seq, trace, rows)
        eq, known = Equations(*settings[:-2]), Known(*settings[-2:])
        engine.forward(x_seq, v_init, w, eq, known, statistics, outputs)
        ctx.save_for_backward(x_seq, v_init, w)
        ctx.settings = settings
        _keep_gradients(ctx, outputs, store_v_seq)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # noqa: ANN401
        return *_autograd_backward(ctx, *grads)[:3], *(None,) * 5


def multi_step(
    x_seq: Tensor,
    v_init: Tensor,
    w: Tensor | None,
    eq: Equations,
    function: Any,  # noqa: ANN401 (any callable surrogate)
    known: Known | None,
    names: tuple[str, ...] = (),
    store_v_seq: bool = False,
    trace: bool = False,
    summed: bool = False,
) -> Outputs:
    """Run a neuron layer over ``x_seq [T, N, *]``.

    Args:
        x_seq: input current, floating point.
        v_init: potential ``[N, *]`` in `compute_dtype` of the input.
        w: PLIF's parameter (scalar), else None.
        eq: the settings of the layer.
        function: the layer's surrogate; used where `known` is None.
        known: id and parameter of the surrogate, or None to go through autograd.
        names: statistics to reduce; the others cost nothing.
        store_v_seq: return `V` of every step, differentiable.
        trace: return `H` and `g'` of every step: two tensors of ``[T, N, *]`` in `compute_dtype`.
        summed: partials may be sums over samples where that is faster.
    """
    if known is None:
        if not torch.compiler.is_compiling():
            check_without_closed_form(function)
        result = reference.differentiable(x_seq, v_init, w, eq, function, names, store_v_seq, trace)
        with torch.no_grad():
            shape = (x_seq.shape[1], _channels(x_seq), 0)
            partials = torch.stack(result.partials, -1) if names else result.v.new_empty(shape)
        v_seq, h_seq, g_seq = (
            torch.stack(steps) if steps else None
            for steps in (result.v_seq, result.h_seq, result.g_seq)
        )
        return Outputs(torch.stack(result.spikes), result.v, partials, v_seq, h_seq, g_seq)
    assert (w is None) == (eq.kind != PLIF)  # noqa: S101 (our own nodes call this)
    settings = (
        eq.kind,
        eq.tau,
        eq.decay_input,
        float(eq.v_threshold),  # of a tensor, which may change in place, the number that it is now
        None if eq.v_reset is None else float(eq.v_reset),
        eq.detach_reset,
        *known,
    )
    wanted = (bits_of(names), store_v_seq, trace)
    if _plain(x_seq):
        outputs = _Eager.apply(x_seq, v_init, w, settings, *wanted, summed)
    else:
        _refuse_tangents(x_seq, v_init, w)
        outputs = torch.ops.sj_prune.multi_step(x_seq, v_init, w, *settings, *wanted)
    spikes, v, partials, v_seq, h_seq, g_seq = outputs
    sequences = (v_seq if store_v_seq else None, *((h_seq, g_seq) if trace else (None, None)))
    return Outputs(spikes, v, partials, *sequences)
