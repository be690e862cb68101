"""Write the generated tables of README.md and docs/: of the CSV files, and of the methods.

python benchmarks/readme.py
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tabulate import tabulate

from sj_prune.reports.catalogue import methods_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


#: contender of benchmarks/neuron_step.py -> what the README calls it
NEURON_STEP = {
    "stock": "SpikingJelly LIFNode, no recording",
    "stock + v_seq + statistics": "SpikingJelly LIFNode, statistics from `store_v_seq`",
    "sj_prune, recording off": "sj_prune, recording off",
    "sj_prune, all statistics": "sj_prune, all five statistics",
    "clone times constant": "limit: `clone` times a constant",
}


def mask_update() -> str:
    table = [
        [r["contender"], f"{float(r['seconds']):.2f} s", f"{float(r['ratio_to_whole_update']):.2f}"]
        for r in rows("mask_update_cpu2")
    ]
    return tabulate(table, ["", "time", "ratio"], tablefmt="github", disable_numparse=True)


def holding() -> str:
    table = [
        [r["optimizer"], r["contender"], f"{float(r['milliseconds']):.0f} ms"]
        + [f"{float(r['ratio_to_bare']):.2f}"]
        for r in rows("holding_cpu1")
    ]
    headers = ["", "", "CPU time of a step", "over bare"]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def scale() -> str:
    """Return seconds of the processor and the peak of memory, a column a case."""
    found = rows("scale_cpu")
    cases = list(dict.fromkeys((r["network"], r["method"]) for r in found))
    cells = {
        (r["phase"], r["network"], r["method"]): f"{float(r['cpu_seconds']):.1f} s, "
        f"{float(r['peak_gigabytes']):.1f} GB"
        for r in found
    }
    phases = dict.fromkeys(r["phase"] for r in found)
    table = [[phase, *(cells.get((phase, *case), "") for case in cases)] for phase in phases]
    headers = ["", *(f"{network}, `{method}`" for network, method in cases)]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def neuron_step() -> str:
    found = [r for r in rows("neuron_step_cpu2") if r["contender"] in NEURON_STEP]
    cases = list(dict.fromkeys((r["shape"], r["surrogate"]) for r in found))
    table = [
        [text]
        + [
            next(
                f"{float(r['total_ms']):.2f} ms (x{float(r['speedup_over_stock']):.1f})"
                for r in found
                if (r["contender"], r["shape"], r["surrogate"]) == (name, *case)
            )
            for case in cases
        ]
        for name, text in NEURON_STEP.items()
    ]
    headers = ["", *(f"{shape}, {surrogate}" for shape, surrogate in cases)]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def training_step() -> str:
    table = [
        [r["contender"], f"{float(r['milliseconds']):.0f} ms", f"{float(r['over_identities']):.2f}"]
        for r in rows("training_step_cpu2")
    ]
    return tabulate(table, ["", "time", "ratio"], tablefmt="github", disable_numparse=True)


def compact_latency() -> str:
    table = [
        [
            f"{r['network']}, {r['input']}",
            r["contender"],
            f"{float(r['macs_to_dense']):.3f}",
            f"{float(r['milliseconds']):.0f} ms",
            f"{float(r['ratio_to_dense']):.2f} ({float(r['ratio_lowest']):.2f} to "
            f"{float(r['ratio_highest']):.2f})",
        ]
        for r in rows("compact_latency_cpu2")
    ]
    headers = ["network", "", "MACs, zeros too", "latency", "over dense (range of runs)"]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


#: contender of benchmarks/deploy.py -> what the README calls it
DEPLOY = {
    "stock": "SpikingJelly",
    "folded": "norms folded",
    "nodes": "norms folded, fused neurons",
    "torch.compile": "torch.compile",
    "ONNX Runtime": "ONNX Runtime",
}


def deploy_cases() -> dict[tuple[str, ...], dict[str, dict[str, str]]]:
    """Return case -> contender -> row; measured by the clock if an idle machine was at hand."""
    idle = (RESULTS / "deploy_cpu2.csv").exists()
    cases: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows("deploy_cpu2" if idle else "deploy_cpu1"):
        case = (row["network"], row["densities"], row["sparsity"], row["N"])
        cases.setdefault(case, {})[row["contender"]] = row
    return cases


def deploy() -> str:
    """Return the latency of deployed networks, and how many times slower the others are."""
    cases = deploy_cases()
    shown = [c for c in DEPLOY if any(c in found for found in cases.values())]
    table = []
    for (network, densities, sparsity, samples), found in cases.items():
        row = [network, f"{float(sparsity):.0%} {densities}" if float(sparsity) else "dense"]
        row += [samples, f"{float(found['deployed']['milliseconds']):.1f} ms"]
        ratios = [
            f"{float(found[c]['ratio_to_deployed']):.1f}" if c in found else "" for c in shown
        ]
        table.append(row + ratios)
    headers = ["network", "sparsity", "N", "deployed", *(f"over {DEPLOY[c]}" for c in shown)]
    row = next(iter(cases.values()))["deployed"]
    clock = "Processor time of one thread" if row["clock"] == "cpu" else "Time by the clock"
    first = f"{clock} ({row['device']}, torch {row['torch']}), medians of {row['turns']} turns:"
    return first + "\n\n" + tabulate(table, headers, tablefmt="github", disable_numparse=True)


def deploy_figures() -> str:
    """Return what else was measured: memory, the peak, building, the dense network."""
    cases = deploy_cases()
    deployed = [found["deployed"] for found in cases.values()]
    slowest = max(float(r["deploy_seconds"]) for r in deployed if r["network"] == "VGG16")
    whole = [found["nodes"] for case, found in cases.items() if not float(case[2])]
    dense = min(float(r["ratio_to_deployed"]) for r in whole)
    memory = [r for r in rows("deploy_memory_cpu") if r["contender"] == "deployed"]
    layers = rows("deploy_layers_cpu1")
    best = max(float(r["peak_fraction"]) for r in layers if r["kernel"] == "bits")
    build = ", ".join(f"{deployed[0][k]} s" for k in ("build_seconds", "cached_seconds"))
    table = [
        ["dense network, over norms folded and fused neurons, at least", f"{dense:.2f}"],
        ["peak memory over SpikingJelly's, VGG16 at 95 %, N = " + ", ".join(r["N"] for r in memory)]
        + [", ".join(r["ratio_to_stock"] for r in memory)],
        ["products of nonzero weights over the FMA peak, best layer", f"{best:.0%}"],
        ["engine for a kind of neuron, compiled; from the cache", build],
        ["`deploy` of VGG16 without proof, at most", f"{slowest} s"],
    ]
    return tabulate(table, ["", ""], tablefmt="github", disable_numparse=True)


def quickstart() -> str:
    """Return means and ranges over seeds, and when the results of a run are there."""
    found = rows("quickstart_cpu")
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in found:
        groups.setdefault((row["method"], row["sparsity"]), []).append(row)
    table = []
    for (method, _), group in groups.items():
        mean = {
            key: statistics.mean(float(r[key]) for r in group)
            for key in ("sparsity_reached", "accuracy", "synops_after", "ms_deployed")
        }
        accuracies, times = ([float(r[k]) for r in group] for k in ("accuracy", "ms_deployed"))
        table.append(
            [
                method,
                "-" if method == "dense" else f"{mean['sparsity_reached']:.0%}",
                f"{mean['accuracy']:.2f} % ({min(accuracies):.2f} to {max(accuracies):.2f})",
                f"{mean['synops_after'] / 1e6:.2f} M",
                f"{mean['ms_deployed']:.2f} ms ({min(times):.2f} to {max(times):.2f})",
            ]
        )
    headers = ["method", "sparsity", "test accuracy", "SynOps an image", "an image, deployed"]
    pruned = [r for r in found if r["method"] != "dense"]
    dense = [r for r in found if r["method"] == "dense"]
    stock = {
        name: statistics.mean(float(r["ms_spikingjelly"]) for r in group)
        for name, group in (("dense", dense), ("pruned", pruned))
    }
    first = {seed: float(r["at_cpu_second"]) for r in pruned[::-1] for seed in (r["seed"],)}
    whole = {r["seed"]: float(r["run_cpu_seconds"]) for r in found}
    last = (
        f"Means (and ranges) of {len(whole)} seeds; times are processor time of one thread. "
        f"SpikingJelly takes {stock['dense']:.2f} ms for an image with the dense network and "
        f"{stock['pruned']:.2f} ms with a pruned one. The first pruned result is there after "
        f"{max(first.values()):.0f} CPU seconds, all of them after {max(whole.values()):.0f}."
    )
    return tabulate(table, headers, tablefmt="github", disable_numparse=True) + "\n\n" + last


def channel_growth() -> str:
    """Return the table, and for each sparsity who is ahead: nobody where ranges overlap."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows("channel_growth_cpu"):
        groups.setdefault((row["sparsity"], row["growth"]), []).append(row)
    ordered = dict(sorted(groups.items(), key=lambda item: float(item[0][0])))
    table = [_growth_row(sparsity, growth, r) for (sparsity, growth), r in ordered.items()]
    seeds = len({row["seed"] for row in rows("channel_growth_cpu")})
    headers = [
        "channel sparsity",
        "growth",
        f"test accuracy, mean of {seeds} seeds",
        "range",
        "channels kept",
        "MACs",
        "SynOps",
        "latency, compact / masked",
    ]
    text = tabulate(table, headers, tablefmt="github", disable_numparse=True)
    sparsities = list(dict.fromkeys(sparsity for sparsity, growth in ordered if growth != "dense"))
    verdicts = [_growth_verdict(s, ordered) for s in sparsities]
    return "\n\n".join([text, _growth_setting(rows("channel_growth_cpu")), "\n".join(verdicts)])


def _growth_row(sparsity: str, growth: str, found: list[dict[str, str]]) -> list[str]:
    dense = growth == "dense"
    accuracies = [float(r["accuracy"]) for r in found]
    macs, synops, latency = (
        statistics.mean(float(r[key]) for r in found) for key in ("macs", "synops", "latency_ratio")
    )
    kept = {f"{r['channels_after']} of {r['channels_before']}" for r in found}
    return [
        "-" if dense else f"{100 * float(sparsity):.0f} %",
        growth,
        f"{statistics.mean(accuracies):.2f} %",
        f"{min(accuracies):.2f} to {max(accuracies):.2f} %",
        "all" if dense else ", ".join(sorted(kept)),
        f"{macs / 1e6:.2f} M",
        f"{synops / 1e3:.0f} k",
        "-" if dense else f"{latency:.2f}",
    ]


def _growth_verdict(sparsity: str, groups: dict[tuple[str, str], list[dict[str, str]]]) -> str:
    """Return how growth by gradient and none compare: a winner only where ranges are apart."""
    first, second = (
        [float(row["accuracy"]) for row in groups[sparsity, growth]]
        for growth in ("gradient", "none")
    )
    gap = statistics.mean(first) - statistics.mean(second)
    start = f"- {100 * float(sparsity):.0f} %: growth by gradient against none {gap:+.2f} points; "
    if min(first) > max(second):
        return f"{start}every seed with growth is above every seed without."
    if max(first) < min(second):
        return f"{start}every seed with growth is below every seed without."
    return f"{start}the ranges overlap, so no winner."


def _growth_setting(found: list[dict[str, str]]) -> str:
    row = found[0]
    seconds = statistics.mean(float(r["cpu_seconds"]) for r in found)
    regrow = {
        f"{float(r['regrow']):g} at {100 * float(r['sparsity']):.0f} %"
        for r in found
        if float(r["regrow"])
    }
    return (
        f"{int(row['train_images']):,} training and {int(row['test_images']):,} test images, "
        f"{row['epochs']} epochs, T={row['time_steps']}; MACs and SynOps per image, over all time "
        "steps, MACs with spikes multiplied like any number; "
        f"`regrow` {', '.join(sorted(regrow))}; "
        f"{seconds:.0f} CPU seconds a run on {row['device']}. Several runs shared the machine, so "
        "latency is a rough figure: masked and compact network were timed in turns."
    )


def observe() -> str:
    table = [
        [
            f"{r['node']}, {'multi' if r['step_mode'] == 'm' else 'single'}-step",
            r["shape"],
            r["contender"],
            f"{float(r['forward_backward_ms']):.1f} ms",
            f"{float(r['times_alone']):.2f}",
            f"{int(r['extra_bytes']) / int(r['input_bytes']):.2f}" if r["extra_bytes"] else "-",
        ]
        for r in rows("observe_cpu1")
    ]
    headers = ["node", "`x_seq`", "", "CPU time", "times alone", "memory / memory of `x_seq`"]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def catalogue() -> str:
    """Return one table a group: accuracy, sparsity and SynOps of each method, dense first."""
    found = rows("catalogue_cpu")
    dense, *groups = dict.fromkeys(r["group"] for r in found)
    parts = [f"Dense: {_spread([r for r in found if r['group'] == dense])}."]
    for group in groups:
        mine = [r for r in found if r["group"] == group]
        sparsities = sorted({r["sparsity"] for r in mine}, key=float)
        table = []
        for method in dict.fromkeys(r["method"] for r in mine):
            row, epochs = [method], []
            for sparsity in sparsities:
                cells = [r for r in mine if (r["method"], r["sparsity"]) == (method, sparsity)]
                row += _catalogue_cell(cells)
                epochs += [r["epochs"] for r in cells]
            most, least = max(map(int, epochs)), min(map(int, epochs))
            table.append([*row, str(most) if most == least else f"{least} to {most}"])
        titles = [
            f"{100 * float(s):g} %: {title}" if title == "accuracy" else title
            for s in sparsities
            for title in ("accuracy", "reached", "SynOps")
        ]
        headers = ["method", *titles, "epochs"]
        text = tabulate(table, headers, tablefmt="github", disable_numparse=True)
        parts += [f"**{group[0].upper()}{group[1:]}**", text]
    return "\n\n".join(parts)


def _catalogue_cell(cells: list[dict[str, str]]) -> list[str]:
    if not cells:
        return ["", "", ""]
    reached = statistics.mean(float(r["sparsity_reached"]) for r in cells)
    synops = statistics.mean(float(r["synops"]) for r in cells)
    return [_spread(cells), f"{100 * reached:.1f} %", f"{synops / 1e3:.1f} k"]


def _spread(cells: list[dict[str, str]]) -> str:
    """Return mean and standard deviation of the accuracy, and how many seeds they are of."""
    found = [float(r["accuracy"]) for r in cells]
    deviation = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    seeds = "" if len(found) == 3 else f" ({len(found)} seed{'s' * (len(found) > 1)})"
    return f"{statistics.mean(found):.1f}{deviation}{seeds}"


def synops_budget() -> str:
    """Return accuracy and SynOps of each way to keep a budget, and the paired difference."""
    found = rows("synops_budget_cpu")
    cases = dict.fromkeys((r["fraction"], r["contender"]) for r in found)
    table = []
    for fraction, contender in sorted(cases, key=lambda case: -float(case[0])):
        mine = [r for r in found if (r["fraction"], r["contender"]) == (fraction, contender)]
        over = [100 * (float(r["over_budget"]) - 1) for r in mine]
        weights = statistics.mean(int(r["weights_left"]) for r in mine)
        table.append(
            [
                fraction,
                contender,
                _spread(mine),
                f"{statistics.mean(float(r['synops']) for r in mine) / 1e3:.1f} k",
                f"{min(over):+.1f} to {max(over):+.1f} %" if contender != "dense" else "",
                f"{weights:,.0f}",
            ]
        )
    headers = ["budget", "", "accuracy", "SynOps", "off the budget", "weights left"]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def insert(text: str, marker: str, table: str) -> str:
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"Expected the markers <!-- {marker} --> but found none")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def write_tables(page: Path, tables: Mapping[str, Callable[[], str]]) -> None:
    """Write each table of a page behind its marker."""
    text = page.read_text(encoding="utf-8")
    for marker, table in tables.items():
        text = insert(text, marker, table())
    page.write_text(text, encoding="utf-8")


PAGES = {
    "README.md": {
        "quickstart table": quickstart,
    },
    "docs/cost.md": {
        "neuron step table": neuron_step,
        "training step table": training_step,
        "mask update table": mask_update,
        "holding table": holding,
        "scale table": scale,
    },
    "docs/methods.md": {"methods table": partial(methods_table, markdown=True)},
    "docs/catalogue.md": {"catalogue table": catalogue, "synops budget table": synops_budget},
    "docs/observing.md": {"observe table": observe},
    "docs/deploy.md": {"deploy table": deploy, "deploy figures": deploy_figures},
    "docs/channels.md": {
        "channel growth table": channel_growth,
        "compact latency table": compact_latency,
    },
}


def main() -> None:
    for name, tables in PAGES.items():
        write_tables(ROOT / name, tables)


if __name__ == "__main__":
    main()
