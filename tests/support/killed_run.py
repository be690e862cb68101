"""Trains and saves after every step until somebody kills it; run by `tests/run/test_resume.py`."""

import os
import time

import torch

from tests.support.pruning_cases import criticality, train, wrapped


def main(path):
    torch.set_num_threads(1)
    model, optimizer = wrapped(criticality(interval=3, end=12, batches=2, regrow=0.4), "adam")

    def save(k):
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "position": k}
        torch.save(state, f"{path}.new")
        os.replace(f"{path}.new", path)
        time.sleep(0.05)

    train(model, optimizer, 10_000, after=save)
