"""Chips with one population of hidden neurons: Xylo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sj_prune.chips.limits import Population
from sj_prune.chips.mapping import Mapped


def population_problems(layers: Sequence[Mapped], limits: Population) -> list[str]:
    """Return what of a network of linear layers does not fit, each with a layer's name.

    All layers but the last together are the hidden population; the last is the output.
    """
    spread = [
        f"{layer.name}: it reads or makes a map, and this chip has linear layers over features "
        "alone: flatten the input before the network"
        for layer in layers
        if max(layer.shape_out[1:]) > 1 or max(layer.shape_in[1:]) > 1
    ]
    if spread:
        return spread
    first, last = layers[0], layers[-1]
    hidden = list(layers[:-1])
    named = hidden[-1].name if hidden else last.name
    found = [
        (first.name, "inputs", first.shape_in[0], limits.inputs),
        (named, "hidden neurons in all", sum(layer.neurons for layer in hidden), limits.hidden),
        (last.name, "outputs", last.neurons, limits.outputs),
    ]
    if limits.reached is not None and hidden:
        reached = int((first.fan_in > 0).sum())
        found.append((first.name, "hidden neurons that inputs reach", reached, limits.reached))
    said = [
        f"{name}: {what} {got} of at most {most}, {got - most} over"
        for name, what, got, most in found
        if got > most
    ]
    return said + _fan_out(layers, limits)


def _fan_out(layers: Sequence[Mapped], limits: Population) -> list[str]:
    """Compare what leaves hidden neurons: a layer's inputs are the neurons of the one before."""
    said, leaving = [], []
    for before, layer in zip(layers, layers[1:], strict=False):
        most = int(layer.fan_out.max())
        leaving.append(layer.fan_out.ravel())
        if most > limits.fan_out:
            said.append(
                f"{before.name}: fan-out {most} of at most {limits.fan_out}, "
                f"{most - limits.fan_out} over"
            )
    mean = float(np.concatenate(leaving).mean()) if leaving else 0.0
    if mean > limits.mean_fan_out:
        said.append(
            f"{layers[0].name}: mean fan-out of the hidden neurons {mean:.1f} of at most "
            f"{limits.mean_fan_out:g}, {100 * (mean / limits.mean_fan_out - 1):.0f} % over"
        )
    return said
