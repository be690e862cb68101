"""What every test shares: fixed seeds, and `gpu` tests skipped where there is no device."""

import os

import pytest
import torch

# The reference engine, so that nothing is compiled; tests/engines chooses for itself.
os.environ.setdefault("SJ_PRUNE_ENGINE", "torch")
# One thread a worker: pytest-xdist starts a worker a core.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
