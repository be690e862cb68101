"""Helpers of the wrapper's tests."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "wrapper"))

# The tensors are tiny: threads would only wait for each other.
torch.set_num_threads(1)
