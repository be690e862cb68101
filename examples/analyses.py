"""What pruning did to features, channels and robustness: two pruned networks, all analyses.

    python examples/analyses.py                            # half a minute of a processor
    python examples/analyses.py --epochs 1 --orders 2      # to see that it runs

A small convolutional network learns scikit-learn's digits. Half of the channels of each layer are
pruned in two ways, by the gamma of their norm (`NetworkSlimming`) and by what their neurons do
(`SCA`), and both results are fine-tuned. Then: how the features of a class cluster, how important
the channels become that only one of the two keeps, what a channel is worth (its Shapley value)
against the score that it is pruned by, and what noise on inputs and weights costs. Writes the
tables (results.md) and the plots to runs/analyses/.
"""

from __future__ import annotations

import argparse
import copy
from collections import OrderedDict
from functools import partial
from pathlib import Path

import quickstart
import torch
import torch.nn.functional as F
from matplotlib import pyplot
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from tqdm import tqdm

import sj_prune
from sj_prune import analysis, methods, plots
from sj_prune.masks import Uniform

# ---- settings ------------------------------------------------------------------------------------

WIDTHS = (8, 12, 16)  # of the convolutions
METHODS = {
    "NetworkSlimming": methods.NetworkSlimming(sparsity=0.5, allocation=Uniform()),
    "SCA": methods.SCA(sparsity=0.5, regrow=0.2, allocation=Uniform()),
}
EPOCHS = 8  # of the dense training, and again of each fine-tuning
BATCH = 64
LEARNING_RATE = 0.1
GAMMA_L1 = 3e-3  # in the dense training: gammas tell channels apart by it
ORDERS = 64  # of channels, for their Shapley values

# ---- network and training ------------------------------------------------------------------------


def build_network():
    layers, before = OrderedDict(), 1
    for i, width in enumerate(WIDTHS, start=1):
        layers[f"conv{i}"] = layer.Conv2d(before, width, 3, padding=1, bias=False)
        layers[f"norm{i}"] = layer.BatchNorm2d(width)
        layers[f"lif{i}"] = neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True)
        if i > 1:
            layers[f"pool{i}"] = layer.MaxPool2d(2)
        before = width
    layers["flatten"] = layer.Flatten()
    layers["classifier"] = layer.Linear(before * 2 * 2, 10)
    net = nn.Sequential(layers)
    functional.set_step_mode(net, "m")
    return net


def loader_of(images, labels):
    """Return batches ``(x_seq [T, N, 1, 8, 8], y)``, as `sj_prune.prune` takes them."""
    x_seq = quickstart.over_time(images)
    return list(zip(x_seq.split(BATCH, 1), labels.split(BATCH), strict=True))


def train(model, loader, epochs, name, gamma_l1=0.0):
    """Train a network, or a `PruningWrapper` with its masks on; yield after every epoch."""
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9)
    if isinstance(model, sj_prune.PruningWrapper):
        model.attach(optimizer)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for _ in tqdm(range(epochs), desc=name, leave=False, unit="epoch"):
        model.train()
        for i in torch.randperm(len(loader)).tolist():
            x_seq, y = loader[i]
            functional.reset_net(model)
            loss = F.cross_entropy(model(x_seq).mean(0), y)
            loss = loss + gamma_l1 * sum(norm.weight.abs().sum() for norm in norms)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield
    functional.reset_net(model)


def pruned(dense, name, loader, epochs):
    """Return a pruned copy, its masks, and its state before fine-tuning and after every epoch."""
    masks, states = {}, []

    def fine_tune(model):
        masks.update(model.masks)
        states.append(copy.deepcopy(model.net.state_dict()))
        epoch_ends = train(model, loader, epochs, name)
        states.extend(copy.deepcopy(model.net.state_dict()) for _ in epoch_ends)

    net, _ = sj_prune.prune(copy.deepcopy(dense), loader, METHODS[name], fine_tune=fine_tune)
    return net, masks, states


# ---- pictures ------------------------------------------------------------------------------------


def panels(out, name, *draw):
    """Draw pictures side by side and write them."""
    size = (6.4 if len(draw) == 1 else 4.8 * len(draw), 4.2)
    figure, axes = pyplot.subplots(1, len(draw), figsize=size, squeeze=False, layout="constrained")
    for ax, each in zip(axes[0], draw, strict=True):
        each(ax=ax)
    figure.savefig(out / f"{name}.png", dpi=110)
    pyplot.close(figure)


def write_plots(clusters, transition, values, noise, out):
    panels(
        out,
        "clusters",
        partial(plots.intra_cluster_variance, clusters),
        partial(plots.class_similarity, clusters),
    )
    panels(out, "transition", partial(plots.importance_transition, transition))
    panels(out, "shapley", *(partial(plots.shapley_values, each) for each in values.values()))
    kinds = ("inputs", "parameters")
    panels(out, "noise", *(partial(plots.accuracy_under_noise, noise, kind) for kind in kinds))


# ---- the script ----------------------------------------------------------------------------------


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--orders", type=int, default=ORDERS, help="for the Shapley values")
    parser.add_argument("--images", type=int, default=None, help="the first so many only")
    parser.add_argument("--out", type=Path, default=Path("runs/analyses"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    x, y, test_x, test_y = (part[: args.images] for part in quickstart.load_data())
    loader, test = loader_of(x, y), loader_of(test_x, test_y)

    dense = build_network()
    for _ in train(dense, loader, args.epochs, "dense", GAMMA_L1):
        pass
    found = {name: pruned(dense, name, loader, args.epochs) for name in METHODS}
    nets = {"dense": dense} | {name: net for name, (net, _, _) in found.items()}

    clusters = {name: analysis.clusters(net, loader, test) for name, net in nets.items()}
    (_, first, states), (_, second, other_states) = found.values()
    transition = analysis.transition(
        first, second, zip(states, other_states, strict=True), names=tuple(METHODS)
    )
    values = {
        name: analysis.shapley(nets[name], test, method, permutations=args.orders, batches=2)
        for name, method in METHODS.items()
    }
    noise = {name: analysis.robustness(net, test) for name, net in nets.items()}

    write_plots(clusters, transition, values, noise, args.out)
    texts = [f"## Importance transition\n\n{transition.to_markdown()}"]
    for title, results in (("Clusters", clusters), ("Shapley values", values), ("Noise", noise)):
        texts += [f"## {title}: {name}\n\n{r.to_markdown()}" for name, r in results.items()]
    (args.out / "results.md").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    print("\n\n".join(texts))
    print(f"\nresults.md and the plots are in {args.out}.")


if __name__ == "__main__":
    main()
