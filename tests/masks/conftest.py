"""Helpers of the wrapper's tests, and time for hypothesis on a busy machine."""

import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1] / "wrapper"))

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

# The tensors are tiny: threads would only wait for each other.
torch.set_num_threads(1)
