"""What the CPU engine compiles for a network, from an empty cache: processor seconds of compilers.

    python benchmarks/compiling.py

VGG16 with LIF neurons: a forward that records, a backward, and a forward in eval mode. How wide the
layers are does not matter. The machine's other work does not show in processor seconds.
"""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable

import torch
from measure import environment, write_csv

from sj_prune.models import VGG16
from sj_prune.neurons import to_recording


def compilers(run: Callable[[], object]) -> float:
    """Return the processor seconds of the processes that `run` starts."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    run()
    return spent() - before


def main() -> None:
    torch.set_num_threads(1)
    where = environment("cpu")  # starts processes too
    net, x = to_recording(VGG16(T=4, widths=[8] * 13)), torch.rand(2, 3, 32, 32)
    outputs: list[torch.Tensor] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SJ_PRUNE_CACHE"] = folder
        found = {
            "forward, recording": compilers(lambda: outputs.append(net(x))),
            "backward": compilers(lambda: outputs[0].sum().backward()),
        }
        net.eval()
        found["forward in eval mode"] = compilers(lambda: net(x))
    rows: list[dict[str, object]] = [
        {"pass": name, "seconds": f"{seconds:.2f}", **where} for name, seconds in found.items()
    ]
    for row in rows:
        print(f"{row['pass']:22} {row['seconds']} s")
    print(write_csv("compiling_cpu1", rows))


if __name__ == "__main__":
    main()
