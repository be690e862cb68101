"""Plots of what neurons do: a statistic of every channel, spikes over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import OutOfMemoryError, Tensor, nn

from sj_prune import _host
from sj_prune._checks import check_integer
from sj_prune.deploy.leaves import single_step
from sj_prune.network.inputs import as_args
from sj_prune.network.unheard import unheard
from sj_prune.plots.axes import COLORS, axes
from sj_prune.plots.given import Channels, channel_values, finite_values, named
from sj_prune.run.looks import applied
from sj_prune.wrapper import PruningWrapper

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: statistic -> its name and unit
_LABELS = {
    "firing_rate": "firing rate (spikes a time step)",
    "criticality_max": "criticality (1 / potential)",
}


def channel_map(
    networks: Mapping[str, Channels],
    example_input: Any = None,  # noqa: ANN401
    ax: Axes | None = None,
    *,
    statistic: str = "firing_rate",
) -> tuple[Figure, Axes]:
    """Draw a statistic of every channel as a color, a strip a layer and network.

    The channels of a layer fill its width, in each network in the order of the first one's values:
    where a strip is not smooth, pruning has changed which channels do the work. Values of 0 (a
    channel that never fires) are gray.

    Args:
        networks: name -> wrapper, or one value a channel by layer name, ``[C]`` each; of one width.
        example_input: what wrappers measure `statistic` on, in eval mode; without it they give
            what their neurons have recorded since the last mask update.
        ax: where to draw; a new figure by default.
        statistic: a name of `sj_prune.neurons.STATISTICS`; with values only the label.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there is nothing to draw, values are NaN or infinite, or the widths of
            networks differ.
    """
    found = {
        name: channel_values(given, example_input, statistic, f"networks[{name!r}]")
        for name, given in named("networks", networks).items()
    }
    first = next(iter(found.values()), {})
    if not first:
        raise ValueError(
            f"Expected values of {statistic} to draw but got none from networks: see example_input"
        )
    for name, values in found.items():
        shapes = [{layer: len(v) for layer, v in each.items()} for each in (values, first)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Expected the layers and widths {shapes[1]} of the first network but {name!r} has "
                f"{shapes[0]}"
            )
    fig, ax = axes(ax, height=0.9 + 0.24 * len(found) * len(first) + 0.1 * len(first))
    image = _draw_strips(ax, found)
    fig.colorbar(image, ax=ax, label=_LABELS.get(statistic, statistic), pad=0.02)
    ax.set_xlabel(f"channels, ordered by {next(iter(found))!r}; gray: 0")
    ax.set_ylabel("neuron layer (channels)")
    return fig, ax


def _draw_strips(ax: Axes, found: Mapping[str, Mapping[str, Tensor]]) -> Any:  # noqa: ANN401
    """Draw the strips of a layer under each other; return the last one, for the colors."""
    from matplotlib import colormaps

    first = next(iter(found.values()))
    top = max(float(v.max()) for values in found.values() for v in values.values())
    colors = colormaps["viridis"].with_extremes(bad="#cccccc")
    height, ticks, names = len(found) + 0.5, [], []
    for row, layer in enumerate(first):
        order = first[layer].argsort(descending=True, stable=True)
        for i, (name, values) in enumerate(found.items()):
            y = row * height + i
            strip = values[layer][order].double()
            cells = strip.masked_fill(strip == 0, torch.nan).unsqueeze(0).cpu().numpy()
            place = (0.0, 1.0, y + 0.95, y)
            image = ax.imshow(cells, colors, aspect="auto", vmin=0, vmax=top, extent=place)
            ticks.append(y + 0.5)
            names.append(name)
    ax.set_xlim(0, 1)
    ax.set_ylim(len(first) * height - 0.5, -0.1)
    ax.set_xticks([])
    middles = [row * height + len(found) / 2 for row in range(len(first))]
    ax.set_yticks(middles, [f"{name} ({len(values)})" for name, values in first.items()])
    if len(found) > 1:
        right = ax.secondary_yaxis("right")
        right.set_yticks(ticks, names, fontsize="small")
        right.tick_params(length=0)
    return image


def spike_raster(
    net: nn.Module,
    x_seq: Tensor,
    ax: Axes | None = None,
    *,
    sample: int = 0,
    most: int = 30,
) -> tuple[Figure, Axes]:
    """Draw when which neurons spike on one sample: input events on top, then layer by layer.

    Args:
        net: a network in multi-step mode, in which nothing changes, or a wrapper, whose masks are
            applied.
        x_seq: input ``[T, N, *]``; what is above 0 counts as an event.
        ax: where to draw; a new figure by default.
        sample: which of the N.
        most: neurons of a layer that are shown, evenly spaced: the same ones of every network.

    Raises:
        ImportError: without matplotlib.
        ValueError: if `x_seq` is no input of the network, there is no such sample, or no neuron
            layer gives a sequence ``[T, N, *]``.
    """
    check_integer("most", most, 1)
    _check_sample(x_seq, check_integer("sample", sample))
    layers = {"input": x_seq} | _spikes(net, x_seq)
    trains = {n: (v[:, sample].flatten(1) > 0).T.cpu() for n, v in layers.items()}
    if len(trains) < 2:
        raise ValueError("Expected neurons in multi-step mode, [T, N, *], but found none")
    fig, ax = axes(ax, height=1.2 + 0.75 * len(trains))
    from matplotlib.ticker import MaxNLocator

    above, ticks, names = 0, [], []
    for i, (name, train) in enumerate(trains.items()):
        shown = train[torch.linspace(0, len(train) - 1, min(most, len(train))).long()]
        neuron, step = shown.nonzero(as_tuple=True)
        color = COLORS[i % len(COLORS)] if i else "black"
        ax.hlines(neuron + above + 0.5, step - 0.4, step + 0.4, color=color, linewidth=2)
        ticks.append(above + most / 2)
        names.append(f"{name}\n{len(shown)} of {len(train):,}\nrate {train.float().mean():.3f}")
        above += most
        ax.axhline(above, color="black", linewidth=0.6)
    ax.set_ylim(above, 0)
    ax.set_xlim(-0.6, len(x_seq) - 0.4)
    ax.set_yticks(ticks, names, fontsize="small")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.set_xlabel("time step")
    return fig, ax


def _check_sample(x_seq: Tensor, sample: int) -> None:
    if x_seq.ndim < 3:
        raise ValueError(f"Expected x_seq [T, N, *] but got shape {tuple(x_seq.shape)}")
    samples = x_seq.shape[1]
    if not -samples <= sample < samples:
        raise ValueError(f"Expected sample to be one of the {samples} of x_seq but got {sample}")


def _spikes(net: nn.Module, x_seq: Tensor) -> dict[str, Tensor]:
    """Return what every neuron layer gives, ``[T, N, *]``, in eval mode from rest."""
    found: dict[str, Tensor] = {}
    if isinstance(net, PruningWrapper):
        applied(net.session)
        net = net.net
    with _host.preserved_state(net), unheard(net, listeners_only=True), torch.no_grad():
        _host.reset_net(net.eval())
        handles = [
            module.register_forward_hook(
                lambda _, __, out, name=name: found.update({name: out.clone()})  # type: ignore[misc]
            )
            for name, module in net.named_modules()
            if _host.is_neuron(module)
        ]
        try:
            net(*as_args(x_seq))
        except (MemoryError, OutOfMemoryError):
            raise
        except Exception as error:
            raise ValueError(
                "Expected x_seq to be an input [T, N, *] of the network but its forward raised "
                f"{type(error).__name__}: {error}{single_step(net)}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
    steps = x_seq.shape[:2]
    return {name: out for name, out in found.items() if out.ndim > 2 and out.shape[:2] == steps}


def filters(
    weights: Mapping[str, Tensor], ax: Axes | None = None, *, columns: int = 8
) -> tuple[Figure, Axes]:
    """Draw the kernels of a convolution, networks side by side; weights that are 0 are gray.

    Args:
        weights: name -> weight ``[C_out, C_in, kh, kw]``; the input channels of a filter lie side
            by side.
        ax: where to draw; a new figure by default.
        columns: filters in a row.

    Raises:
        ImportError: without matplotlib.
        ValueError: for something else than the weight of a 2d convolution, or for NaN.
    """
    import numpy as np

    check_integer("columns", columns, 1)
    for name, weight in named("weights", weights).items():
        if weight.ndim != 4 or not weight.numel():
            raise ValueError(
                f"Expected a weight [C_out, C_in, kh, kw] but {name!r} has {tuple(weight.shape)}"
            )
    if not weights:
        raise ValueError("Expected at least one weight to draw but got none")
    finite_values(weights, "weights")
    pictures = [_mosaic(w.detach().double().cpu().numpy(), columns) for w in weights.values()]
    height = max(len(p) for p in pictures)
    gap = np.full((height, 3), np.inf)
    blocks = [np.pad(p, ((0, height - len(p)), (0, 0)), constant_values=np.inf) for p in pictures]
    picture = np.concatenate([part for block in blocks for part in (block, gap)][:-1], 1)
    fig, ax = axes(ax, width=8.0, height=0.8 + 7.0 * height / picture.shape[1])
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgba

    top = max(float(w.detach().abs().max()) for w in weights.values()) or 1.0
    colors = ScalarMappable(Normalize(-top, top), colormaps["PuOr"])
    shades = colors.to_rgba(np.where(np.isinf(picture), 0.0, picture))
    shades[picture == 0] = to_rgba("#bbbbbb")
    shades[np.isinf(picture)] = to_rgba("white")
    ax.imshow(shades)
    middle = 0.0
    middles = []
    for block in blocks:
        middles.append(middle + block.shape[1] / 2)
        middle += block.shape[1] + 3
    ax.set_xticks(middles, [f"{n}: {w.count_nonzero():,} weights" for n, w in weights.items()])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    fig.colorbar(colors, ax=ax, label="weight; gray: 0", pad=0.02)
    return fig, ax


def _mosaic(weight: np.ndarray[Any, Any], columns: int) -> np.ndarray[Any, Any]:
    """Return filters in rows, a pixel of infinity between them."""
    import numpy as np

    flat = np.concatenate(np.moveaxis(weight, 1, 0), 2)  # [C_out, kh, C_in * kw]
    flat = np.pad(flat, ((0, -len(flat) % columns), (0, 1), (0, 1)), constant_values=np.inf)
    rows = flat.reshape(-1, columns, *flat.shape[1:])
    return np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)
