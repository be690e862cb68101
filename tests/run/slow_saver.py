"""Saves checkpoint after checkpoint, each slowly, until somebody kills it; run by test_files.

Every checkpoint holds one number in all its places, so a mixture of two would show.
"""

import io
import sys
import time

import torch

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


def main(path):
    genuine = torch.save
    torch.save = lambda state, file: genuine(state, Slow(file))
    for number in range(1_000_000):
        state = {"step": number, "weights": [torch.full((64, 64), float(number)) for _ in range(4)]}
        say("saving", number)
        sj_prune.save(path, state)
        say("saved", number)


if __name__ == "__main__":
    main(sys.argv[1])
