"""How long a forward takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.network.inputs import as_args
from sj_prune.neurons.recording import temporarily_silent


def latency(
    net: nn.Module,
    example_input: Any,  # noqa: ANN401
    *,
    repeats: int = 9,
    warm_up: int = 2,
) -> float:
    """Return the median seconds of one forward in eval mode, from reset neurons.

    Compiled networks run compiled, recording nodes do not record. The network comes back as it was.
    On CUDA the device is waited for.

    Args:
        net: any network.
        example_input: a batch as it takes it.
        repeats: forwards that are timed.
        warm_up: forwards before, not timed.

    Raises:
        ValueError: if `repeats` is below 1 or `warm_up` negative.
    """
    if repeats < 1 or warm_up < 0:
        raise ValueError(
            f"Expected repeats of at least 1 and no negative warm_up but got {repeats}, {warm_up}"
        )
    args = as_args(example_input)
    tensors = (*args, *net.parameters())
    devices = {x.device for x in tensors if isinstance(x, Tensor) and x.is_cuda}
    times = []
    with _host.preserved_state(net), temporarily_silent(net), torch.no_grad():
        net.eval()
        for _ in range(warm_up + repeats):
            _host.reset_net(net)
            _wait(devices)
            start = time.perf_counter()
            net(*args)
            _wait(devices)
            times.append(time.perf_counter() - start)
    return statistics.median(times[warm_up:])


def _wait(devices: Iterable[torch.device]) -> None:
    for device in devices:
        torch.cuda.synchronize(device)
