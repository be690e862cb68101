"""The CPU engine against the reference: spikes and potentials bit by bit, the rest closely."""

import itertools
import math
import os
import platform
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import surrogate

from sj_prune.engines import build, choice, cpp_engine, torch_engine
from sj_prune.neurons import RecordingIFNode
from sj_prune.neurons.reference import IF, LIF, PLIF, Equations, compute_dtype
from sj_prune.neurons.statistics import STATISTICS
from sj_prune.neurons.surrogates import KNOWN, Known
from tests.support.processes import forks

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

ALL = (1 << len(STATISTICS)) - 1
NAMES = [cls.__name__ for cls in KNOWN]
ATAN = Known(NAMES.index("ATan"), 2.0)


def outputs_for(x, statistics, sequences):
    dtype = compute_dtype(x.dtype)
    channels = x.shape[2] if x.ndim > 2 else 1
    partials = x.new_empty(x.shape[1], channels, statistics.bit_count(), dtype=dtype)
    wide = [
        torch.empty_like(x, dtype=dtype) if sequences else x.new_empty(0, dtype=dtype)
        for _ in range(3)
    ]
    return torch.empty_like(x), torch.empty_like(x[0], dtype=dtype), partials, *wide


def both_forward(x, v, w, eq, known, statistics=ALL, sequences=False):
    found = []
    for engine in (cpp_engine, torch_engine):
        out = outputs_for(x, statistics, sequences)
        engine.forward(x, v, w, eq, known, statistics, out)
        found.append(out)
    return found


def both_backward(grads, x, v, w, eq, known):
    found = []
    for engine in (cpp_engine, torch_engine):
        out = (
            torch.empty_like(x),
            torch.empty_like(v),
            x.new_empty(0) if w is None else torch.empty_like(w),
        )
        engine.backward(grads, x, v, w, eq, known, out)
        found.append(out)
    return found


def assert_equal_runs(x, v, w, eq, known, sequences=False):
    (mine, theirs) = both_forward(x, v, w, eq, known, sequences=sequences)
    names = ("spikes", "v", "partials", "v_seq", "h_seq", "g_seq")
    for name, a, b in zip(names, mine, theirs, strict=True):
        if name in ("partials", "g_seq"):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6, msg=lambda m, n=name: f"{n} {m}")
        else:
            assert torch.equal(a, b), name
        assert a.stride() == b.stride(), name
    dtype = compute_dtype(x.dtype)
    grads = (torch.randn_like(x), torch.randn_like(v), torch.randn_like(x, dtype=dtype))
    for chosen in (grads, (grads[0], None, None)):
        (mine, theirs) = both_backward(chosen, x, v, w, eq, known)
        low = x.dtype in (torch.float16, torch.bfloat16)
        tolerance = {"rtol": 1e-2, "atol": 1e-2} if low else {"rtol": 2e-4, "atol": 2e-5}
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


def problem(shape, kind, dtype=torch.float32, seed=0, **settings_):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=generator) * 1.5).to(dtype)
    v = (torch.rand(shape[1:], generator=generator) * 0.5).to(compute_dtype(dtype))
    w = torch.tensor(0.3).to(compute_dtype(dtype)) if kind == PLIF else None
    defaults = {"tau": 1.7, "decay_input": True, "v_reset": 0.0, "detach_reset": False}
    eq = Equations(kind=kind, v_threshold=1.0, **{**defaults, **settings_})
    return x, v, w, eq


@pytest.mark.parametrize(
    ("kind", "decay_input", "v_reset", "detach_reset"),
    [
        (IF, False, 0.0, False),
        (IF, False, None, True),
        (LIF, True, 0.0, False),
        (LIF, False, -0.2, True),
        (LIF, True, None, False),
        (PLIF, True, None, True),
        (PLIF, False, 0.1, False),
    ],
)
def test_equals_the_reference(kind, decay_input, v_reset, detach_reset):
    x, v, w, eq = problem(
        (4, 3, 5, 7, 9), kind, decay_input=decay_input, v_reset=v_reset, detach_reset=detach_reset
    )
    assert_equal_runs(x, v, w, eq, ATAN)
    assert_equal_runs(x, v, w, eq, ATAN, sequences=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_the_reference_over_the_whole_product(dtype):
    product = itertools.product(
        (IF, LIF, PLIF), (True, False), (0.0, None, -0.2), (True, False), (1.7, 2.0)
    )
    for kind, decay_input, v_reset, detach_reset, tau in product:
        if (kind == IF and decay_input) or (kind != LIF and tau == 2.0):
            continue
        chosen = {"decay_input": decay_input, "v_reset": v_reset, "detach_reset": detach_reset}
        x, v, w, eq = problem((5, 2, 3, 4, 5), kind, dtype, tau=tau, **chosen)
        assert_equal_runs(x, v, w, eq, ATAN)


@pytest.mark.parametrize("name", NAMES)
def test_every_surrogate(name):
    x, v, w, eq = problem((4, 2, 3, 5, 5), LIF)
    assert_equal_runs(x * 3, v, w, eq, Known(NAMES.index(name), 2.0))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(
        st.integers(1, 9),
        st.integers(1, 4),
        st.integers(1, 20),
        st.integers(1, 24),
        st.integers(1, 24),
    ),
    last=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_odd_sizes(sizes, last, seed):
    x, v, w, eq = problem(sizes, LIF, seed=seed)
    if last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    assert_equal_runs(x, v, w, eq, ATAN)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 7), (2, 3, 300), (2, 2, 3, 700), (100, 1, 2, 3)])
def test_shapes_of_other_ranks(shape):
    x, v, w, eq = problem(shape, PLIF)
    assert_equal_runs(x, v, w, eq, ATAN)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_types(dtype):
    x, v, w, eq = problem((4, 3, 5, 6, 6), LIF, dtype)
    assert_equal_runs(x, v, w, eq, ATAN)


@pytest.mark.parametrize("narrower", ["-mno-avx512f", "-mno-avx", "-mno-fma"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64 compilers")
def test_registers_of_other_processors(narrower, monkeypatch):
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, narrower))
    cpp_engine._library.cache_clear()
    try:
        for shape in ((4, 2, 3, 9, 9), (4, 2, 3, 20, 20), (4, 3, 70), (4, 2, 16, 8, 8)):
            x, v, w, eq = problem(shape, LIF)
            for name in ("Sigmoid", "ATan"):
                assert_equal_runs(x, v, w, eq, Known(NAMES.index(name), 2.0))
    finally:
        cpp_engine._library.cache_clear()


def test_exponential_of_any_size():
    """Sigmoid's derivative from its peak to far below the smallest number, against double."""
    known = Known(NAMES.index("Sigmoid"), 4.0)
    x = torch.cat([torch.linspace(-60, 60, 4001), torch.tensor([-3e4, 3e4, 1.0])])
    eq = Equations(IF, 1.0, False, 1.0, None, True)
    out = outputs_for(x.view(1, 1, -1), 0, sequences=True)
    cpp_engine.forward(x.view(1, 1, -1), torch.zeros(1, x.numel()), None, eq, known, 0, out)
    e = torch.exp(-4.0 * (x - 1.0).double().abs())  # the engine's H - V_threshold is rounded
    torch.testing.assert_close(
        out[-1].flatten().double(), 4.0 * e / (1.0 + e).square(), rtol=3e-6, atol=1e-37
    )


def test_other_layouts():
    x, v, w, eq = problem((4, 6, 5, 8, 8), LIF)
    assert_equal_runs(x[:, ::2], v[::2], w, eq, ATAN)
    assert_equal_runs(x.transpose(1, 2), v.transpose(0, 1), w, eq, ATAN)
    assert_equal_runs(x[:1].expand(4, -1, -1, -1, -1), v, w, eq, ATAN)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(4, 2, 3, 4, 4), (4, 2, 3, 20, 20), (4, 2, 3, 3, 3), (4, 2, 70)])
def test_an_overflow_shows_in_every_result_as_in_the_reference(shape, bad):
    """Statistics above all: a sample that is not finite in them is not counted."""
    x, v, w, eq = problem(shape, LIF)
    x[1].view(2, -1)[0, 7] = bad
    for layout in (x, x.movedim(2, -1).contiguous().movedim(-1, 2)):
        for name in NAMES:
            known = Known(NAMES.index(name), 2.0)
            mine, theirs = both_forward(layout, v, w, eq, known, sequences=True)
            grads = (torch.ones_like(x), None, None)
            mine_too, theirs_too = both_backward(grads, layout, v, w, eq, known)
            for one, other in zip((*mine, *mine_too), (*theirs, *theirs_too), strict=True):
                torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5, equal_nan=True)


def test_sums_over_a_large_map_do_not_drift():
    """Equal numbers: rounding errors of one long sum would all have the same sign."""
    x = torch.full((1, 1, 8, 256, 512), 0.1)
    eq = Equations(IF, 1.0, False, 1.0, 0.0, False)
    for layout in (x, x.movedim(2, -1).contiguous().movedim(-1, 2)):
        out = outputs_for(layout, ALL, False)
        cpp_engine.forward(layout, torch.zeros_like(layout[0]), None, eq, ATAN, ALL, out)
        exact = torch.tensor(0.1).double()
        g = 1.0 / (1.0 + (math.pi * (exact - 1.0)).square())
        expected = torch.stack([exact * 0, exact, exact, g, g]).expand(1, 8, 5)
        torch.testing.assert_close(out[2].double(), expected, rtol=1e-5, atol=0)


def test_one_number_as_initial_potential():
    x, v, w, eq = problem((4, 3, 5, 6, 6), LIF)
    assert_equal_runs(x, torch.full((), 0.25).expand(v.shape), w, eq, ATAN)


def test_result_does_not_depend_on_the_number_of_threads():
    x, v, w, eq = problem((4, 8, 33, 17, 19), PLIF)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            out = outputs_for(x, ALL, False)
            cpp_engine.forward(x, v, w, eq, ATAN, ALL, out)
            grads = (torch.empty_like(x), torch.empty_like(v), torch.empty_like(w))
            cpp_engine.backward((torch.ones_like(x), None, None), x, v, w, eq, ATAN, grads)
            found.append((*out, *grads))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("statistics", [0, 1, 18, 30])
def test_any_choice_of_statistics(statistics):
    x, v, w, eq = problem((4, 2, 3, 20, 20), LIF)
    mine, theirs = both_forward(x, v, w, eq, ATAN, statistics)
    torch.testing.assert_close(mine[2], theirs[2], rtol=2e-5, atol=2e-6)


def _compile_in(folder, results):
    os.environ["SJ_PRUNE_CACHE"] = folder
    x, v, w, eq = problem((2, 2, 3), IF, decay_input=False)
    out = outputs_for(x, 0, False)
    cpp_engine.forward(x, v, w, eq, ATAN, 0, out)
    results.put(float(out[0].sum()))


def test_processes_that_start_at_once_share_one_cache(tmp_path):
    context = forks()
    results = context.Queue()
    workers = [context.Process(target=_compile_in, args=(str(tmp_path), results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert len({results.get(timeout=10) for _ in workers}) == 1
    assert len(list(tmp_path.iterdir())) == 1, "one library, no leftovers"


def test_compiler_without_openmp_serves_on_one_thread(tmp_path, monkeypatch, caplog):
    """As clang without its own library: what it compiles with OpenMP cannot be linked."""
    script = tmp_path / "cxx"
    refuse = 'case "$*" in *-fopenmp*|*libgomp*) exit 1;; esac'
    script.write_text(f'#!/bin/sh\n{refuse}\nexec {build.compiler()} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("SJ_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "compiler", lambda: str(script))
    cpp_engine._library.cache_clear()
    try:
        assert build.problem.__wrapped__() is None
        x, v, w, eq = problem((3, 2, 5, 6), LIF)
        assert_equal_runs(x, v, w, eq, ATAN)
    finally:
        cpp_engine._library.cache_clear()
    assert sum("no OpenMP" in r.message for r in caplog.records) == 1


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SJ_PRUNE_CACHE", str(tmp_path / "file" / "cache"))
    reason = build.problem.__wrapped__()
    assert re.search(r"cannot be kept in .*file/cache .*: set SJ_PRUNE_CACHE to a folder", reason)


def test_a_broken_library_in_the_cache_is_compiled_anew(tmp_path, monkeypatch, caplog):
    defines = {"SJ_KIND": 0, "SJ_DECAY_INPUT": 0, "SJ_HARD": 1, "SJ_DETACH": 0}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    monkeypatch.setenv("SJ_PRUNE_CACHE", str(whole))
    tile = build.load(defines).sj_tile()
    (library,) = whole.iterdir()
    broken.mkdir()
    (broken / library.name).write_bytes(library.read_bytes()[:50])
    monkeypatch.setenv("SJ_PRUNE_CACHE", str(broken))
    assert build.load(defines).sj_tile() == tile
    assert (broken / library.name).stat().st_size == library.stat().st_size
    assert sum("compiled anew" in r.message for r in caplog.records) == 1


def test_compiler_errors_are_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("SJ_PRUNE_CACHE", str(tmp_path))
    defines = {"SJ_KIND": 0, "SJ_DECAY_INPUT": 0, "SJ_HARD": 1, "SJ_DETACH": 0}
    with pytest.raises(RuntimeError, match="not_there"):
        build.load({**defines, "SJ_SURROGATE": "return not_there(u);"})


def test_choice(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "auto")
    assert choice.choose(cpu, torch.float32) is cpp_engine
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "torch")
    assert choice.choose(cpu, torch.float32) is torch_engine
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "cupy")
    with pytest.raises(RuntimeError, match="'cupy'.*cpu"):
        choice.choose(cpu, torch.float32)
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "gpu")
    with pytest.raises(ValueError, match="SJ_PRUNE_ENGINE to be one of"):
        choice.choose(cpu, torch.float32)


def test_a_surrogate_without_closed_form_is_said_once_and_refused_where_forced(monkeypatch, caplog):
    node = RecordingIFNode(step_mode="m", surrogate_function=surrogate.S2NN())
    monkeypatch.setattr(choice, "_said", set())
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "auto")
    with caplog.at_level("INFO", logger="sj_prune"):
        for _ in range(2):
            node(torch.rand(2, 3, 4))
    assert len([r for r in caplog.records if "S2NN" in r.message]) == 1
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "cpp")
    with pytest.raises(RuntimeError, match=r"'cpp'.*S2NN.*unset"):
        node(torch.rand(2, 3, 4))


def test_without_a_compiler_torch_serves_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "auto")
    monkeypatch.setattr(build, "problem", lambda: "no C++ compiler (CXX, g++, clang++) was found")
    monkeypatch.setattr(choice, "_said", set())
    with caplog.at_level("INFO", logger="sj_prune"):
        for _ in range(2):
            assert choice.choose(torch.device("cpu"), torch.float32) is torch_engine
    assert [r.message for r in caplog.records if "no C++ compiler" in r.message] == [
        "engine torch runs neurons on cpu (torch.float32): no C++ compiler (CXX, g++, clang++) was "
        "found"
    ]
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "cpp")
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
        choice.choose(torch.device("cpu"), torch.float32)
