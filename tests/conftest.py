"""What every test shares: seeds, one thread, steady examples; `gpu` tests need a device."""

import os

import pytest
import torch
from hypothesis import settings

# The reference engine, so that nothing is compiled; tests/engines chooses for itself.
os.environ.setdefault("SJ_PRUNE_ENGINE", "torch")
# One thread a worker: pytest-xdist starts a worker a core.
torch.set_num_threads(1)
# The same examples in every run, and time for them on a busy machine.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
# Helpers assert too: a failure there shall show its values.
pytest.register_assert_rewrite("tests.support")


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
