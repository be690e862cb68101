"""What pruning costs networks of ImageNet's size on an ordinary machine, phase by phase.

    python benchmarks/scale.py [--cases SEW-ResNet50,SCA ...]

SEW-ResNet50 and Spikformer-8-768 of SpikingJelly (2.0.0 has both) on two generated images of
224x224, T = 4: wrapped, explained, trained two steps with a mask update in the second, norms
estimated anew, reported, finalized, and, after a channel method on the SEW-ResNet, compacted with
its proof. Seconds of the processor and of the clock, and the highest resident size of the process
during each phase. A process a case, one thread. Linux only: the kernel's mark of the highest size
is set back before every phase.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from large_update import gigabytes
from measure import environment, write_csv
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet
from torch import Tensor, nn

import sj_prune
from sj_prune import data, methods
from sj_prune.reports.report import Report

TIME_STEPS, IMAGES, SIZE = 4, 2, 224
UPDATE = {"interval": 2, "end": 2}  # in the second step


def sew_resnet50() -> nn.Module:
    net = sew_resnet.sew_resnet50(
        cnf="ADD",
        spiking_neuron=neuron.IFNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
    )
    functional.set_step_mode(net, "m")
    return net


def spikformer() -> nn.Module:
    from spikingjelly.activation_based.model.spikformer import Spikformer  # since 2.0.0

    return Spikformer(
        img_size_h=SIZE, img_size_w=SIZE, patch_size=16, embed_dims=768, num_heads=12, depths=8
    )


#: what makes each, and the classifier, which stays dense
NETWORKS = {"SEW-ResNet50": (sew_resnet50, "fc"), "Spikformer-8-768": (spikformer, "head")}
METHODS: dict[str, Callable[[], Any]] = {
    "Criticality": lambda: methods.Criticality(sparsity=0.9, regrow=0.2, **UPDATE),
    "SCA": lambda: methods.SCA(sparsity=0.5, regrow=0.1, **UPDATE),
}
CASES = [
    ("SEW-ResNet50", "Criticality"),
    ("SEW-ResNet50", "SCA"),
    ("Spikformer-8-768", "Criticality"),
    ("Spikformer-8-768", "SCA"),
]


class Phases:
    """Runs one phase after the other, and keeps what each took."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def __call__(self, phase: str, run: Callable[[], Any]) -> Any:  # noqa: ANN401
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        clock, processor = time.perf_counter(), time.process_time()
        result = run()
        self.rows.append(
            {
                "phase": phase,
                "cpu_seconds": f"{time.process_time() - processor:.2f}",
                "wall_seconds": f"{time.perf_counter() - clock:.2f}",
                "peak_gigabytes": f"{gigabytes('VmHWM'):.2f}",
            }
        )
        print(self.rows[-1], file=sys.stderr)
        return result


def prune(net: nn.Module, method: str, classifier: str, x_seq: Tensor, phase: Phases) -> Report:
    """Wrap a network, train two steps and finalize it; return its report before that."""
    y = torch.arange(x_seq.shape[1])
    sj_prune.renormalize(net, [(x_seq,)])  # an untrained network fires with its own statistics
    model = phase(
        "wrap", lambda: sj_prune.PruningWrapper(net, METHODS[method](), skip=[classifier])
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    model.attach(optimizer)
    phase("explain", lambda: str(model.explain(x_seq)))

    def passes() -> None:
        optimizer.zero_grad()
        functional.reset_net(model)
        output = model(x_seq)
        F.cross_entropy(output.mean(0) if output.ndim == 3 else output, y).backward()

    phase("first forward and backward", passes)
    phase("first step", optimizer.step)
    phase("second forward and backward", passes)
    phase("second step, with the update", optimizer.step)
    phase("renormalize", lambda: sj_prune.renormalize(net, [(x_seq,)]))
    report = phase("report", lambda: model.report(x_seq))
    phase("state_dict", model.state_dict)
    phase("finalize", model.finalize)
    assert all(row.firing_rate is None or row.firing_rate > 0 for row in report.rows)
    return report


def measure(network: str, method: str) -> list[dict[str, object]]:
    torch.manual_seed(0)
    build, classifier = NETWORKS[network]
    net, phase = build(), Phases()
    weights = sum(p.numel() for p in net.parameters())
    images, _ = data.synthetic_images(1, IMAGES, size=SIZE)
    x_seq = (images / 255).expand(TIME_STEPS, *images.shape).contiguous()
    totals = prune(net, method, classifier, x_seq, phase).totals
    net.zero_grad()
    if (network, method) == ("SEW-ResNet50", "SCA"):
        small = phase("compact", lambda: sj_prune.compact(net, x_seq))
        assert sum(p.numel() for p in small.parameters()) < 0.6 * weights
    kept = totals["channels_kept"] / totals["channels"] if "channels" in totals else None
    same = {
        "network": network,
        "method": method,
        "input": "x".join(map(str, x_seq.shape)),
        "weights": weights,
        "sparsity": f"{totals['sparsity'] if kept is None else 1 - kept:.4f}",
    }
    return [{**same, **row, **environment("cpu")} for row in phase.rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=[",".join(case) for case in CASES])
    parser.add_argument("--alone", action="store_true", help="print the rows of one case as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.alone:
        print(json.dumps(measure(*args.cases[0].split(","))))
        return
    rows = []
    for case in args.cases:
        command = [sys.executable, __file__, "--alone", "--cases", case]
        rows += json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    print(write_csv("scale_cpu", rows))


if __name__ == "__main__":
    main()
