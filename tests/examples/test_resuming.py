"""A run that is killed, interrupted or broken goes on as if nothing had happened."""

import random
import signal
import time

import pytest
import torch
from common import checkpoint, loop

from tests.support.example_cases import RICH, STEPS, TINY, assert_same_run, load
from tests.support.example_ranks import run_script
from tests.support.processes import forks


@pytest.fixture(scope="module")
def undisturbed(cifar, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("undisturbed")
    cifar.main([*RICH, "--out", str(out)])
    return out


def start(arguments, output):
    process = forks().Process(target=run_script, args=(arguments, output))
    process.start()
    return process


def stamp(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_somewhere(process, path, rng, saves):
    """Kill at a random moment after so many further checkpoints; return whether it was running."""
    deadline = time.monotonic() + 120
    for _ in range(saves):
        before = stamp(path)
        while stamp(path) == before and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.001)
    time.sleep(rng.random() * 0.06)
    running = process.is_alive()
    process.kill()
    process.join()
    return running


def run_with_kills(arguments, out, kills, seed, most):
    rng, killed, output = random.Random(seed), 0, out.with_suffix(".txt")
    for _ in range(kills):
        process = start(arguments, output)
        killed += kill_somewhere(process, out / "last.pt", rng, rng.randint(1, most))
        load(out / "last.pt")  # whole, whenever it was killed
    process = start(arguments, output)
    process.join(300)
    printed = output.read_text()
    assert process.exitcode == 0, printed
    assert "Resumed from" in printed
    return killed


def test_two_kills(undisturbed, tmp_path):
    killed = run_with_kills([*RICH, "--out", str(tmp_path)], tmp_path, 2, seed=1, most=3)
    assert killed == 2
    assert_same_run(undisturbed, tmp_path)


@pytest.mark.slow
def test_ten_kills(cifar, tmp_path):
    longer = [*RICH, "--epochs", "24"]  # 72 steps
    cifar.main([*longer, "--out", str(tmp_path / "undisturbed")])
    killed = run_with_kills(
        [*longer, "--out", str(tmp_path / "killed")], tmp_path / "killed", 10, seed=2, most=6
    )
    assert killed == 10
    assert_same_run(tmp_path / "undisturbed", tmp_path / "killed")


def at_step(monkeypatch, number, action, before=False):
    """Call `action(trainer)` once, after (or before) optimizer step `number`."""
    original, done = loop.Trainer._train_step, []

    def step(trainer, x, y):
        if before and trainer.step + 1 == number and not done:
            done.append(action(trainer))
        original(trainer, x, y)
        if not before and trainer.step == number and not done:
            done.append(action(trainer))

    monkeypatch.setattr(loop.Trainer, "_train_step", step)


KINDS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        pytest.param(number, kind, marks=pytest.mark.slow if (i + j) % 2 else [])
        for i, number in enumerate([1, 3, 5, STEPS])
        for j, kind in enumerate(KINDS)
    ],
)
def test_interrupted(cifar, undisturbed, tmp_path, monkeypatch, capsys, number, kind):
    arguments = [*RICH[: RICH.index("--checkpoint-every")], "--out", str(tmp_path)]
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, number, lambda _: signal.raise_signal(kind))
        with pytest.raises(SystemExit) as stopped:
            cifar.main(arguments)
    assert stopped.value.code == 130
    assert f"{kind.name}: stopped after step {number} of {STEPS}" in capsys.readouterr().out
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    cifar.main(arguments)
    assert f"Resumed from {tmp_path / 'last.pt'}: step {number}" in capsys.readouterr().out
    assert_same_run(undisturbed, tmp_path)


def test_second_interrupt_is_immediate(cifar, tmp_path, monkeypatch):
    def twice(_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 2, twice)
    with pytest.raises(KeyboardInterrupt):
        cifar.main([*TINY, "--out", str(tmp_path)])


def test_finished_run_is_not_trained_again(cifar, undisturbed, tmp_path, monkeypatch):
    at_step(monkeypatch, 0, lambda _: pytest.fail("trained"), before=True)
    result = cifar.main([*RICH, "--out", str(undisturbed)])
    assert result["steps"] == STEPS


def test_never_and_elsewhere(cifar, undisturbed, tmp_path, capsys):
    cifar.main([*RICH, "--resume", str(undisturbed / "last.pt"), "--out", str(tmp_path)])
    assert "Resumed from" in capsys.readouterr().out
    cifar.main([*RICH, "--resume", "never", "--out", str(tmp_path)])
    assert "Resumed" not in capsys.readouterr().out
    assert_same_run(undisturbed, tmp_path)


@pytest.mark.parametrize(("number", "every"), [(2, "0"), (2, "1"), (5, "1")])
def test_layer_that_breaks_is_named(cifar, tmp_path, monkeypatch, number, every):
    def break_norm(trainer):
        with torch.no_grad():
            trainer.net.features.norm3.weight.fill_(3e38)  # finite; its product is not

    at_step(monkeypatch, number, break_norm, before=True)
    with pytest.raises(SystemExit) as stopped:
        cifar.main([*TINY, "--checkpoint-every", every, "--out", str(tmp_path)])
    message = str(stopped.value)
    assert f"Step {number} (epoch {(number + 2) // 3})" in message
    assert "first output that is not finite is that of 'features.norm3' (BatchNorm2d)" in message
    if every == "0":
        assert "nothing is saved yet" in message
    else:
        assert f"last good checkpoint is {tmp_path / 'last.pt'}" in message
        state = load(tmp_path / "last.pt")
        assert state["progress"]["step"] == number - 1
        assert all(v.isfinite().all() for k, v in state["model"].items() if k.startswith("net."))


def test_parameter_that_breaks_is_named(cifar, tmp_path, monkeypatch):
    def break_weight(trainer):
        with torch.no_grad():
            weight = trainer.net.features.conv2.weight.view(-1)
            weight[weight.nonzero()[0]] = float("nan")  # a kept one: a pruned one is 0 again soon

    at_step(monkeypatch, 4, break_weight)
    with pytest.raises(SystemExit, match=r"Step 4 .*'features.conv2.weight' is not finite"):
        cifar.main([*TINY, "--checkpoint-every", "1", "--out", str(tmp_path / "a")])
    assert load(tmp_path / "a" / "last.pt")["progress"]["step"] == 3
    with monkeypatch.context() as patch:
        at_step(patch, 4, break_weight)
        with pytest.raises(SystemExit, match="'features.conv2.weight' is not finite") as stopped:
            cifar.main([*TINY, "--out", str(tmp_path / "b")])
    assert "Step 5" in str(stopped.value)


def test_input_that_is_not_finite(cifar, tmp_path, monkeypatch):
    def break_data(trainer):
        trainer.to_input = lambda x: x * float("inf")

    at_step(monkeypatch, 2, break_data)
    with pytest.raises(SystemExit, match="Step 3 .* the input itself is not finite"):
        cifar.main([*TINY, "--out", str(tmp_path)])


def test_other_settings_are_refused(cifar, undisturbed):
    with pytest.raises(SystemExit, match="--lr is 0.07, was 0.05.*--resume never"):
        cifar.main([*RICH, "--lr", "0.07", "--out", str(undisturbed)])
    assert load(undisturbed / "last.pt")["progress"]["step"] == STEPS


def test_foreign_checkpoints_are_refused(cifar, tmp_path):
    torch.save({"weights": 1}, tmp_path / "last.pt")
    with pytest.raises(SystemExit, match="Expected a training checkpoint of format 1"):
        cifar.main([*TINY, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="Expected a checkpoint at .* but there is none"):
        cifar.main([*TINY, "--resume", str(tmp_path / "no.pt"), "--out", str(tmp_path)])


def test_every_random_state_comes_back():
    import numpy as np

    def draw():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    checkpoint.seed_everything(3)
    draw()
    np.random.randn()  # leaves the second of a pair for the next call
    state = checkpoint.random_state()
    expected = [draw(), np.random.randn()]
    checkpoint.set_random_state(state)
    assert [draw(), np.random.randn()] == expected
