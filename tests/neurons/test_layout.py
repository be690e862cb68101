"""The memory layout of the input changes no result, and the custom ops keep their promises."""

import itertools

import pytest
import torch
from spikingjelly.activation_based import surrogate

from sj_prune.neurons import STATISTICS
from sj_prune.neurons.reference import IF, LIF, PLIF
from sj_prune.neurons.surrogates import lookup
from tests.support.neuron_cases import RECORDING, STOCK, TAU, assert_near, current, settings

SHAPE = (3, 2, 4, 5, 6)
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: (
        x.flatten(0, 1).contiguous(memory_format=torch.channels_last).view(x.shape)
    ),
    "time last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "batch first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every second": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded over time": lambda x: x[:1].clone().expand(x.shape),
    "offset": lambda x: torch.cat([x.new_zeros(1, *x.shape[1:]), x])[1:],
}


def results(node, x):
    node.trace = True
    leaf = x.detach().requires_grad_()  # detach keeps the layout
    spikes = node(leaf)
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)
    loss = (spikes * weights).sum() + (node.v_seq * weights).sum() + node.v.sum()
    inputs = [leaf, *node.parameters()]
    grads = torch.autograd.grad(loss, inputs)
    exact = [spikes, node.v, node.v_seq, node.h_seq, node.g_seq]
    return exact, [*grads, *(node.activity.mean(name) for name in STATISTICS)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
@pytest.mark.parametrize("channel_dim", [2, -1])
def test_results_do_not_depend_on_it(layout, kind, channel_dim):
    kwargs = settings(kind, surrogate_function=surrogate.ATan(), store_v_seq=True)
    x = LAYOUTS[layout](current(*SHAPE))
    if layout != "contiguous":
        assert not x.is_contiguous() or x.storage_offset() > 0
    found = []
    for value in (x, x.contiguous().clone()):
        node = RECORDING[kind](**kwargs)
        node.channel_dim = channel_dim
        found.append(results(node, value))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(found[0][1], found[1][1], strict=True):  # sums may run in another order
        assert_near(a, b, 1e-5)
    assert torch.equal(found[0][0][0], STOCK[kind](**kwargs)(x))


def test_channels_last_stays_channels_last():
    node = RECORDING["LIF"](step_mode="m")
    x = LAYOUTS["channels last"](current(*SHAPE))
    assert node(x).stride() == x.stride()
    assert node.v.is_contiguous(memory_format=torch.channels_last)


def arguments(kind, x, function, *, v_reset=0.0, decay_input=True, detach_reset=False):
    """Return tensors and numbers of a call of the op."""
    known = lookup(function)
    v = torch.rand_like(x[0]).requires_grad_(x.requires_grad)
    w = torch.tensor(0.3, requires_grad=True) if kind == PLIF else None
    numbers = (kind, TAU, decay_input, 1.0, v_reset, detach_reset, known.id, known.alpha)
    return (x, v, w), numbers


EXTRAS = ((0, False, False), (31, True, True), (5, True, False))
OP_LAYOUTS = ("contiguous", "channels last", "expanded over time")
# Every pair of two settings, a Latin square; the others are slow.
OP_CASES = [
    pytest.param(kind, extras, layout, marks=pytest.mark.slow if (i + j + k) % 3 else [])
    for i, kind in enumerate((IF, LIF, PLIF))
    for j, extras in enumerate(EXTRAS)
    for k, layout in enumerate(OP_LAYOUTS)
]


@pytest.mark.parametrize(("kind", "extras", "layout"), OP_CASES)
def test_opcheck_forward(kind, extras, layout):
    """Schema, fake implementation, registered autograd, and the two under AOT dispatch."""
    x = LAYOUTS[layout](current(*SHAPE)).requires_grad_()
    v_reset = (0.0, None, -0.3)[kind]
    tensors, numbers = arguments(kind, x, surrogate.Sigmoid(), v_reset=v_reset)
    torch.library.opcheck(torch.ops.sj_prune.multi_step, (*tensors, *numbers, *extras))


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4), (1, 1, 1, 1, 1)], ids=str)
def test_opcheck_shapes(shape):
    x = current(*shape).requires_grad_()
    tensors, numbers = arguments(LIF, x, surrogate.ATan())
    torch.library.opcheck(torch.ops.sj_prune.multi_step, (*tensors, *numbers, 31, True, True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_opcheck_types(dtype):
    x = current(*SHAPE, dtype=dtype).requires_grad_()
    (x, v, w), numbers = arguments(PLIF, x, surrogate.ATan(), decay_input=False)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    v = v.detach().to(wide).requires_grad_()
    torch.library.opcheck(torch.ops.sj_prune.multi_step, (x, v, w, *numbers, 31, True, True))


@pytest.mark.parametrize("layout", OP_LAYOUTS)
@pytest.mark.parametrize("given", list(itertools.product((True, False), repeat=3)), ids=str)
@pytest.mark.parametrize("kind", [IF, PLIF])
def test_opcheck_backward(kind, given, layout):
    """With and without the gradients of the spikes, of the last V and of its sequence."""
    x = LAYOUTS[layout](current(*SHAPE))
    (x, v, w), numbers = arguments(kind, x, surrogate.Sigmoid())
    w = None if w is None else w.detach()
    gradients = [torch.randn_like(like) for like in (x, v, x)]
    chosen = [g if wanted else None for g, wanted in zip(gradients, given, strict=True)]
    tests = ("test_schema", "test_faketensor")
    wants_v = chosen[1] is None  # either way
    torch.library.opcheck(
        torch.ops.sj_prune.multi_step_backward,
        (*chosen, x, v, w, *numbers, wants_v),
        test_utils=tests,
    )
