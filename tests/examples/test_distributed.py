"""The scripts under torchrun: the same weights everywhere, one log, and it goes on."""

import csv
import re
import subprocess
import sys

import pytest
import torch

from sj_prune import models
from tests.support.example_cases import EXAMPLES, RICH, STEPS, TINY, assert_same_run, load
from tests.support.example_ranks import one_step
from tests.support.processes import environment, once, run_in_ranks


@pytest.fixture(scope="module")
def folder_and_results(tmp_path_factory):
    def run(folder):
        return folder, run_in_ranks(2, "example_ranks", "runs", folder)

    return once(tmp_path_factory, "scripts", run)


@pytest.fixture(scope="module")
def folder(folder_and_results):
    return folder_and_results[0]


@pytest.fixture(scope="module")
def found(folder_and_results):
    return folder_and_results[1]


def test_weights_are_the_same_and_batches_are_not(found):
    first, second = (result["hashes"] for result in found)
    assert len(first) == STEPS
    assert [weights for weights, _ in first] == [weights for weights, _ in second]
    for (_, mine), (_, other) in zip(first, second, strict=True):
        assert (len(mine), len(other)) == (7, 8)  # of a batch of 15


def test_what_was_reached_is_the_same_everywhere(found):
    assert found[0]["whole"] == found[1]["whole"]
    assert found[0]["whole"]["steps"] == STEPS
    assert found[0]["whole"]["sparsity"] == pytest.approx(0.8, abs=0.01)


def test_interrupted_on_one_rank_it_goes_on(found, folder):
    assert [result["status"] for result in found] == [130, 130]
    # The others learn of it in the next step.
    assert [result["stopped at"] for result in found] == [5, 5]
    assert found[0]["goes on"] == found[0]["whole"]
    assert_same_run(folder / "whole", folder / "stopped")


def test_another_number_of_processes_goes_on(found, folder, cifar):
    """A run of two that was stopped is finished by one."""
    before = load(folder / "two" / "last.pt")
    assert before["progress"]["step"] == 5
    result = cifar.main([*RICH, "--out", str(folder / "two")])
    assert result["steps"] == STEPS
    assert result["sparsity"] == found[0]["whole"]["sparsity"]


def test_batch_too_small_for_all(found):
    for result in found:
        assert "--batch, --batch-test: Expected batch_size" in result["refused"]


def test_gradient_is_that_of_the_whole_batch(tmp_path):
    """Without mixing samples in norms, up to rounding; in shares of 7 and 8."""
    expected, sums = one_step(tmp_path)
    assert any(grad.any() for grad in expected.values())
    for result in run_in_ranks(2, "example_ranks", "one_step", tmp_path):
        for name, grad in result[0].items():
            # The loss is computed in float32.
            scale = float(expected[name].abs().max())
            torch.testing.assert_close(grad, expected[name], rtol=0, atol=1e-5 * scale)
        assert result[1] == pytest.approx(sums, rel=1e-6)


def torchrun(*command):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*launcher, *command],
        env=environment(EXAMPLES, SJ_PRUNE_ENGINE="torch", OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    return result


# Gloo's threads drop the tensor of a sum after its caller has it. Python must not be shutting down
# by then, so those of the group that carries tensors of Python have to end before.
COUNT_THREADS = """
import os
import sys
import torch
from common import loop, ranks

def workers():
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)

def main():
    model = ranks.parallel(torch.nn.Linear(2, 2), ranks.start(torch.device("cpu")))
    model.itself = model  # like a trainer, it goes with the garbage
    model(torch.ones(1, 2)).sum().backward()
    ranks.total([1.0], torch.device("cpu"))
    found.append(workers())
    if sys.argv[1] == "stopped":
        raise SystemExit(loop.STOPPED)

found, status = [], None
try:
    loop.leave(main)
except SystemExit as end:
    status = end.code
found.append(workers())
# In one piece, or the lines of the two ranks may mix.
sys.stdout.write(f"rank {os.environ['RANK']}: {found[0]} {found[1]} {status}\\n")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the threads from /proc")
@pytest.mark.parametrize(("end", "status"), [("finished", "None"), ("stopped", "130")])
def test_threads_of_the_group_end_with_it(tmp_path, end, status):
    (tmp_path / "count.py").write_text(COUNT_THREADS)
    result = torchrun(str(tmp_path / "count.py"), end)
    found = re.findall(r"rank \d: (\d+) (\d+) (\w+)", result.stdout)
    assert [code for _, _, code in found] == [status] * 2, result.stdout
    for before, after, _ in found:  # those of the group of DistributedDataParallel may stay
        assert int(before) >= 2 * int(after) >= 0 < int(before)


def test_torchrun(tmp_path):
    result = torchrun(str(EXAMPLES / "cifar.py"), *TINY, "--out", str(tmp_path))
    assert [result.stdout.count(f"epoch {k}/3:") for k in (1, 2, 3)] == [1, 1, 1]
    assert result.stdout.count("The network is in") == 1
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3]
    network = models.VGG16(widths=(4,) * 13, T=2)
    network.load_state_dict(load(tmp_path / "final.pt"), strict=True)
