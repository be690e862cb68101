"""Quickstart: prune a spiking network to 95 % and 98 % while it learns to read digits, on a CPU.

    python examples/quickstart.py                 # 5 trainings, less than two minutes
    python examples/quickstart.py --seeds 0 1 2   # the same with three seeds

Trains one network dense and with `Magnitude` and `Criticality` pruning, each from scratch with the
same seeds, epochs and learning rates, and deploys each. Prints every result when it is there, and
writes them to runs/quickstart/: results.csv (one row a training), results.md (means over seeds),
plots, checkpoints.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import os
import platform
import statistics
import subprocess
import time
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path

# Before torch is loaded: its threads sleep while they wait, or on a shared machine they would burn
# the cores that they wait for (seen: 10 times slower).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

import sj_prune
from sj_prune import cost, plots

# ---- settings ------------------------------------------------------------------------------------

TIME_STEPS = 4  # every image is shown this often; the first convolution turns it into spikes
CHANNELS = (32, 32, 96, 192)  # of the convolutions; with the classifier 210,720 weights
POOL_AFTER = (2, 3)  # convolutions with max pooling behind: 8x8 -> 4x4 -> 2x2
TAU = 4 / 3  # membrane time constant, without input decay: H = V / 4 + x, as in arXiv 2311.16141

EPOCHS = 12  # of every training, dense or pruned
BATCH = 64
LEARNING_RATE = 0.2  # at the start; falls to 0 as a cosine
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1

SPARSITIES = {0.95: 0.1, 0.98: 0.01}  # target -> `regrow` of Criticality, as the paper pairs them
RUNS = [("dense", 0.0), *((name, s) for s in SPARSITIES for name in ("Criticality", "Magnitude"))]
PRUNE_UNTIL = 0.6  # of the training; then the masks stay as they are and the network fine-tunes
UPDATES = 14  # of the masks until then: two an epoch

QUICK_EPOCHS, QUICK_IMAGES = 5, 256  # --quick: everything runs, little is learned

# ---- data and network ----------------------------------------------------------------------------


def load_data():
    """Return images ``[N, 1, 8, 8]`` in [0, 1] and labels, of the training and of the test set."""
    digits = load_digits()  # 1,797 scans that come with scikit-learn
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test = train_test_split(
        torch.arange(len(labels)), test_size=0.25, stratify=digits.target, random_state=0
    )
    return images[train], labels[train], images[test], labels[test]


def shift(images, generator):
    """Move every image by up to one pixel in each direction: the augmentation."""
    windows = F.pad(images, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)  # [N, 1, 3, 3, 8, 8]
    dy, dx = torch.randint(3, (2, len(images)), generator=generator)
    return windows[torch.arange(len(images)), :, dy, dx]


def over_time(images):
    """Repeat images ``[N, C, H, W]`` to a sequence ``[T, N, C, H, W]``."""
    return images.unsqueeze(0).repeat(TIME_STEPS, 1, 1, 1, 1)


def build_network():
    """Return a SpikingJelly network like any other: it knows nothing of pruning."""
    layers, before = OrderedDict(), 1
    for i, channels in enumerate(CHANNELS, start=1):
        layers[f"conv{i}"] = layer.Conv2d(before, channels, 3, padding=1, bias=False)
        layers[f"norm{i}"] = layer.BatchNorm2d(channels)
        layers[f"lif{i}"] = neuron.LIFNode(
            tau=TAU, decay_input=False, detach_reset=True, surrogate_function=surrogate.ATan()
        )
        if i in POOL_AFTER:
            layers[f"pool{i}"] = layer.MaxPool2d(2)
        before = channels
    layers["flatten"] = layer.Flatten()
    layers["classifier"] = layer.Linear(before * 2 * 2, 10)
    net = nn.Sequential(layers)
    functional.set_step_mode(net, "m")
    return net


# ---- training ------------------------------------------------------------------------------------


def make_method(name, sparsity, steps):
    """Return the pruning method for a training of so many optimizer steps."""
    end = int(PRUNE_UNTIL * steps)
    when = {"interval": max(1, end // UPDATES), "end": end}
    if name == "Magnitude":
        return sj_prune.methods.Magnitude(sparsity=sparsity, **when)
    return sj_prune.methods.Criticality(sparsity=sparsity, regrow=SPARSITIES[sparsity], **when)


def train(name, sparsity, seed, images, labels, epochs):
    """Train a network from scratch and return it, inside a `PruningWrapper` unless dense."""
    batches = len(labels) // BATCH
    torch.manual_seed(seed)  # every method starts from the same weights ...
    generator = torch.Generator().manual_seed(seed)  # ... and sees the same images in one order

    model = build_network()
    if name != "dense":
        method = make_method(name, sparsity, epochs * batches)
        model = sj_prune.PruningWrapper(model, method, seed=seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY
    )
    if name != "dense":
        model.attach(optimizer)  # from here on optimizer.step() prunes; the loop stays as it was
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)

    bar = tqdm(range(epochs), desc=f"seed {seed}, {title(name, sparsity):<16}", unit="epoch")
    for _ in bar:
        correct = 0
        for batch in torch.randperm(len(labels), generator=generator).split(BATCH)[:batches]:
            x_seq, y = over_time(shift(images[batch], generator)), labels[batch]
            functional.reset_net(model)
            output = model(x_seq).mean(0)
            loss = F.cross_entropy(output, y, label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            correct += (output.argmax(1) == y).sum().item()
        reached = 0.0 if name == "dense" else model.sparsity()["total"]
        bar.set_postfix_str(
            f"train accuracy {correct / (batches * BATCH):.1%}, sparsity {reached:.1%}"
        )
    return model


@torch.no_grad()
def accuracy_of(net, images, labels):
    """Return the accuracy in percent."""
    net.eval()
    functional.reset_net(net)
    output = net(over_time(images)).mean(0)
    return round(100 * (output.argmax(1) == labels).sum().item() / len(labels), 4)


def save_and_test(model, images, labels, path):
    """Save the trained network; return what a stock one loads, and the test accuracy of both."""
    net = model
    if isinstance(model, sj_prune.PruningWrapper):
        # Back to stock neurons, zeros burnt in. On a copy, for the plots need the wrapper still.
        net = copy.deepcopy(model).finalize()
    sj_prune.save(path, net.state_dict())
    stock = build_network()
    stock.load_state_dict(torch.load(path, weights_only=True), strict=True)
    accuracy, loaded = (accuracy_of(n, images, labels) for n in (net, stock))
    assert loaded == accuracy, f"{path}: {loaded} % once loaded, {accuracy} % before"
    return stock, accuracy


# ---- results -------------------------------------------------------------------------------------


def title(name, sparsity):
    return name if name == "dense" else f"{name} {sparsity:.0%}"


def operations(model, x_seq):
    """Return sparsity and operations per image: with all weights => with those that are not 0."""
    if isinstance(model, sj_prune.PruningWrapper):
        totals = model.report(x_seq).totals
    else:
        layers = cost.measure(model, x_seq).values()
        keys = ("synops_dense", "synops", "macs_dense", "macs")
        totals = {"sparsity": 0.0} | {key: sum(getattr(c, key) for c in layers) for key in keys}
    return {
        "sparsity_reached": totals["sparsity"],
        "synops_before": round(totals["synops_dense"]),
        "synops_after": round(totals["synops"]),
        "analog_macs_before": round(totals["macs_dense"]),
        "analog_macs_after": round(totals["macs"]),
    }


# A shell that ends by this command hands down what its other commands took.
INHERITED = sum(os.times()[2:4])


def cpu_seconds():
    """Return the processor time of this process and of the compilers that it called."""
    return sum(os.times()[:4]) - INHERITED


@torch.no_grad()
def milliseconds(net, x_seq, turns=7, calls=10):
    """Return the processor time of an image: by SpikingJelly, and deployed."""
    image = x_seq[:, :1].contiguous()
    try:
        fast = sj_prune.deploy(net, x_seq[:, :16].contiguous(), threads=1)
    except RuntimeError as error:
        print(f"Not deployed: {error}")
        return {"ms_spikingjelly": "", "ms_deployed": ""}

    def stock(image):
        functional.reset_net(net)
        return net(image)

    times = {"ms_spikingjelly": [], "ms_deployed": []}
    for _ in range(turns):  # in turns, so that both meet the same machine
        for run, found in zip((stock, fast), times.values(), strict=True):
            run(image)  # what the other one left in the caches is not its fault
            start = time.process_time()
            for _ in range(calls):
                run(image)
            found.append(1e3 * (time.process_time() - start) / calls)
    return {name: round(statistics.median(found), 4) for name, found in times.items()}


def environment(threads):
    """Return the columns that say where a number comes from."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or "unknown",
        "device": f"cpu {platform.machine()} x{threads}",
        "sj_prune": sj_prune.__version__,
        "torch": torch.__version__,
        "spikingjelly": version("spikingjelly"),
        "python": platform.python_version(),
    }


def of_rows(rows):
    """Return the rows of each method and sparsity, all seeds, in the order of the rows."""
    groups = {}
    for row in rows:
        groups.setdefault((row["method"], float(row["sparsity"])), []).append(row)
    return groups


def markdown_table(rows):
    """Return the means over seeds of the rows of results.csv, in the order of the rows."""
    table = []
    for (name, _), group in of_rows(rows).items():

        def mean(key, group=group):
            found = [float(row[key]) for row in group if row[key] != ""]
            return statistics.mean(found) if found else math.nan

        accuracies = [float(row["accuracy"]) for row in group]
        spread = f" ({min(accuracies):.2f} to {max(accuracies):.2f})" if len(group) > 1 else ""
        dense = name == "dense"
        synops = [f"{mean(f'synops_{when}') / 1e6:.2f} M" for when in ("before", "after")]
        table.append(
            [
                name,
                "-" if dense else f"{100 * mean('sparsity_reached'):.2f} %",
                f"{mean('accuracy'):.2f} %{spread}",
                synops[1] if dense else " => ".join(synops),
                f"{mean('ms_spikingjelly'):.2f} => {mean('ms_deployed'):.2f} ms",
                f"{mean('cpu_seconds'):.0f}",
            ]
        )
    headers = ["method", "sparsity", "test accuracy", "SynOps an image", "deployed", "CPU s"]
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def overview(rows):
    """Draw what pruning costs and what it saves: accuracy over SynOps, and time of an image."""
    points, times = {}, {}
    for (name, sparsity), group in of_rows(rows).items():
        label = f"{sparsity:.0%}" if sparsity else ""
        found = [(float(r["synops_after"]) / 1e6, float(r["accuracy"])) for r in group]
        points.setdefault(name, {})[label] = found
        if not sparsity:
            times["dense,\nSpikingJelly"] = [float(r["ms_spikingjelly"] or 0) for r in group]
        times[f"{name},\n{label or 'deployed'}"] = [float(r["ms_deployed"] or 0) for r in group]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    plots.accuracy_over_cost(points, "million SynOps an image (log scale)", ax=left)
    # One test image is 0.22 points: an axis of a point or two would show noise as a difference.
    left.set_ylim(min(left.get_ylim()[0], 95), 100.4)
    left.set_title(f"digits, mean and range of seeds: {len({r['seed'] for r in rows})}")

    means = [statistics.mean(found) for found in times.values()]
    ends = [(m - min(v), max(v) - m) for m, v in zip(means, times.values(), strict=True)]
    colors = ["#999999"] + ["#0072B2"] * (len(means) - 1)
    bars = right.barh(list(times), means, 0.7, xerr=list(zip(*ends, strict=True)), color=colors)
    right.bar_label(bars, fmt="%.2f", padding=4)
    right.margins(x=0.15)
    right.invert_yaxis()
    right.set_title("one image, one thread; blue: sj_prune.deploy")
    right.set_xlabel("processor time (ms)")
    return figure


def write_plots(rows, models, x_seq, out):
    """Draw the costs of all rows, and how the pruned networks of one seed came about."""
    figures = {
        "overview": overview(rows),
        "density": plots.density_per_layer(models, log=True)[0],
        "criticality": plots.criticality_histogram(models["Criticality 95%"], x_seq)[0],
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=110)
        pyplot.close(figure)


def positive(text):
    """Return the integer that an option is given, or let argparse refuse it."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"Expected at least 1 but got {text}")
    return int(text)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=positive, default=EPOCHS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    images, labels, test_images, test_labels = load_data()
    if args.quick:
        args.epochs, images, labels = QUICK_EPOCHS, images[:QUICK_IMAGES], labels[:QUICK_IMAGES]
    x_seq = over_time(test_images)

    rows, models, where = [], {}, environment(args.threads)
    for seed in args.seeds:
        for name, sparsity in RUNS:
            start = cpu_seconds()
            model = train(name, sparsity, seed, images, labels, args.epochs)
            row = {"seed": seed, "method": name, "sparsity": sparsity, "epochs": args.epochs}
            row |= {"cpu_seconds": round(cpu_seconds() - start, 2)}
            path = args.out / f"{name.lower()}_{sparsity:g}_seed{seed}.pt"
            net, accuracy = save_and_test(model, test_images, test_labels, path)
            row |= {"accuracy": accuracy, **operations(model, x_seq)}
            print(f"{title(name, sparsity)}: {accuracy:.2f} % of the test images", end="")
            print(f", {row['synops_after'] / 1e6:.2f} M SynOps an image", flush=True)
            row |= milliseconds(net, x_seq)
            rows.append(row | {"at_cpu_second": round(cpu_seconds(), 2)} | where)
            if name != "dense" and seed == args.seeds[0]:
                models[title(name, sparsity)] = model
    with (args.out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (args.out / "results.md").write_text(markdown_table(rows) + "\n", encoding="utf-8")
    write_plots(rows, models, x_seq, args.out)

    pruned = [row for row in rows if row["method"] != "dense" and row["seed"] == args.seeds[0]]
    best = max(pruned, key=lambda row: (row["accuracy"], row["sparsity"]))
    name = title(best["method"], best["sparsity"])
    print(f"\nThe most accurate pruned network of seed {best['seed']}, {name}:\n")
    print(models[name].report(x_seq))
    print("\nEvery checkpoint loads into a stock SpikingJelly network (strict=True) and tests the")
    print(f"same there; this one at {best['accuracy']:.2f} %.\n")
    print(markdown_table(rows))
    print(f"\nTable, rows, plots and checkpoints are in {args.out}.", end=" ")
    print(f"{cpu_seconds():.0f} CPU seconds.")


if __name__ == "__main__":
    main()
