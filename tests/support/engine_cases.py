"""One call of the CUDA engine, forward and backward, checked against the reference.

The same checks serve the engine on the host (`cuda_shim`) and on a device.
"""

import itertools
import math
from dataclasses import dataclass, replace
from unittest import mock

import torch

from sj_prune.engines import cupy_engine
from sj_prune.neurons import reference
from sj_prune.neurons.reference import IF, LIF, PLIF, Equations
from sj_prune.neurons.statistics import STATISTICS
from sj_prune.neurons.surrogates import KNOWN, Known, derivative

# Defaults of the host and of METHODS.md.
ALPHA = {"Sigmoid": 4.0, "ATan": 2.0, "SoftSign": 2.0, "Erf": 2.0, "Tanh": 3.0}
SURROGATES = [Known(i, ALPHA.get(cls.__name__, 1.0)) for i, cls in enumerate(KNOWN)]
LAYOUTS = ("contiguous", "channels_last", "batch_first")
NOT_FINITE = (math.nan, math.inf, -math.inf)
_MARGIN = 64


@dataclass(frozen=True)
class Case:
    """Settings of a neuron, shape and placement of its tensors."""

    shape: tuple[int, ...] = (4, 2, 3, 4, 4)
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    kind: int = LIF
    tau: float = 1.7
    decay_input: bool = True
    v_reset: float | None = 0.0
    detach: bool = False
    surrogate: Known = SURROGATES[0]
    statistics: int = 31
    store: int = 0  # 1: v_seq, 2: h_seq and g_seq
    grads: int = 3  # 1: of the spikes, 2: of v, 4: of v_seq
    one_v: bool = False  # the initial potentials are one number in memory
    wants_v: bool = True  # their gradient is wanted
    offset: int = 0  # elements by which tensors miss their alignment
    device: str = "cpu"
    seed: int = 0

    @property
    def equations(self):
        return Equations(self.kind, self.tau, self.decay_input, 1.0, self.v_reset, self.detach)


class Memory:
    """Tensors between margins of nan: reading outside spreads nan, writing there is noticed."""

    def __init__(self, case):
        self.case = case
        self.buffers = []

    def empty(self, like, dtype):
        """Return nan in the layout of `like`."""
        device, offset = self.case.device, _MARGIN + self.case.offset
        size = like.numel() + 2 * _MARGIN + self.case.offset
        buffer = torch.full((size,), math.nan, dtype=dtype, device=device)
        self.buffers.append((buffer, offset, like.numel()))
        return buffer.as_strided(like.shape, like.stride(), offset)

    def place(self, tensor, dtype):
        return self.empty(tensor, dtype).copy_(tensor)

    def assert_margins_untouched(self):
        for buffer, offset, count in self.buffers:
            assert buffer[:offset].isnan().all()
            assert buffer[offset + count :].isnan().all()


def arrange(tensor, layout, ndim):
    """Give a sequence, or one step of it, of `ndim`-dimensional input the memory of `layout`."""
    if layout == "channels_last" and ndim > 2:
        dim = 2 - (ndim - tensor.ndim)
        return tensor.movedim(dim, -1).contiguous().movedim(-1, dim)
    if layout == "batch_first" and tensor.ndim == ndim:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    return tensor.contiguous()


class Call:
    """Inputs and outputs of one call."""

    def __init__(self, case):
        self.case, self.memory = case, Memory(case)
        generator = torch.Generator().manual_seed(case.seed)
        ndim, self.single = len(case.shape), torch.float32

        def draw(shape, dtype, low=-1.0, high=1.0):
            drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
            return self.put(drawn * (high - low) + low, dtype, ndim)

        step = case.shape[1:]
        # About a third of the neurons fire.
        self.x = draw(case.shape, case.dtype, -0.5, 2.5)
        self.v = draw(step, self.single)
        if case.one_v:
            self.v = torch.tensor(0.3, device=case.device).expand(step)
        self.w = None
        if case.kind == PLIF:
            self.w = torch.tensor(-0.3, device=case.device)
        self.grads = (
            draw(case.shape, case.dtype) if case.grads & 1 else None,
            draw(step, self.single) if case.grads & 2 else None,
            draw(case.shape, self.single) if case.grads & 4 else None,
        )

    def put(self, tensor, dtype, ndim):
        return self.memory.place(arrange(tensor, self.case.layout, ndim), dtype)

    def forward(self):
        """Return spikes, v, partials, v_seq, h_seq, g_seq of the engine."""
        case, x = self.case, self.x
        channels = x.shape[2] if x.ndim > 2 else 1
        partials = x.new_empty(x.shape[1], channels, case.statistics.bit_count(), dtype=self.single)

        def sequence(wanted):
            return self.memory.empty(x, self.single) if wanted else x.new_empty(0)

        outputs = (
            self.memory.empty(x, case.dtype),
            self.memory.empty(torch.empty_like(x[0]), self.single),
            partials.fill_(math.nan),
            sequence(case.store & 1),
            sequence(case.store & 2),
            sequence(case.store & 2),
        )
        cupy_engine.forward(
            x, self.v, self.w, case.equations, case.surrogate, case.statistics, outputs
        )
        self.memory.assert_margins_untouched()
        return outputs

    def backward(self):
        """Return the gradients of x, v and w of the engine."""
        case, x = self.case, self.x
        grad_w = x.new_empty(0) if self.w is None else torch.full_like(self.w, math.nan)
        grad_v = x.new_empty(0)
        if case.wants_v:
            grad_v = self.memory.empty(torch.empty_like(x[0]), self.single)
        outputs = (self.memory.empty(x, case.dtype), grad_v, grad_w)
        cupy_engine.backward(self.grads, x, self.v, self.w, case.equations, case.surrogate, outputs)
        self.memory.assert_margins_untouched()
        return outputs

    def on_cpu(self, dtype=torch.float32):
        """Return x, v, w and the gradients on the CPU, in `dtype`."""
        tensors = (self.x, self.v, self.w, *self.grads)
        x, v, w, *grads = (None if t is None else t.cpu().to(dtype) for t in tensors)
        return x, v, w, grads

    def trace(self):
        """Return S, V, H ``[T, N, *]`` of the reference, in its single precision."""
        x, v, w, _ = self.on_cpu()
        case = self.case
        known = case.surrogate
        done = reference.forward(x, v, w, case.equations, known, store_v_seq=True, trace=True)
        return (torch.stack(s) for s in (done.spikes, done.v_seq, done.h_seq))


def exact_partials(case, spikes, v_seq, h_seq):
    """Return the statistics ``[N, C, K]`` in double precision from the steps themselves."""
    steps, samples = spikes.shape[:2]
    channels = spikes.shape[2] if spikes.ndim > 2 else 1

    def over_time(values):
        return values.double().mean(0).reshape(samples, channels, -1)

    g = over_time(derivative(h_seq.double() - 1.0, case.surrogate))
    every = {
        "firing_rate": over_time(spikes).mean(-1),
        "abs_potential": over_time(v_seq.abs()).mean(-1),
        "abs_charge": over_time(h_seq.abs()).mean(-1),
        "criticality_mean": g.mean(-1),
        "criticality_max": g.amax(-1),
    }
    wanted = [every[name] for i, name in enumerate(STATISTICS) if case.statistics >> i & 1]
    return torch.stack(wanted, -1) if wanted else torch.empty(samples, channels, 0)


def assert_forward(call):
    """Check spikes and potentials to the last bit, the rest closely."""
    case = call.case
    spikes, v, partials, v_seq, h_seq, g_seq = (t.cpu() for t in call.forward())
    expected, potentials, charges = call.trace()
    assert torch.equal(spikes.float(), expected)
    assert torch.equal(v, potentials[-1])
    exact = exact_partials(case, expected, potentials, charges)
    torch.testing.assert_close(partials.double(), exact.double(), rtol=2e-6, atol=2e-6)
    if case.store & 1:
        assert torch.equal(v_seq, potentials)
    if case.store & 2:
        assert torch.equal(h_seq, charges)
        exact = derivative(charges.double() - 1.0, case.surrogate)
        torch.testing.assert_close(g_seq.double(), exact, rtol=3e-6, atol=1e-6)


def error(found, exact):
    """Return the norm of the error."""
    return (found.double() - exact).norm().item()


def assert_backward(call):
    """Check gradients against double precision, of the potentials in single precision.

    The error is at most twice that of plain torch in the type of the tensor, which is what
    rounding the exact result to it gives at best, and a few rounding errors of single precision
    at the size of the terms, which may cancel.
    """
    case = call.case
    found = [t.cpu() for t in call.backward()]
    exact, single = (_reference_gradients(call, t) for t in (torch.float64, torch.float32))
    x, _, _, grads = call.on_cpu(torch.float64)
    given = math.hypot(*(grad.norm().item() for grad in grads if grad is not None))
    for ours, truth, plain in zip(found, exact, single, strict=True):
        if truth is None or (truth is exact[1] and not case.wants_v):
            continue
        assert not ours.isnan().any()
        scale = given + truth.norm().item()
        if truth.ndim == 0:  # PLIF's sum over all elements
            scale = given * x.norm().item()
        floor = 4 * torch.finfo(torch.float32).eps * scale
        assert error(ours, truth) <= 2 * error(plain.to(ours.dtype), truth) + floor, case


def _reference_gradients(call, dtype):
    x, v, w, _ = call.on_cpu()
    eq = call.case.equations
    before, charges = ([t.to(dtype) for t in ts] for ts in reference._charges(x, v, w, eq))
    x, v, w, grads = call.on_cpu(dtype)
    # Potentials in double would flip a spike now and then.
    with mock.patch.object(reference, "_charges", return_value=(before, charges)):
        steps, grad_v, grad_w = reference.backward(*grads, x, v, w, eq, call.case.surrogate)
    return torch.stack(steps), grad_v, None if w is None else grad_w


def of_every_surrogate():
    """Return a case a surrogate; kinds and layouts take turns."""
    kinds, layouts = itertools.cycle((LIF, PLIF, IF)), itertools.cycle(LAYOUTS[:2])
    shape = (4, 2, 3, 8, 9)
    return [
        Case(shape=shape, surrogate=s, kind=next(kinds), layout=next(layouts), store=3)
        for s in SURROGATES
    ]


def assert_overflow(case, bad):
    """Check all results, where one number of the input is not finite, against the reference."""
    call = Call(case)
    call.x[1, 0, 2, 7, 3] = bad
    found = [*call.forward(), *call.backward()]
    x, v, w, grads = call.on_cpu()
    done = reference.forward(x, v, w, case.equations, case.surrogate, STATISTICS, True, True)
    sequences = [torch.stack(s) for s in (done.v_seq, done.h_seq, done.g_seq)]
    expected = [torch.stack(done.spikes), done.v, torch.stack(done.partials, -1), *sequences]
    steps, *rest = reference.backward(*grads, x, v, w, case.equations, case.surrogate)
    expected += [torch.stack(steps), *(rest if case.kind == PLIF else rest[:1])]
    for one, other in zip(found, expected, strict=False):  # without a w, an empty one
        same = {"rtol": 2e-4, "atol": 2e-5, "equal_nan": True, "check_dtype": False}
        torch.testing.assert_close(one.cpu(), other, **same)


def settings():
    """Return every neuron: kind, decay, tau with and without an exact inverse, reset, detach.

    Surrogates, input types, statistics and stored sequences take turns, so that each meets many.
    """
    base = [
        Case(kind=kind, decay_input=decay, tau=tau, v_reset=v_reset, detach=detach)
        for kind in (IF, LIF, PLIF)
        for decay in ((True, False) if kind != IF else (False,))
        for tau in ((2.0, 1.7) if kind == LIF else (1.7,))
        for v_reset in (0.0, -0.25, None)
        for detach in (False, True)
    ]
    types = (torch.float32, torch.float16, torch.bfloat16)
    return [
        replace(
            case,
            surrogate=SURROGATES[i % len(SURROGATES)],
            dtype=types[(i // 2) % 3],
            statistics=(31, 17, 8, 6, 1, 24)[i % 6],
            store=(0, 1, 2, 3)[(i // 3) % 4],
            grads=(3, 1, 7, 6, 5)[i % 5],
            one_v=bool(i % 2),
            wants_v=bool(i % 3),
            seed=i,
        )
        for i, case in enumerate(base)
    ]


# Shapes that a kernel could get wrong: odd sizes, maps of one element, one step, many steps, one
# sample, one channel, maps larger than a block, features in no multiple of anything.
SHAPES = [
    (4, 2, 3, 4, 4),
    (1, 1, 1, 1, 1),
    (1, 3, 2, 3, 3),
    (3, 1, 5, 7, 7),
    (100, 2, 3, 2, 2),
    (9, 2, 4, 8),
    (17, 1, 2, 4, 2),
    (33, 2, 2, 2, 2),
    (4, 5),
    (4, 1),
    (5, 3, 37),
    (4, 2, 64),
    (4, 4, 300),
    (2, 3, 16, 1, 1),
    (4, 1, 2, 40, 33),
    (4, 2, 1, 64, 64),
    (2, 2, 72, 2, 3),
    (6, 1, 8, 5, 8, 2),
    (2, 40, 8, 2, 2),
]
