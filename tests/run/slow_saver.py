"""Saves file after file, each slowly, until somebody kills it; run by test_files.

Every file holds one number in all its places, so a mixture of two would show.
"""

import io
import sys
import time

import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

import sj_prune


class Slow(io.RawIOBase):
    """A file that takes its time for every write."""

    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, data):
        for start in range(0, len(data), 4096):
            self.file.write(bytes(data)[start : start + 4096])
            self.file.flush()
            time.sleep(0.002)
        return len(data)


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def linear(number=0.0):
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))).apply(
        lambda m: [nn.init.constant_(p, number) for p in m.parameters()]
    )


def checkpoint(path, number):
    state = {"step": number, "weights": [torch.full((64, 64), float(number)) for _ in range(4)]}
    sj_prune.save(path, state)


def compact(path, number):
    sj_prune.save_compact(path, linear(float(number)))


def deployed(path, number, kept=[]):  # noqa: B006 - made once
    if not kept:
        net = nn.Sequential(layer.Linear(64, 64, step_mode="m"), neuron.IFNode(step_mode="m"))
        kept.append(sj_prune.deploy(net.eval(), torch.rand(4, 1, 64)))
    kept[0]._difference = float(number)
    kept[0].save(path)


KINDS = {"checkpoint": checkpoint, "compact": compact, "deployed": deployed}


def main(path, kind):
    genuine = torch.save
    torch.save = lambda state, file: genuine(state, Slow(file))
    for number in range(1_000_000):
        say("saving", number)
        KINDS[kind](path, number)
        say("saved", number)


if __name__ == "__main__":
    main(*sys.argv[1:])
