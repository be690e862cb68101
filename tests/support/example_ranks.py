"""Runs of examples/cifar.py in every rank for `tests/examples/test_distributed.py`."""

import hashlib
import importlib.util
import os
import signal
import sys

import torch
import torch.distributed as dist

from tests.support.example_cases import EXAMPLES, RICH, TINY, load


def cifar():
    spec = importlib.util.spec_from_file_location("examples_cifar", EXAMPLES / "cifar.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(arguments, output):
    """Run the script in this process, a fork, and have what it says in a file."""
    from common import loop

    with open(output, "w") as file:
        sys.stdout = sys.stderr = file
        loop.leave(lambda: cifar().main(arguments))


def runs(folder):
    """An undisturbed run, one that is interrupted on rank 1 alone, and its continuation."""
    from common import loop

    script, found = cifar(), {}
    hashes = watch(loop)
    found["whole"] = script.main([*RICH, "--out", f"{folder}/whole"])
    found["hashes"] = list(hashes)
    with at_step(loop, 4, lambda: dist.get_rank() == 1 and os.kill(os.getpid(), signal.SIGTERM)):
        found["status"] = status_of(script.main, [*RICH, "--out", f"{folder}/stopped"])
    dist.barrier()
    found["stopped at"] = load(f"{folder}/stopped/last.pt")["progress"]["step"]
    found["goes on"] = script.main([*RICH, "--out", f"{folder}/stopped"])
    with at_step(loop, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        status_of(script.main, [*RICH, "--out", f"{folder}/two"])
    found["refused"] = status_of(script.main, [*TINY, "--batch", "1", "--out", f"{folder}/no"])
    return found


def watch(loop):
    """Note a hash of the weights, and of this rank's batch, after every step."""
    original, hashes = loop.Trainer._train_step, []

    def step(trainer, x, y):
        original(trainer, x, y)
        found = hashlib.sha256()
        for parameter in trainer.net.parameters():
            found.update(parameter.detach().numpy().tobytes())
        hashes.append((found.hexdigest(), y.tolist()))

    loop.Trainer._train_step = step
    return hashes


class at_step:  # noqa: N801
    """Do something after a step, once."""

    def __init__(self, loop, number, action):
        self.kind, self.number, self.action = loop.Trainer, number, action

    def __enter__(self):
        self.original = original = self.kind._train_step

        def step(trainer, x, y):
            original(trainer, x, y)
            if trainer.step == self.number:
                self.action()

        self.kind._train_step = step

    def __exit__(self, *error):
        self.kind._train_step = self.original


def status_of(function, *args):
    try:
        function(*args)
    except SystemExit as error:
        return error.code
    return None


class Found(Exception):  # noqa: N818
    """Leaves a run with what was looked for."""


def one_step(folder):
    """Return gradients and sums of a first step, in float64, with norms that mix no samples."""
    from common import loop

    args = [*TINY, "--method", "dense"]
    args.remove("--sparsity"), args.remove("0.8")
    original = loop.Trainer._train_step

    def step(trainer, x, y):
        for module in trainer.net.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval().train = lambda mode=True, module=module: module
        original(trainer, x.double(), y)
        grads = {name: p.grad.clone() for name, p in trainer.net.named_parameters()}
        raise Found(grads, trainer.sums)

    loop.Trainer._train_step = step
    torch.set_default_dtype(torch.float64)
    try:
        cifar().main([*args, "--out", f"{folder}/step"])
    except Found as found:
        return found.args
    finally:
        loop.Trainer._train_step = original
        torch.set_default_dtype(torch.float32)
    raise AssertionError("no step was taken")
