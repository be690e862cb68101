"""What is predicted of the CUDA kernels without a GPU."""

import pytest
import torch

from benchmarks import cuda_variants
from sj_prune.neurons.reference import LIF, PLIF


def moved(kind, shape, dtype):
    """Return bytes per neuron and step of forward and backward, and what statistics add."""
    off, on, back = (found[3] for found in cuda_variants.passes(kind, shape, dtype))
    return off + back, on - off


@pytest.mark.parametrize("kind", [LIF, PLIF])
@pytest.mark.parametrize(
    ("steps", "single", "half"),
    [(4, 21.0, 11.0), (10, 20.4, 10.4), (16, 20.25, 10.25), (64, 20.0625, 10.0625)],
)
def test_every_operand_moves_once(kind, steps, single, half):
    """x, S and V of the last step; dS, x and dx: the input is read once in each pass."""
    shape = (steps, 16, 64, 16, 16)
    assert moved(kind, shape, torch.float32)[0] == pytest.approx(single)
    assert moved(kind, shape, torch.float16)[0] == pytest.approx(half)


def test_more_steps_than_are_kept_are_read_twice():
    """V before the second chunk is kept too, and half of x read again."""
    assert moved(LIF, (128, 16, 64, 16, 16), torch.float32)[0] == 20 + 4 / 128 + (64 * 4 + 8) / 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(4, 128, 4096), (4, 128, 64, 32, 32), (4, 32, 512, 7, 7)])
def test_statistics_are_a_few_percent_of_the_bytes(shape, dtype):
    """Written and read again; of single samples they would be 10 on maps of one element."""
    bytes_, more = moved(LIF, shape, dtype)
    assert more < 0.13 * bytes_


def test_threads_that_a_multiprocessor_holds():
    found = {"registers": 62, "shared": 0}
    assert cuda_variants.resident(found, 256, 90) == 1024
    assert cuda_variants.resident({**found, "shared": 100 << 10}, 256, 90) == 512
    assert cuda_variants.resident({**found, "registers": 20}, 256, 75) == 1024
