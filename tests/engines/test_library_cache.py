"""The CPU engine's libraries on the disk: where they lie, and what is loaded, refused or compiled.

A refused library must not only be replaced: none of its code may run. The planted ones write a file
when they are loaded.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from sj_prune.engines import build, cache, cpp_engine, torch_engine
from sj_prune.neurons.reference import LIF, Equations
from sj_prune.neurons.surrogates import Known

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

EQUATIONS = Equations(LIF, 2.0, True, 1.0, 0.0, False)
SIGMOID = Known(0, 4.0)
DEFINES = {"SJ_KIND": 0, "SJ_DECAY_INPUT": 0, "SJ_DETACH": 0}


def forget():
    """Make the engine look anew for compiler and libraries."""
    for cached in (build.compiler, build.problem, build._flags, cpp_engine._library):
        cached.cache_clear()
    build._hanging.clear()


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """An empty cache, and the machine's compiler without optimization, which counts its calls."""
    calls = tmp_path / "calls"
    script = tmp_path / "cxx"
    script.write_text(f'#!/bin/sh\necho >> "{calls}"\nexec "{build.compiler()}" "$@" -O0\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("SJ_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "auto")
    forget()

    class Tools:
        cache = tmp_path / "cache"

        def calls(self):
            return len(calls.read_text().splitlines()) if calls.exists() else 0

        def library(self):
            (found,) = self.cache.rglob("*.so")
            return found

    yield Tools()
    forget()


def fire(eq=EQUATIONS, known=SIGMOID, engine=cpp_engine, statistics=0):
    """Return spikes and potentials of one forward call."""
    x = torch.linspace(-1, 3, 24).view(3, 2, 4)
    spikes, v = torch.empty_like(x), torch.empty_like(x[0])
    partials = x.new_empty(2, 4, statistics.bit_count())
    none = x.new_empty(0)
    engine.forward(
        x, torch.zeros(2, 4), None, eq, known, statistics, (spikes, v, partials, none, none, none)
    )
    return spikes, v


def assert_fires(**settings):
    for mine, theirs in zip(fire(**settings), fire(engine=torch_engine, **settings), strict=True):
        assert torch.equal(mine, theirs)


# ---- where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "relative/folder", "."])
def test_an_empty_or_relative_xdg_folder_counts_as_unset(value, tmp_path, monkeypatch):
    monkeypatch.delenv("SJ_PRUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "sj_prune"


def test_the_folder_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SJ_PRUNE_CACHE", raising=False)
    assert cache.cache_folder() == tmp_path / "xdg" / "sj_prune"
    monkeypatch.setenv("SJ_PRUNE_CACHE", "~/own")
    assert cache.cache_folder() == tmp_path / "own"


def test_a_home_that_is_no_place_is_named(monkeypatch):
    for name in ("SJ_PRUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", ".")
    with pytest.raises(RuntimeError, match="an absolute HOME but got '.': set SJ_PRUNE_CACHE"):
        cache.cache_folder()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_where_others_can_write_libraries_lie_in_a_folder_of_ones_own(mode, tools):
    tools.cache.mkdir()
    tools.cache.chmod(mode)
    umask = os.umask(0)
    try:
        assert_fires()
    finally:
        os.umask(umask)
    library = tools.library()
    assert library.parent == tools.cache / f"user-{os.getuid()}"
    for path in (library, library.parent):
        assert path.stat().st_mode & 0o022 == 0
    assert tools.cache.stat().st_mode & 0o7777 == mode


# ---- what is loaded ------------------------------------------------------------------------------


def planted(folder, marker, symbol="another"):
    """Return a library that writes `marker` when it is loaded."""
    source = folder / "planted.c"
    source.write_text(
        "#include <stdio.h>\n"
        f"void {symbol}(void) {{}}\n"
        "__attribute__((constructor)) static void run(void) "
        f'{{ FILE* f = fopen("{marker}", "w"); if (f) fclose(f); }}\n'
    )
    built = folder / "planted.so"
    subprocess.run(
        [shutil.which("g++") or "c++", "-shared", "-fPIC", "-xc", source, "-o", built], check=True
    )
    return built.read_bytes()


def named(library, content):
    """Return a name for `content` in the place of `library`, with the digest that it has."""
    return library.with_name(f"{library.stem.rpartition('-')[0]}-{cache._digest(content)}.so")


def served_anew(tools, before, caplog):
    """Check that the next start compiles once more, and says so."""
    forget()
    calls = tools.calls()
    assert_fires()
    assert tools.calls() > calls
    assert tools.library().read_bytes() == before
    assert sum("compiled anew" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("size", [0, 100, 1 / 3, 0.99])
def test_a_truncated_library_is_compiled_anew(size, tools, caplog):
    """Mapping the rest would end the process with SIGBUS, as would what it has mapped by then."""
    assert_fires()
    library = tools.library()
    whole = library.read_bytes()
    library.write_bytes(whole[: size if isinstance(size, int) else int(len(whole) * size)])
    served_anew(tools, whole, caplog)


def test_a_foreign_library_under_the_name_is_not_run(tools, tmp_path, caplog):
    assert_fires()
    library, marker = tools.library(), tmp_path / "ran"
    whole = library.read_bytes()
    library.write_bytes(planted(tmp_path, marker))
    served_anew(tools, whole, caplog)
    assert not marker.exists()


def test_a_library_that_lacks_the_function_is_compiled_anew(tools, tmp_path, caplog):
    """One of this user's, of the right name: it may be loaded, but cannot serve."""
    assert_fires()
    library = tools.library()
    whole, content = library.read_bytes(), planted(tmp_path, tmp_path / "ran")
    library.unlink()
    named(library, content).write_bytes(content)
    served_anew(tools, whole, caplog)


@pytest.mark.parametrize("mode", [0o666, 0o775, 0o757])
def test_what_others_can_write_is_not_run(mode, tools, tmp_path, caplog):
    assert_fires()
    library, marker = tools.library(), tmp_path / "ran"
    whole, content = library.read_bytes(), planted(tmp_path, marker, "sj_forward")
    library.unlink()
    bad = named(library, content)
    bad.write_bytes(content)
    bad.chmod(mode)
    served_anew(tools, whole, caplog)
    assert not marker.exists()


def owned_by(uid, genuine):
    """Return `genuine`, a call for the status of a file, with another owner of files."""

    def status(*args, **kwargs):
        info = genuine(*args, **kwargs)
        return os.stat_result([*info[:4], uid, *info[5:10]])

    return status


def test_what_belongs_to_another_user_is_not_run(tools, tmp_path, monkeypatch, caplog):
    assert_fires()
    library, marker = tools.library(), tmp_path / "ran"
    content = planted(tmp_path, marker, "sj_forward")
    library.unlink()
    named(library, content).write_bytes(content)
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "fstat", owned_by(12345, os.fstat))
        assert_fires()  # what it compiles looks foreign too: torch serves
    assert not marker.exists()
    assert "it belongs to user 12345" in caplog.text


def test_a_link_is_not_followed(tools, tmp_path, caplog):
    assert_fires()
    library = tools.library()
    whole, aside = library.read_bytes(), tmp_path / "aside.so"
    library.rename(aside)
    library.symlink_to(aside)
    served_anew(tools, whole, caplog)


def test_a_folder_of_another_user_is_refused_with_what_to_do(tools, monkeypatch):
    tools.cache.mkdir()
    monkeypatch.setattr(cache.os, "getuid", lambda: 12345)
    monkeypatch.setattr(cache.Path, "stat", owned_by(777, Path.stat))
    reason = build.problem()
    assert "it belongs to user 777" in reason
    assert "set SJ_PRUNE_CACHE to a folder" in reason
    assert not list(tools.cache.iterdir())


# ---- how often something is compiled -------------------------------------------------------------


def test_other_numbers_need_no_other_library(tools):
    """Two libraries serve a network, whatever its tau, threshold and reset."""
    cases = [
        Equations(LIF, tau, True, threshold, reset, False)
        for tau in (2.0, 1.7, 3.0)
        for threshold in (1.0, 0.6)
        for reset in (0.0, -0.3, None)
    ]
    x, v = torch.linspace(-1, 3, 24).view(3, 2, 4), torch.zeros(2, 4)
    for eq in cases:
        assert_fires(eq=eq)
        found = []
        for engine in (cpp_engine, torch_engine):
            out = (torch.empty_like(x), torch.empty_like(v), x.new_empty(0))
            engine.backward((x, None, None), x, v, None, eq, SIGMOID, out)
            found.append(out)
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-6)
    assert len(list(tools.cache.rglob("*.so"))) == 2


def test_settings_that_a_forward_pass_ignores_need_no_other_library(tools):
    assert_fires()
    calls = tools.calls()
    assert_fires(known=Known(1, 2.0))
    assert_fires(eq=Equations(LIF, 2.0, True, 1.0, 0.0, True))
    assert tools.calls() == calls


def test_a_second_start_runs_no_compiler(tools):
    assert_fires()
    calls = tools.calls()
    forget()
    assert build.problem() is None
    assert_fires()
    assert tools.calls() == calls


def test_a_soft_reset_by_an_infinite_threshold_is_the_references(tools):
    eq = Equations(LIF, 2.0, True, float("inf"), None, False)
    for mine, theirs in zip(fire(eq=eq), fire(eq=eq, engine=torch_engine), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


def test_a_cached_library_serves_without_a_compiler(tools, monkeypatch):
    assert_fires()
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tools.cache))
    forget()
    assert build.compiler() is None
    assert build.problem() is None
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "cpp")
    assert_fires()
    with pytest.raises(build.BuildError, match="no C.. compiler"):
        build.load(DEFINES)


def test_a_cached_library_serves_where_the_compiler_fails(tools, tmp_path, monkeypatch):
    assert_fires()
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "cpp")
    forget()
    assert_fires()


def test_compiling_is_said(tools, caplog):
    with caplog.at_level("INFO", logger="sj_prune"):
        assert_fires()
        assert_fires()
    said = [r.message for r in caplog.records if "compiling once" in r.message]
    assert len(said) == 1
    # Without statistics of g' this library serves every surrogate.
    assert said[0].startswith("CPU engine, forward pass of LIF nodes: compiling once")


# ---- folders of compilers ------------------------------------------------------------------------


def test_what_a_killed_compile_left_is_removed_and_a_running_one_stays(tools):
    (said, says), (hears, told) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            with cache.workspace() as folder:
                (folder / "made.o").write_text("half")
                os.write(says, str(folder).encode())
                os.read(hears, 1)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    folder = Path(os.read(said, 4096).decode())
    with cache.workspace():
        assert folder.is_dir(), "its process is at work"
    os.write(told, b"!")
    os.waitpid(child, 0)
    for end in (said, says, hears, told):
        os.close(end)
    assert folder.is_dir()
    with cache.workspace() as other:
        assert not folder.exists()
    assert not other.exists()


def test_a_compile_that_fails_leaves_nothing(tools):
    with pytest.raises(build.BuildError, match="not_there"):
        build.load({**DEFINES, "SJ_SURROGATE": "return not_there(u);", "SJ_BACKWARD": 1})
    assert list(tools.cache.iterdir()) == []
