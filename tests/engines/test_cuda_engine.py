"""The CUDA engine behind the custom ops and the nodes: once on the host, once on a device.

On the host `cuda_shim` runs the kernels. The tests of the device, marked `gpu`, repeat what
`test_cuda_on_host.py` checks and add what only a device has: streams, graphs, other devices.
"""

import ctypes
import mmap
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from spikingjelly.activation_based import surrogate

from sj_prune.engines import cupy_device, cupy_engine
from sj_prune.neurons import (
    RecordingIFNode,
    RecordingLIFNode,
    RecordingParametricLIFNode,
    op,
    reference,
)
from sj_prune.neurons.reference import IF, LIF, PLIF, Equations
from sj_prune.neurons.surrogates import Known, spike
from tests.support.cuda_shim import host  # noqa: F401 (a fixture)
from tests.support.engine_cases import (
    LAYOUTS,
    NOT_FINITE,
    SHAPES,
    Call,
    Case,
    assert_backward,
    assert_forward,
    assert_overflow,
    of_every_surrogate,
    settings,
)

NODES = {
    "IF": RecordingIFNode,
    "LIF": lambda **kwargs: RecordingLIFNode(tau=1.7, **kwargs),
    "PLIF": RecordingParametricLIFNode,
}
KINDS = {"IF": IF, "LIF": LIF, "PLIF": PLIF}


def use_cupy(monkeypatch):
    if reason := cupy_engine.available():
        pytest.skip(reason)
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "cupy")


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Yield the device on which nodes run through the CUDA engine."""
    if request.param == "cuda":
        use_cupy(monkeypatch)
        return torch.device("cuda")
    request.getfixturevalue("host")
    monkeypatch.setattr(op, "choose", lambda device, dtype: cupy_engine)
    return torch.device("cpu")


def current(*shape, device, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, generator=generator) * 3.0 - 0.5
    return x.to(device, dtype).requires_grad_()


def pass_through(node, x, seed=1):
    """Return spikes, gradients of the input and of the parameters, and the statistics."""
    node.activity.clear()
    node.reset()
    x.grad = None
    node.zero_grad()
    spikes = node(x)
    weight = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    (spikes * weight).sum().backward()
    gradients = [x.grad.clone(), *(p.grad.clone() for p in node.parameters())]
    return [spikes.detach(), *gradients, node.activity.sums.clone()]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", NODES)
def test_node_equals_the_reference(device, kind, dtype, monkeypatch):
    x = current(4, 2, 3, 8, 8, device=device, dtype=dtype)
    found = pass_through(NODES[kind](step_mode="m").to(device), x)
    monkeypatch.undo()  # the torch engine, on the CPU: on CUDA torch divides by multiplying
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "torch")
    expected = pass_through(NODES[kind](step_mode="m"), x.detach().cpu().requires_grad_())
    assert torch.equal(found[0].cpu(), expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        scale = theirs.abs().max().item()
        tolerance = 2 * torch.finfo(ours.dtype).eps if ours.dtype.itemsize < 4 else 3e-6
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=tolerance * scale)


def op_arguments(kind, device, dtype=torch.float32):
    x = current(5, 2, 3, 4, device=device, dtype=dtype)
    v = torch.rand(2, 3, 4, device=device, requires_grad=True)
    w = torch.tensor(0.1, device=device, requires_grad=True) if kind == "PLIF" else None
    equations = Equations(KINDS[kind], 1.7, True, 1.0, 0.0, False)
    numbers = (
        *(equations.kind, equations.tau, equations.decay_input),
        *(equations.v_threshold, equations.v_reset, equations.detach_reset),
        *Known(1, 2.0),
    )
    return x, v, w, numbers


@pytest.mark.parametrize("kind", NODES)
def test_opcheck(device, kind):
    x, v, w, numbers = op_arguments(kind, device)
    torch.library.opcheck(torch.ops.sj_prune.multi_step, (x, v, w, *numbers, 31, True, True))
    inputs = [None if t is None else t.detach() for t in (x, v, w)]
    grads = (torch.rand_like(inputs[0]), torch.rand_like(inputs[1]), None)
    torch.library.opcheck(torch.ops.sj_prune.multi_step_backward, (*grads, *inputs, *numbers, True))


@pytest.mark.parametrize("kind", NODES)
def test_results_repeat_to_the_last_bit(device, kind):
    node = NODES[kind](step_mode="m").to(device)
    x = current(4, 2, 8, 24, 24, device=device)
    assert_same(pass_through(node, x), pass_through(node, x))


def test_compiled_node_equals_eager(device):
    x = current(4, 2, 3, 8, 8, device=device)
    eager = pass_through(RecordingLIFNode(step_mode="m").to(device), x)
    node = RecordingLIFNode(step_mode="m").to(device)
    step = torch.compile(node, fullgraph=True, backend="aot_eager")
    x.grad = None
    spikes = step(x)
    assert torch.equal(spikes, eager[0])
    weight = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    (spikes * weight).sum().backward()
    assert torch.equal(x.grad, eager[1])
    assert torch.equal(node.activity.sums, eager[-1])


@pytest.mark.gpu
def test_inductor_on_device(monkeypatch):
    """The compiler of torch's own choice: its kernels before and after the custom op."""
    use_cupy(monkeypatch)
    eager, traced = (NODES["PLIF"](step_mode="m").cuda() for _ in range(2))
    compiled = torch.compile(lambda x: traced(x * 2.0) * 4.0, fullgraph=True)
    found = []
    for node, run in ((eager, lambda x: eager(x * 2.0) * 4.0), (traced, compiled)):
        x = current(4, 3, 8, 5, 5, device="cuda")
        spikes = run(x)
        (spikes * weights(x)).sum().backward()
        found.append((spikes, x.grad, node.w.grad, node.activity.sums))
    assert found[0][0].any()
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_nothing_is_read_beyond_the_input(host):  # noqa: F811
    """The input ends where a page without access begins: reading on would end the process."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    start = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(start + 2 * page, page, 0) == 0
    for shape, statistics in (((4, 1, 3, 4, 8), 31), ((5, 3, 36), 31), ((33, 2, 12), 0)):
        call = Call(Case(shape=shape, statistics=statistics))
        size = call.x.numel() * 4
        edge = torch.frombuffer(
            memory, dtype=torch.float32, offset=2 * page - size, count=size // 4
        )
        call.x = edge.view(shape).copy_(call.x)
        assert_forward(call)
        assert_backward(call)
    assert protect(start + 2 * page, page, mmap.PROT_READ | mmap.PROT_WRITE) == 0


# ---- on a device ---------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch):
    """Require the CUDA engine; let the reference on the CPU use the device's sigmoid(w)."""
    use_cupy(monkeypatch)
    on_cpu = reference.decay_of

    def of_device(equations, w):
        if equations.kind != PLIF:
            return on_cpu(equations, w)
        return (w.cuda() if w.dtype == torch.float64 else w.float().cuda()).sigmoid().cpu()

    monkeypatch.setattr(reference, "decay_of", of_device)


def assert_on_device(case):
    call = Call(replace(case, device="cuda"))
    assert_forward(call)
    assert_backward(call)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("case", settings())
def test_settings_on_device(case):
    assert_on_device(replace(case, shape=(5, 3, 16, 12, 12)))


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*SHAPES, (4, 32, 64, 16, 16), (4, 16, 128, 7, 7), (8, 64, 512)])
def test_shapes_on_device(shape, layout, dtype):
    assert_on_device(Case(shape=shape, layout=layout, dtype=dtype))


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@hypothesis_settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shape=st.tuples(
        st.integers(1, 20), *(st.integers(1, 20),) * 2, st.integers(1, 40), st.integers(1, 40)
    ),
    layout=st.sampled_from(LAYOUTS),
    offset=st.sampled_from([0, 0, 1, 2, 4]),
    kind=st.sampled_from([LIF, PLIF]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_on_device(shape, layout, offset, kind, seed):
    assert_on_device(Case(shape=shape, layout=layout, offset=offset, kind=kind, seed=seed))


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("case", of_every_surrogate())
def test_an_overflow_shows_on_device(case, bad):
    assert_overflow(replace(case, device="cuda"), bad)


def plain_gradient(x_seq, dtype):
    """Return the input gradient of a LIF layer in plain torch, all of it in `dtype`."""
    x = x_seq.detach().to(dtype).requires_grad_()
    v, spikes = torch.zeros_like(x[0]), []
    for current_ in x:
        h = v + (current_ - v) / 1.7
        s = spike(h - 1.0, Known(1, 2.0))
        v = (1.0 - s) * h
        spikes.append(s)
    (torch.stack(spikes) * weights(x)).sum().backward()
    return x.grad.double()


def weights(x):
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).to(x)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradient_error_against_plain_low_precision(dtype):
    """The error is at most twice that of plain torch in the same type, against double."""
    x = current(4, 8, 16, 16, 16, device="cuda", dtype=dtype)
    exact = plain_gradient(x, torch.float64)
    node = RecordingLIFNode(tau=1.7, step_mode="m", surrogate_function=surrogate.ATan()).cuda()
    (node(x) * weights(x)).sum().backward()
    ours = (x.grad.double() - exact).norm()
    assert ours <= 2 * (plain_gradient(x, dtype) - exact).norm()
    assert ours <= 1e-2 * exact.norm()


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("kind", NODES)
def test_capture_in_a_cuda_graph(kind):
    """Forward, statistics and backward are captured once and replayed on new input."""
    node = NODES[kind](step_mode="m").cuda()
    x = current(4, 2, 8, 16, 16, device="cuda")
    fixed = x.detach().clone().requires_grad_()

    weight = weights(x.detach())

    def step():
        node.reset()
        spikes = node(fixed)
        return [spikes, *torch.autograd.grad(spikes, [fixed, *node.parameters()], weight)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    for seed in (5, 6):
        fixed.data.copy_(current(*x.shape, device="cuda", seed=seed))
        node.activity.clear()
        graph.replay()
        found = [t.clone() for t in (*outputs, node.activity.sums)]
        node.activity.clear()
        expected = [*step(), node.activity.sums]
        assert_same(found, expected)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_a_capture_without_a_warm_up_is_refused():
    node = RecordingLIFNode(step_mode="m").cuda()
    x = current(4, 2, 8, 16, 16, device="cuda").detach()
    cupy_device.kernel.cache_clear()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="warm-up"), torch.cuda.graph(graph):
        node(x)
    node.reset()
    assert node(x).any()


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_two_streams():
    """Calls on two streams at once do not disturb each other, and follow their own stream."""
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    nodes = [RecordingLIFNode(step_mode="m").cuda() for _ in streams]
    xs = [current(4, 16, 32, 32, 32, device="cuda", seed=seed) for seed in (1, 2)]
    expected = [pass_through(node, x) for node, x in zip(nodes, xs, strict=True)]
    torch.cuda.synchronize()
    for _ in range(20):
        found = []
        for stream, node, x in zip(streams, nodes, xs, strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                torch.cuda._sleep(100_000)  # what follows must wait for this
                found.append(pass_through(node, x))
        torch.cuda.synchronize()
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_another_device_than_the_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    first = pass_through(NODES["PLIF"](step_mode="m").cuda(0), current(4, 2, 8, 9, device="cuda:0"))
    with torch.cuda.device(0):
        x = current(4, 2, 8, 9, device="cuda:1")
        second = pass_through(NODES["PLIF"](step_mode="m").cuda(1), x)
    assert torch.cuda.current_device() == 0
    assert_same([t.cpu() for t in second], [t.cpu() for t in first])


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_more_elements_than_32_bits_count(layout):
    """2^31 elements and more: a step looks like any of its parts."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GB of device memory")
    part = current(2, 1, 8, 128, 128, device="cuda", dtype=torch.float16).detach()
    x = part.expand(2, 8200, 8, 128, 128)
    x = x.contiguous() if layout == "contiguous" else x.movedim(2, -1).contiguous().movedim(-1, 2)
    assert x.numel() > 2**31
    node = RecordingIFNode(step_mode="m").cuda()
    spikes = node(x)
    last = RecordingIFNode(step_mode="m").cuda()
    expected = last(part)
    assert torch.equal(spikes[:, -1:], expected)
    assert torch.equal(spikes[:, 4100:4101], expected)
    torch.testing.assert_close(node.activity.sums, last.activity.sums * 8200, rtol=1e-5, atol=0)
