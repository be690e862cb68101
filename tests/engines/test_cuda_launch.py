"""Launch geometry, variants and the CuPy side of the CUDA engine, without a device."""

import builtins
import contextlib
import ctypes
import re
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sj_prune.engines import choice, cupy_engine, geometry, launch, torch_engine
from sj_prune.engines.geometry import FORWARD_THREADS
from sj_prune.engines.launch import Launch
from sj_prune.neurons.reference import IF, LIF, PLIF, Equations
from sj_prune.neurons.surrogates import Known, form_of

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


@given(vectors=st.integers(1, 10**12))
def test_flat_grid_stays_within_the_limits_of_a_grid(vectors):
    blocks, splits = geometry.flat_grid(vectors).blocks
    assert blocks == 1
    assert splits <= 65535


@pytest.mark.parametrize("kind", [IF, LIF, PLIF])
@pytest.mark.parametrize("itemsize", [2, 4])
@given(steps=st.integers(1, 1000))
def test_registers_hold_a_chunk(kind, itemsize, steps):
    chunk, vec = geometry.chunk_and_width(kind, steps, itemsize)
    assert chunk in (4, 8, 16)
    assert vec * itemsize <= 16
    assert vec * chunk <= (32 if kind == PLIF else 64)


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
    assert '#include "' not in cupy_engine.source()
    assert "SJ_FN A charge(" in cupy_engine.source()


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


class FakeCupy(ModuleType):
    """Records what the engine asks of CuPy."""

    def __init__(self, from_external):
        super().__init__("cupy")
        self.log = []
        fake, recent = self, from_external

        class Entered:
            def __init__(self, *args):
                self.args = args

            def __enter__(self):
                fake.log.append((type(self).__name__, *self.args))

            def __exit__(self, *_):
                fake.log.append(f"left {type(self).__name__}")

        class Device(Entered):
            pass

        class Stream(Entered):
            if recent:

                @classmethod
                def from_external(cls, stream):
                    return cls(*stream.__cuda_stream__())

        class ExternalStream(Entered):
            pass

        class RawModule:
            def __init__(self, code, options):
                fake.log.append(("compile", options))

            def get_function(self, name):
                return lambda *args: fake.log.append((name, *args))

        self.RawModule = RawModule
        self.cuda = SimpleNamespace(Device=Device, Stream=Stream, ExternalStream=ExternalStream)


@pytest.mark.parametrize("from_external", [True, False], ids=["CuPy 14", "CuPy 13"])
def test_kernels_run_on_the_device_and_stream_of_torch(monkeypatch, from_external):
    fake = FakeCupy(from_external)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    stream = SimpleNamespace(device_index=3, cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    for cached in (cupy_engine._module, cupy_engine._kernel):
        cached.cache_clear()
    variant = launch.forward_variant(EQUATIONS, ATAN, torch.float32, 4, 31, 0)
    arguments = launch.MergeArguments(scratch=5, count=7, splits=2)
    one = Launch("sj_merge", (9, 2), 256, arguments)
    cupy_engine._run(torch.device("cuda:3"), variant, one, one)
    cupy_engine._module.cache_clear()
    cupy_engine._kernel.cache_clear()

    device, theirs, compiled, first, second, *left = fake.log
    assert device == ("Device", 3)
    assert theirs == (("Stream", 0, 77) if from_external else ("ExternalStream", 77, 3))
    assert compiled[1][:2] == ("-std=c++17", "--fmad=false")
    assert {"-DSJ_NAMES=5", "-DSJ_SUMS=4", "-DSJ_OF=0x33210", "-DSJ_MAXIMA=16"} < set(compiled[1])
    assert first[:3] == second[:3] == ("sj_merge", (9, 2), (256,))
    (block,) = first[3]
    assert isinstance(block, np.ndarray)
    assert (block.size, block.itemsize) == (1, ctypes.sizeof(arguments))
    assert block.tobytes() == bytes(arguments)
    assert [entry.split()[0] for entry in left] == ["left", "left"]
