"""Where sparse kernels pay: one layer over densities and firing rates, and how near to the peak.

    python benchmarks/deploy_layers.py     # two minutes; then python benchmarks/pictures.py

Layers of VGG16's shapes (3 x 3, padding 1, LIF behind them), T = 4, random weights and spikes. The
time is what the tuner of `deploy` measures: processor time of one thread, median of five, beside
torch's dense convolution with the same neurons. ``peak_fraction`` is the number of products of
weights that are not 0 with an input (nonzeros x T x N x positions) a second, over the number of
fused multiply-adds a second that a loop of nothing else reaches on one thread. The kernel that goes
by events skips most of these products, so its fraction may be above 1.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from measure import environment, write_csv
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune

STEPS = 4
SHAPES = [(64, 32, 8), (256, 8, 8), (512, 4, 8), (512, 4, 1)]  # channels, size, N
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_ACCUMULATORS = 12
_PEAK = f"""
#ifdef __AVX512F__
typedef float V __attribute__((vector_size(64)));
#else
typedef float V __attribute__((vector_size(32)));
#endif
extern "C" long lanes() {{ return sizeof(V) / sizeof(float); }}
extern "C" float run(long count, float b, float c) {{
  V s[{_ACCUMULATORS}];
  for (int k = 0; k < {_ACCUMULATORS}; ++k) s[k] = V{{}} + b * k;  // else they would be one
  for (long i = 0; i < count; ++i)
#pragma GCC unroll {_ACCUMULATORS}
    for (int k = 0; k < {_ACCUMULATORS}; ++k) s[k] = s[k] * b + c;
  for (int k = 1; k < {_ACCUMULATORS}; ++k) s[0] += s[k];
  return s[0][0];
}}
"""


def peak() -> float:
    """Return how many fused multiply-adds one thread does in a second."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "peak.cpp"), Path(folder, "peak.so")
        source.write_text(_PEAK)
        flags = ["-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        command = [os.environ.get("CXX", "g++"), *flags, str(source), "-o", str(made)]
        subprocess.run(command, check=True)
        library = ctypes.CDLL(str(made))
    library.run.argtypes = [ctypes.c_long, ctypes.c_float, ctypes.c_float]
    count, rates = 5_000_000, []
    for _ in range(9):
        start = time.thread_time()
        library.run(count, 0.5, 1.0)
        seconds = time.thread_time() - start
        rates.append(count * _ACCUMULATORS * library.lanes() / seconds)
    return statistics.median(rates)


def measure(shape: tuple[int, int, int], density: float, rate: float) -> dict[str, object]:
    """Deploy one layer behind neurons that pass spikes on, and return its row."""
    channels, size, samples = shape
    conv = layer.Conv2d(channels, channels, 3, padding=1, bias=False)
    conv.weight.data.mul_(torch.rand_like(conv.weight) < density)
    net = nn.Sequential(neuron.IFNode(v_threshold=0.5), conv, neuron.LIFNode(tau=2.0))
    functional.set_step_mode(net, "m")
    x = (torch.rand(STEPS, samples, channels, size, size) < rate).float()
    row = sj_prune.deploy(net.eval(), x, check=False).report().rows[1]
    assert row.seconds is not None
    assert row.dense_seconds is not None
    kept = int((conv.weight != 0).sum())
    return {
        "channels": channels,
        "size": size,
        "N": samples,
        "density": density,
        "rate": rate,
        "kernel": row.kernel,
        "milliseconds": f"{1e3 * row.seconds:.4f}",
        "dense_milliseconds": f"{1e3 * row.dense_seconds:.4f}",
        "speed_up": f"{row.dense_seconds / row.seconds:.2f}",
        "products_per_second": f"{kept * STEPS * samples * size * size / row.seconds:.4g}",
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    most = peak()
    print(f"peak: {most / 1e9:.1f} G fused multiply-adds a second")
    rows = []
    for shape in SHAPES:
        for density in DENSITIES:
            for rate in RATES:
                row = measure(shape, density, rate)
                fraction = float(str(row["products_per_second"])) / most
                rows.append(row | {"peak_fraction": f"{fraction:.3f}", **environment("cpu")})
            print(*shape, density, *(r["speed_up"] for r in rows[-len(RATES) :]))
    bits = [r for r in rows if r["kernel"] == "bits"]
    best = max(bits, key=lambda r: float(str(r["peak_fraction"])))
    print("nearest to the peak by bits:", {k: best[k] for k in list(best)[:11]})
    print(write_csv("deploy_layers_cpu1", rows))


if __name__ == "__main__":
    main()
