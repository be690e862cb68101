"""Draw the pictures of README.md from the CSV files under results/.

python benchmarks/pictures.py
"""

from __future__ import annotations

from matplotlib import pyplot
from readme import NEURON_STEP, ROOT, rows


def neuron_step() -> None:
    """One panel a case, one bar a contender, forward and backward stacked."""
    found = [r for r in rows("neuron_step_cpu2") if r["contender"] in NEURON_STEP]
    cases = list(dict.fromkeys((r["shape"], r["surrogate"]) for r in found))
    fig, axes = pyplot.subplots(2, 2, figsize=(10, 5), sharey=True, layout="constrained")
    names = [text.replace("`", "") for text in NEURON_STEP.values()]
    for ax, case in zip(axes.flat, cases, strict=True):
        here = {r["contender"]: r for r in found if (r["shape"], r["surrogate"]) == case}
        before = [0.0] * len(names)
        for part, color in (("forward", "#0072B2"), ("backward", "#E69F00")):
            widths = [float(here[name][f"{part}_ms"]) for name in NEURON_STEP]
            ax.barh(names, widths, left=before, color=color, label=part)
            before = [a + b for a, b in zip(before, widths, strict=True)]
        for y, name in enumerate(NEURON_STEP):
            ratio = float(here[name]["speedup_over_stock"])
            ax.text(before[y], y, f"  x{ratio:.1f}", va="center", fontsize="small")
        ax.set_title(f"[{case[0].replace('x', ', ')}], {case[1]}", fontsize="medium")
        ax.set_xlim(0, 1.15 * max(before))
        ax.set_axisbelow(True)
        ax.grid(axis="x", alpha=0.3)
    axes[0, 0].invert_yaxis()
    for ax in axes[1]:
        ax.set_xlabel("milliseconds; x: speed over the stock node")
    axes[0, 0].legend(loc="lower right", fontsize="small")
    fig.savefig(ROOT / "docs" / "neuron_step.png", dpi=110)


if __name__ == "__main__":
    neuron_step()
