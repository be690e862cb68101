"""Peak memory of one forward: stock SpikingJelly and deployed, each in a process of its own.

    python benchmarks/deploy_memory.py

What is counted is the growth of the resident set from before the weights are loaded to its peak in
two forwards (VGG16, 95 % uniform sparsity, T = 4), so weights and activations alike. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from deploy_networks import NETWORKS, prune, set_rate
from measure import environment, write_csv
from spikingjelly.activation_based import functional

import sj_prune

STEPS, SPARSITY = 4, 0.95


def resident(key: str) -> int:
    """Return VmRSS or VmHWM in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def child(contender: str, samples: int, folder: str) -> None:
    """Print the growth in kB."""
    net, size = NETWORKS["VGG16"]()
    x = torch.rand(STEPS, samples, 3, size, size)
    functional.reset_net(net.eval())
    if contender == "deployed":
        del net
    else:  # the network's own weights are counted when they are read
        net.to("meta")
    torch.nn.functional.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3))
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    with torch.inference_mode():
        if contender == "deployed":
            fast = sj_prune.load_deployed(f"{folder}/deployed.pt")
            for _ in range(2):
                fast(x)
        else:
            net.load_state_dict(torch.load(f"{folder}/stock.pt"), assign=True)
            for _ in range(2):
                functional.reset_net(net)
                net(x)
    print(resident("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3, metavar=("CONTENDER", "N", "FOLDER"))
    args = parser.parse_args()
    if args.child:
        child(args.child[0], int(args.child[1]), args.child[2])
        return
    torch.manual_seed(0)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        net, size = NETWORKS["VGG16"]()
        x = torch.rand(1, 1, 3, size, size).expand(STEPS, -1, -1, -1, -1).contiguous()
        prune(net, SPARSITY, "uniform")
        set_rate(net, x, 0.1)
        torch.save(net.state_dict(), f"{folder}/stock.pt")
        sj_prune.deploy(net, x, check=False).save(f"{folder}/deployed.pt")
        for samples in (1, 32):
            first = 0
            for contender in ("stock", "deployed"):
                command = [sys.executable, __file__, "--child", contender, str(samples), folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                peak = int(done.stdout.split()[-1])
                first = first or peak
                rows.append(
                    {
                        "network": "VGG16",
                        "sparsity": SPARSITY,
                        "N": samples,
                        "contender": contender,
                        "megabytes": f"{peak / 1024:.1f}",
                        "ratio_to_stock": f"{peak / first:.3f}",
                        **environment("cpu"),
                    }
                )
                print(contender, samples, rows[-1]["megabytes"], rows[-1]["ratio_to_stock"])
    print(write_csv("deploy_memory_cpu", rows))


if __name__ == "__main__":
    main()
