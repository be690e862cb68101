"""Draw the four pictures of docs/concepts.md from a run of a tiny network.

python benchmarks/concepts.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from matplotlib.colors import ListedColormap
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import sj_prune
from sj_prune.masks import Cubic
from sj_prune.methods import GraNet

OUT = Path(__file__).parent.parent / "docs" / "concepts"
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#E69F00", "#009E73", "#BBBBBB"  # Okabe and Ito
T = 8


def build() -> nn.Sequential:
    net = nn.Sequential(
        layer.Linear(12, 16, bias=False),
        neuron.LIFNode(surrogate_function=surrogate.ATan()),
        layer.Linear(16, 16, bias=False),
        neuron.LIFNode(surrogate_function=surrogate.ATan()),
        layer.Linear(16, 4, bias=False),
    )
    functional.set_step_mode(net, "m")
    return net


def save(fig: pyplot.Figure, name: str) -> None:
    fig.savefig(OUT / f"{name}.svg", metadata={"Date": None})
    pyplot.close(fig)


def sense() -> None:
    """One neuron's potential and the surrogate derivative there, step by step."""
    net = sj_prune.to_recording(build())
    node = net[1]
    node.trace = True
    net(2.5 * torch.rand(T, 1, 12))
    chosen = int((node.g_seq[:, 0].mean(0)).argmax())
    charge, slope = node.h_seq[:, 0, chosen].detach(), node.g_seq[:, 0, chosen].detach()
    fig, (top, below) = pyplot.subplots(2, 1, figsize=(7, 4), sharex=True, layout="constrained")
    steps = range(1, T + 1)
    top.plot(steps, charge, "o-", color=BLUE, label="potential before a spike, H")
    top.axhline(1, color="black", ls="--", lw=1, label="threshold")
    fired = [t for t, h in zip(steps, charge, strict=True) if h >= 1]
    top.plot(fired, [float(charge.max()) * 1.15] * len(fired), "|", ms=16, mew=2, color=ORANGE)
    top.plot([], [], "|", ms=10, mew=2, color=ORANGE, label="spike")
    top.set_ylim(top=float(charge.max()) * 1.25)  # or the marks of spikes are cut off
    top.set_ylabel("potential")
    top.legend(loc="upper left", bbox_to_anchor=(1, 1))
    below.bar(steps, slope, color=GREEN, width=0.5)
    below.axhline(float(slope.mean()), color="black", lw=1, label="its mean over time: criticality")
    below.set(xlabel="time step", ylabel="surrogate derivative\nat H - threshold")
    below.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save(fig, "sense")


def trained(updates: int = 8) -> tuple[nn.Module, list[torch.Tensor]]:
    """Return the network after a short training, and masks of its middle layer."""
    net = build()
    method = GraNet(sparsity=0.8, regrow=0.4, interval=4, end=4 * updates)
    model = sj_prune.PruningWrapper(net, method)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.attach(optimizer)
    x_seq, y = 2.5 * torch.rand(T, 32, 12), torch.arange(32) % 4
    masks = []
    for step in range(4 * updates):
        functional.reset_net(model)
        loss = F.cross_entropy(model(x_seq).mean(0), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 4 == 3:
            masks.append(model.masks["2"].clone())
    return model.finalize(), masks


def decide(net: nn.Module) -> None:
    """What a plan says of every weight: the smallest go, those of critical neurons come back."""
    magnitude = torch.rand(40, generator=torch.Generator().manual_seed(3)).sort().values
    criticality = torch.rand(40, generator=torch.Generator().manual_seed(5))
    grown = criticality[:26].topk(5).indices
    fig, axes = pyplot.subplots(1, 3, figsize=(10, 3), layout="constrained", width_ratios=(3, 3, 2))
    colors = [GRAY if i < 26 else BLUE for i in range(40)]
    axes[0].bar(range(40), magnitude, color=colors)
    axes[0].set(title="1. drop score: the lowest go", xlabel="weights", ylabel="magnitude")
    colors = [ORANGE if i in grown else GRAY for i in range(26)]
    axes[1].bar(range(26), criticality[:26], color=colors)
    axes[1].set(title="2. growth score: the highest come back", xlabel="weights that are pruned")
    axes[1].set_ylabel("criticality")
    schedule = Cubic(final=0.95, interval=500, begin=0, end=10_000)
    steps = list(range(0, 10_001, 500))
    axes[2].step(steps, [schedule.at(s) for s in steps], where="post", color=GREEN)
    axes[2].set(title="3. schedule: how many", xlabel="optimizer step", ylabel="sparsity")
    save(fig, "decide")


def act(masks: list[torch.Tensor]) -> None:
    """Kept, pruned and regrown weights of one layer after each update."""
    flat = torch.stack([mask.flatten() for mask in masks])[:, :96].long()
    regrown = (flat[1:] == 1) & (flat[:-1] == 0)
    flat[1:][regrown] = 2
    fig, ax = pyplot.subplots(figsize=(10, 2.6), layout="constrained")
    colors = ListedColormap(["white", BLUE, ORANGE])
    ax.pcolormesh(flat, cmap=colors, vmin=0, vmax=2, edgecolors="#DDDDDD", lw=0.3)
    ax.invert_yaxis()
    ax.set(xlabel="96 weights of a layer", ylabel="update", yticks=[0.5, 3.5, 6.5], xlim=(0, 96))
    ax.set_yticklabels(["1", "4", "7"])
    for color, text in ((BLUE, "kept"), (ORANGE, "has come back"), ("white", "pruned: exactly 0")):
        ax.bar(0, 0, color=color, edgecolor="#888888", label=text)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save(fig, "act")


def deploy(net: nn.Module) -> None:
    """A pruned layer as its weights that are left, and spikes as bits of one byte a neuron."""
    weight = net[2].weight.detach()
    sj_prune.to_recording(net)
    functional.reset_net(net)
    spikes = net[:2](2.5 * torch.rand(T, 1, 12))[:, 0].detach().T
    rows, columns = weight.nonzero(as_tuple=True)
    fig, axes = pyplot.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    axes[0].pcolormesh(weight != 0, cmap=ListedColormap(["white", BLUE]), edgecolors="#DDDDDD")
    axes[0].set(title="weights under a mask", xlabel="input", ylabel="output", aspect="equal")
    axes[1].scatter(range(len(rows)), columns, c=rows, cmap="viridis", s=14)
    axes[1].set(title="the list that is left", xlabel="weight, by output (color)", ylabel="input")
    axes[2].pcolormesh(spikes, cmap=ListedColormap(["white", ORANGE]), edgecolors="#DDDDDD")
    axes[2].set(title="spikes: one byte a neuron", xlabel="time step = bit", ylabel="input neuron")
    for ax in (axes[0], axes[2]):
        ax.invert_yaxis()
    save(fig, "deploy")


def main() -> None:
    torch.manual_seed(0)
    pyplot.rcParams["svg.hashsalt"] = "sj_prune"
    OUT.mkdir(exist_ok=True)
    sense()
    net, masks = trained()
    decide(net)
    act(masks)
    deploy(net)


if __name__ == "__main__":
    main()
