"""Draw the pictures of README.md and docs/ from the CSV files under results/.

python benchmarks/pictures.py
"""

from __future__ import annotations

import sys

from matplotlib import pyplot
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator
from readme import DEPLOY, NEURON_STEP, ROOT, deploy_cases, rows

_COLORS = ("#D55E00", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#0072B2")  # Okabe and Ito


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


def deploy() -> None:
    """Time of VGG16 against its sparsity: a panel a batch size, a line a contender."""
    cases = {c: r for c, r in deploy_cases().items() if c[0] == "VGG16" and c[1] == "uniform"}
    numbers = list(dict.fromkeys(case[3] for case in cases))
    fig, axes = pyplot.subplots(
        1, len(numbers), figsize=(5 * len(numbers), 3.6), squeeze=False, layout="constrained"
    )
    names = {**DEPLOY, "deployed": "deployed"}
    for ax, samples in zip(axes[0], numbers, strict=True):
        here = sorted((float(c[2]), found) for c, found in cases.items() if c[3] == samples)
        for (contender, name), color in zip(names.items(), _COLORS, strict=True):
            points = [(s, found[contender]) for s, found in here if contender in found]
            if points:
                places = [[s for s, _ in here].index(s) for s, _ in points]
                times = [float(r["milliseconds"]) for _, r in points]
                ax.plot(places, times, marker="o", color=color, label=name)
        ax.set_xticks(range(len(here)), [f"{s:.0%}" if s else "dense" for s, _ in here])
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
        ax.set_xlabel("sparsity")
        ax.set_title(f"VGG16, 32 x 32, N = {samples}", fontsize="medium")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("milliseconds")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    fig.savefig(ROOT / "docs" / "deploy.png", dpi=110)


def deploy_layers() -> None:
    """How many times faster than dense a layer is, over densities and rates: a panel a shape."""
    found = rows("deploy_layers_cpu1")
    shapes = list(dict.fromkeys((r["channels"], r["size"], r["N"]) for r in found))
    fig, axes = pyplot.subplots(
        2, 2, figsize=(10, 8), sharex=True, sharey=True, layout="constrained"
    )
    for ax, shape in zip(axes.flat, shapes, strict=True):
        here = [r for r in found if (r["channels"], r["size"], r["N"]) == shape]
        densities, rates = ([*dict.fromkeys(r[k] for r in here)] for k in ("density", "rate"))
        gains = [[0.0] * len(rates) for _ in densities]
        for r in here:
            i, j = densities.index(r["density"]), rates.index(r["rate"])
            gains[i][j] = gain = float(r["speed_up"])
            text = f"{gain:.1f}\n{r['kernel']}"
            color = "white" if gain > 8 else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
        image = ax.imshow(gains, origin="lower", aspect="auto", cmap="Blues", norm=LogNorm(0.8, 40))
        ax.set_xticks(range(len(rates)), [f"{100 * float(r):g} %" for r in rates])
        ax.set_yticks(range(len(densities)), [f"{100 * float(d):g} %" for d in densities])
        channels, size, samples = shape
        title = f"{channels} to {channels} channels, {size} x {size}, N = {samples}"
        ax.set_title(title, fontsize="medium")
    fig.supxlabel("firing rate of the inputs")
    fig.supylabel("density of the weights")
    bar = fig.colorbar(image, ax=axes, shrink=0.6, label="times faster than dense")
    bar.set_ticks(ticks := [1, 2, 5, 10, 20, 40], labels=ticks)
    bar.minorticks_off()
    fig.savefig(ROOT / "docs" / "deploy_layers.png", dpi=110)


def quickstart() -> None:
    """What the quickstart draws of its own rows, of all seeds."""
    sys.path.insert(0, str(ROOT / "examples"))
    from quickstart import overview

    overview(rows("quickstart_cpu")).savefig(ROOT / "docs" / "quickstart.png", dpi=110)


if __name__ == "__main__":
    quickstart()
    neuron_step()
    deploy()
    deploy_layers()
