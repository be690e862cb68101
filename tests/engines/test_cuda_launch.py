"""Launch geometry, variants and the CuPy side of the CUDA engine, without a device."""

import builtins
import contextlib
import ctypes
import math
import re
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_prune.engines import choice, cupy_device, cupy_engine, geometry, launch, torch_engine
from sj_prune.engines.cupy_device import Launch, Source
from sj_prune.engines.geometry import FORWARD_THREADS
from sj_prune.neurons.reference import IF, LIF, PLIF, Equations
from sj_prune.neurons.surrogates import Known, form_of
from tests.support.cuda_shim import host  # noqa: F401 (a fixture)
from tests.support.engine_cases import Call, Case, assert_backward, assert_forward

EQUATIONS = Equations(LIF, 2.0, True, 1.0, 0.0, False)
ATAN = Known(1, 2.0)
SIZES = st.integers(1, 3000)


@given(rows=SIZES, vectors=SIZES, processors=st.integers(1, 200))
def test_rows_grid_covers_everything(rows, vectors, processors):
    grid = geometry.rows_grid(rows, vectors, processors)
    assert grid.lanes.bit_count() == 1
    assert grid.lanes <= FORWARD_THREADS
    assert grid.blocks[0] * FORWARD_THREADS // grid.lanes >= rows
    # No split of a map without work.
    assert (grid.splits - 1) * grid.lanes < vectors
    assert grid.splits <= 65535


@given(samples=SIZES, vectors=SIZES, elements=SIZES, processors=st.integers(1, 200))
def test_columns_grid_covers_everything(samples, vectors, elements, processors):
    grid = geometry.columns_grid(samples, vectors, elements, processors)
    together = FORWARD_THREADS // (grid.columns * grid.lanes)
    assert together >= 1
    tiles = -(-vectors // grid.columns)
    assert grid.blocks[0] == tiles * -(-samples // together)
    assert (grid.splits - 1) * grid.lanes < elements


@given(
    rows=SIZES, elements=SIZES, vec=st.sampled_from([1, 2, 4, 8]), processors=st.integers(1, 200)
)
def test_groups_grid_covers_everything(rows, elements, vec, processors):
    """Whole rows, which end where the elements of a thread do, and a thread for each row's sums."""
    grid = geometry.groups_grid(rows, elements, vec, processors)
    if grid is None:
        assert elements * (vec // math.gcd(vec, elements)) > 4 * FORWARD_THREADS * vec
        return
    assert (grid.blocks[0] - 1) * grid.group < rows <= grid.blocks[0] * grid.group
    assert grid.blocks[0] == 1 or grid.group * elements % vec == 0
    assert grid.threads % 32 == 0
    assert grid.lanes.bit_count() == 1
    assert grid.lanes <= 32
    assert grid.group * grid.lanes <= grid.threads <= FORWARD_THREADS


@pytest.mark.parametrize("size", [2, 4, 7, 8, 12, 14, 16, 24, 28, 32, 55, 56, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_few_threads_idle_and_accesses_are_wide(size, dtype):
    """On an H100, for layers of usual networks."""
    x = torch.empty(4, 64, 65536 // size**2 // 8 * 8 + 8, size, size, dtype=dtype, device="meta")
    plan = geometry.forward_plan(x, False, 31, [], 132)
    assert plan.vec == min(16 // x.element_size(), size**2)
    assert plan.grid.idle < 0.05
    by_channel = geometry.forward_plan(x, True, 31, [], 132)
    assert by_channel.grid.idle < 0.13


@given(vectors=st.integers(1, 10**12))
def test_flat_grid_stays_within_the_limits_of_a_grid(vectors):
    blocks, splits = geometry.flat_grid(vectors).blocks
    assert blocks == 1
    assert splits <= 65535


@pytest.mark.parametrize("itemsize", [2, 4])
@given(steps=st.integers(1, 1000))
def test_registers_hold_a_chunk(itemsize, steps):
    """All steps up to 64 are one: x is read once. No group of loads is in vain."""
    chunk, vec = geometry.chunk_and_width(steps, itemsize)
    assert chunk % (4 if chunk <= 32 else 8) == 0
    assert min(steps, 64) <= chunk <= min(steps, 64) + (3 if chunk <= 32 else 7)
    assert vec.bit_count() == 1
    assert vec * itemsize <= 16
    assert vec * chunk <= 64


@pytest.mark.parametrize(
    ("most", "sizes", "offsets", "expected"),
    [
        (4, (64,), (0, 0), 4),
        (8, (196,), (0,), 4),
        (8, (49,), (0,), 1),
        (4, (64,), (0, 2), 2),
        (4, (64,), (1,), 1),
        (8, (64,), (4,), 8),  # 16 bytes off: as good as aligned
    ],
)
def test_width_divides_sizes_and_alignments(most, sizes, offsets, expected):
    buffer = torch.empty(64)
    assert buffer.data_ptr() % 64 == 0
    tensors = [buffer[offset:] for offset in offsets]
    assert geometry.width(most, sizes, [*tensors, None, torch.empty(0)]) == expected


@pytest.mark.parametrize(
    ("tau", "expected"),
    [(2.0, True), (4.0, True), (1.0, True), (2.0 + 1e-12, True), (4 / 3, False), (3.0, False)],
)
def test_exact_inverse_of_powers_of_two(tau, expected):
    """In single precision, which rounds tau."""
    assert launch.has_exact_inverse(tau) is expected
    equations = replace(EQUATIONS, tau=tau)
    variant = launch.backward_variant(equations, ATAN, torch.float32, 4, 4, 1)
    assert variant.inverse == int(expected)
    assert launch.neuron(equations, ATAN)["decay"] == pytest.approx(1 / tau if expected else tau)


def test_what_a_forward_pass_ignores_compiles_nothing_new():
    plain = launch.forward_variant(EQUATIONS, ATAN, torch.float32, 4, 1, 0)
    other = replace(EQUATIONS, detach_reset=True)
    assert launch.forward_variant(other, Known(3, 1.0), torch.float32, 4, 1, 0) == plain
    recorded = launch.forward_variant(EQUATIONS, ATAN, torch.float32, 4, 8, 0)
    traced = launch.forward_variant(EQUATIONS, ATAN, torch.float32, 4, 1, 2)
    assert recorded.surrogate == traced.surrogate == form_of(ATAN).code


def test_source_stands_alone():
    """Every file is in the source: CuPy's cache sees a change of any."""
    source = cupy_device.code("lif.cu")
    assert '#include "' not in source
    assert "SJ_FN A charge(" in source


# ---- availability --------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """Pretend a torch for CUDA 13 with a device, and a CuPy of a chosen release."""

    def pretend(cupy_runtime=13000, torch_cuda="13.0", device=True):
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
        runtime = SimpleNamespace(runtimeGetVersion=lambda: cupy_runtime)
        cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)) if cupy_runtime else None
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        cupy_engine.available.cache_clear()
        return cupy_engine.available()

    yield pretend
    cupy_engine.available.cache_clear()


def test_available(machine):
    assert machine() is None


@pytest.mark.parametrize(
    ("pretended", "words"),
    [
        ({"torch_cuda": "11.8"}, "CUDA 11: no extra .* fits"),
        ({"cupy_runtime": None}, "CuPy cannot be imported .* pip install sj_prune.cuda13."),
        ({"cupy_runtime": 12090}, "built for CUDA 12 but torch for CUDA 13: .*cuda13"),
        ({"torch_cuda": "12.6"}, "built for CUDA 13 but torch for CUDA 12: .*cuda12"),
        ({"torch_cuda": None}, "no CUDA device"),
        ({"device": False}, "no CUDA device"),
    ],
)
def test_unavailable_says_what_to_do(machine, pretended, words):
    assert re.search(words, machine(**pretended))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn], ids=str)
def test_other_types_go_to_torch_unless_forced(machine, monkeypatch, dtype):
    machine()
    cuda = torch.device("cuda")
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "auto")
    assert choice.choose(cuda, torch.float16) is cupy_engine
    assert choice.choose(cuda, dtype) is torch_engine
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "cupy")
    with pytest.raises(RuntimeError, match="'cupy'.*float.*float32, float16 and bfloat16 alone"):
        choice.choose(cuda, dtype)


def test_a_cupy_that_cannot_write_its_cache_is_no_crash(machine, monkeypatch):
    """CuPy makes the folder of its cache when it is imported."""
    original = builtins.__import__

    def importing(name, *args, **kwargs):
        if name == "cupy":
            raise PermissionError(13, "Permission denied", "/.cupy")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    reason = machine()
    assert re.search(r"Permission denied: '/.cupy'.*: set CUPY_CACHE_DIR to a folder", reason)


# ---- CuPy ----------------------------------------------------------------------------------------


@dataclass
class Device:
    """What torch and CuPy are asked, for a device that is not there."""

    number: int = 3
    current: int = 3
    capturing: bool = False
    log: list = field(default_factory=list)


@pytest.fixture
def pretended(monkeypatch):
    """Pretend the device `cuda:3` with stream 77, and a CuPy that notes what is asked of it."""
    device = Device()

    class RawModule:
        def __init__(self, code, options):
            device.log.append(("compile", options))

        def get_function(self, name):
            return lambda *args, stream: device.log.append((name, *args, stream.ptr))

    @contextlib.contextmanager
    def entered(index):
        before, device.current = device.current, index
        yield
        device.current = before

    fake = ModuleType("cupy")
    fake.RawModule = RawModule
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: device.current)
    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: device.capturing)
    caches = (cupy_device._module, cupy_device.kernel)
    for cached in caches:
        cached.cache_clear()
    yield device
    for cached in caches:
        cached.cache_clear()


VARIANT = launch.forward_variant(EQUATIONS, ATAN, torch.float32, 4, 31, 0)
SOURCE = Source("lif.cu", VARIANT.options())
MERGE = Launch("sj_merge", (9, 2), 256, launch.MergeArguments(scratch=5, count=7, splits=2))


@pytest.mark.parametrize("current", [3, 0])
def test_kernels_run_on_the_device_and_stream_of_torch(pretended, current):
    pretended.current = current
    during = []
    pretended.log = SimpleNamespace(append=lambda entry: during.append((pretended.current, entry)))
    cupy_device.run(torch.device("cuda:3"), SOURCE, MERGE, MERGE)
    assert pretended.current == current
    assert {index for index, _ in during} == {3}
    compiled, first, second = [entry for _, entry in during]
    assert compiled[1][:2] == ("-std=c++17", "--fmad=false")
    assert {"-DSJ_NAMES=5", "-DSJ_SUMS=4", "-DSJ_OF=0x33210", "-DSJ_MAXIMA=16"} < set(compiled[1])
    assert first[:3] == second[:3] == ("sj_merge", (9, 2), (256,))
    assert first[4] == second[4] == 77
    (block,) = first[3]
    assert isinstance(block, np.ndarray)
    assert (block.size, block.itemsize) == (1, ctypes.sizeof(MERGE.arguments))
    assert block.tobytes() == bytes(MERGE.arguments)


def test_a_capture_compiles_nothing(pretended):
    device = torch.device("cuda:3")
    pretended.capturing = True
    with pytest.raises(RuntimeError, match=r"sj_merge .* captured .*run the same step once before"):
        cupy_device.run(device, SOURCE, MERGE)
    assert pretended.log == []
    pretended.capturing = False
    cupy_device.run(device, SOURCE, MERGE)
    pretended.capturing = True
    cupy_device.run(device, SOURCE, MERGE)  # warmed up
    assert [entry[0] for entry in pretended.log] == ["compile", "sj_merge", "sj_merge"]


# ---- what calls share ----------------------------------------------------------------------------


@pytest.fixture
def planned(host, monkeypatch):  # noqa: F811
    """Run on the host; return the list of plans that are made."""
    made = []
    for name in ("forward_plan", "backward_plan"):
        plan = getattr(geometry, name)
        monkeypatch.setattr(
            geometry, name, lambda *args, plan=plan, name=name: made.append(name) or plan(*args)
        )
    return made


def assert_call(case):
    call = Call(case)
    assert_forward(call)
    assert_backward(call)


def test_calls_alike_are_planned_once(planned):
    case = Case(shape=(4, 3, 8, 4, 4), kind=PLIF)
    for seed in range(3):
        assert_call(replace(case, seed=seed))  # other tensors, the same plan
    assert planned == ["forward_plan", "backward_plan"]


#: differ in what a plan depends on, in pairs that share all else
UNLIKE = [
    Case(),
    Case(shape=(4, 2, 3, 4, 5)),
    Case(shape=(5, 2, 3, 4, 4)),
    Case(dtype=torch.float16),
    Case(layout="channels_last"),
    Case(kind=IF),
    Case(tau=2.0),
    Case(decay_input=False),
    Case(v_reset=None),
    Case(detach=True),
    Case(surrogate=Known(1, 2.0)),
    Case(surrogate=Known(1, 3.0)),
    Case(statistics=3),
    Case(store=1, grads=7),
    Case(store=2),
    Case(grads=1),
    Case(one_v=True),
    Case(wants_v=False),
    Case(offset=1),
    Case(offset=2),
]


def test_calls_that_differ_never_share_a_plan(planned):
    """Each is right after all others, both ways around."""
    for case in UNLIKE + UNLIKE[::-1]:
        assert_call(case)


def test_plans_do_not_grow_without_end(planned, monkeypatch):
    monkeypatch.setattr(cupy_engine, "_MOST", 4)
    for size in range(1, 8):
        assert_call(Case(shape=(4, 2, 3, size)))
        assert len(cupy_engine._plans) <= 4
