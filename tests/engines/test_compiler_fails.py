"""A compiler that fails late or hangs: plain torch serves, with a word; a forced engine raises."""

import os
import time
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import neuron

import sj_prune
from sj_prune.engines import build, choice, command, cpp_engine, torch_engine

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")


def forget():
    for cached in (build.compiler, build.problem, build._flags, cpp_engine._library):
        cached.cache_clear()
    build._hanging.clear()


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """The machine's compiler, until ``tmp_path / "bad"`` says what it does instead."""
    bad = tmp_path / "bad"
    script = tmp_path / "cxx"
    script.write_text(
        f'#!/bin/sh\n[ ! -e "{bad}" ] || . "{bad}"\nexec "{build.compiler()}" "$@" -O0\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("SJ_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "auto")
    forget()
    yield bad
    forget()


def recording(on):
    net = sj_prune.to_recording(torch.nn.Sequential(neuron.LIFNode(step_mode="m")))
    net[0].recording = on
    return net


FAIL = 'echo "No space left on device" >&2\nexit 1\n'
X = torch.rand(4, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0)) * 2


def test_statistics_switched_on_when_the_compiler_fails_by_then(compiler, caplog):
    expected = neuron.LIFNode(step_mode="m")(X)
    assert torch.equal(recording(False)(X), expected)
    compiler.write_text(FAIL)
    net = recording(True)
    for _ in range(2):
        net[0].reset()
        assert torch.equal(net(X), expected)
    rate = net[0].activity.mean("firing_rate")
    torch.testing.assert_close(rate, expected.double().mean((0, 1, 3, 4)))
    said = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(said) == 1
    assert "forward pass of LIF nodes with Sigmoid, recording firing_rate" in said[0]
    assert "No space left on device" in said[0]


def test_a_backward_pass_that_cannot_be_compiled(compiler):
    x = X.clone().requires_grad_()
    out = recording(False)(x)
    compiler.write_text(FAIL)
    weight = torch.rand_like(out)
    (out * weight).sum().backward()
    other = X.clone().requires_grad_()
    (neuron.LIFNode(step_mode="m")(other) * weight).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=2e-5, atol=2e-6)


def test_what_failed_is_not_tried_again(compiler, tmp_path):
    recording(False)(X)
    count = tmp_path / "count"
    compiler.write_text(f'echo >> "{count}"\nexit 1\n')
    net = recording(True)
    net(X)
    tried = count.read_text()
    net(X)
    assert count.read_text() == tried


def test_a_forced_engine_raises_with_what_to_do(compiler, monkeypatch):
    recording(False)(X)
    compiler.write_text(FAIL)
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "cpp")
    with pytest.raises(RuntimeError, match="'cpp'.*LIF nodes.*No space left.*unset it or set it"):
        recording(True)(X)


def test_a_full_cache_folder_leaves_torch(compiler, monkeypatch):
    expected = recording(False)(X)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.cache.tempfile, "mkdtemp", full)
    assert torch.equal(recording(True)(X), expected)


HANG = 'sleep 1000 & echo $! > "{folder}/child"; echo $$ > "{folder}/own"; wait\n'


def alive(pid):
    """Tell whether a process runs; one that ended but was not waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_a_compiler_that_hangs_is_given_up_with_all_that_it_started(
    compiler, tmp_path, monkeypatch
):
    compiler.write_text(HANG.format(folder=tmp_path))
    monkeypatch.setenv("SJ_PRUNE_COMPILE_TIMEOUT", "0.5")
    net = recording(True)
    assert torch.equal(net(X), neuron.LIFNode(step_mode="m")(X))
    assert choice.choose(torch.device("cpu"), torch.float32) is torch_engine
    assert "hangs: set CXX to another compiler, or SJ_PRUNE_COMPILE_TIMEOUT" in build.problem()
    for name in ("child", "own"):
        pid = int((tmp_path / name).read_text())
        for _ in range(100):
            if not alive(pid):
                break
            time.sleep(0.05)
        assert not alive(pid)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_hangs_late_is_waited_for_once(compiler, tmp_path, monkeypatch):
    x = X.clone().requires_grad_()
    recording(False)(X)
    compiler.write_text(f'echo >> "{tmp_path}/count"\n' + HANG.format(folder=tmp_path))
    monkeypatch.setenv("SJ_PRUNE_COMPILE_TIMEOUT", "0.5")
    recording(True)(x).sum().backward()
    assert (tmp_path / "count").read_text() == "\n"


@pytest.mark.parametrize("value", ["never", "0", "-1", "nan", "inf"])
def test_the_bound_is_a_positive_number(value, monkeypatch):
    monkeypatch.setenv("SJ_PRUNE_COMPILE_TIMEOUT", value)
    with pytest.raises(ValueError, match="SJ_PRUNE_COMPILE_TIMEOUT to be a positive number"):
        command.bound()
    monkeypatch.setenv("SJ_PRUNE_COMPILE_TIMEOUT", "")
    assert command.bound() <= 60


def test_an_interrupted_wait_ends_the_compiler(tmp_path, monkeypatch):
    """As Ctrl-C does; the compiler has a session of its own and would go on."""
    script = tmp_path / "slow"
    script.write_text("#!/bin/sh\n" + HANG.format(folder=tmp_path))
    script.chmod(0o755)

    def interrupt(self, *args, **kwargs):
        while not (tmp_path / "own").exists():
            os.sched_yield()
        raise KeyboardInterrupt

    monkeypatch.setattr(command.subprocess.Popen, "communicate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        command.run([str(script)])
    assert not alive(int((tmp_path / "own").read_text()))
