"""Cores that compute convolutions, one layer each: Speck (DYNAP-CNN)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from sj_prune.chips.limits import KI, Convolution, Core
from sj_prune.chips.mapping import Mapped


def power_of_two(n: int) -> int:
    """Return the least power of two that is not below `n`."""
    return 1 << max(n - 1, 0).bit_length()


def kernel_memory(layer: Mapped) -> int:
    """Return words of kernel memory: ``c * pow2(kx * ky) * pow2(f)``."""
    channels = layer.shape_in[0] // layer.groups
    places = layer.kernel[0] * layer.kernel[1]
    return channels * power_of_two(places) * power_of_two(layer.shape_out[0])


def neuron_memory(layer: Mapped) -> int:
    """Return words of neuron memory: ``f * pow2(h) * pow2(w)``."""
    channels, height, width = layer.shape_out
    return channels * power_of_two(height) * power_of_two(width)


def speck_problems(layers: Sequence[Mapped], limits: Convolution) -> list[str]:
    """Return what of the layers' shapes the cores do not take, each with the layer's name."""
    found = []
    for layer in layers:
        for what, got, most in (
            ("kernel", max(layer.kernel), limits.kernel),
            ("padding", max(layer.padding), limits.padding),
            ("map", max(layer.shape_out[1:]), limits.map),
            ("input channels", layer.shape_in[0], limits.channels),
            ("output channels", layer.shape_out[0], limits.channels),
            ("biases", layer.shape_out[0] * layer.bias, limits.biases),
            ("destinations", layer.readers, limits.destinations),
        ):
            if got > most:
                found.append(f"{layer.name}: {what} {got} of at most {most}, {got - most} over")
        found += _choices(layer, limits)
        if "input" in layer.sources and max(layer.shape_in[1:]) > limits.input:
            size = max(layer.shape_in[1:])
            found.append(
                f"{layer.name}: input {size} of at most {limits.input}, {size - limits.input} over"
            )
    return found


def _choices(layer: Mapped, limits: Convolution) -> list[str]:
    found = [
        f"{layer.name}: stride {stride} is none of {limits.strides}"
        for stride in sorted(set(layer.stride) - set(limits.strides))
    ]
    if layer.pool not in limits.pools:
        found.append(f"{layer.name}: pooling by {layer.pool} is none of {limits.pools}")
    return found


def assigned(layers: Sequence[Mapped], cores: Sequence[Core]) -> tuple[dict[str, int], list[str]]:
    """Give every layer a core of its own that is large enough, as far as there are.

    Returns:
        The core of each layer by name, and for the layers without one why.
    """
    asked = [(kernel_memory(layer), neuron_memory(layer)) for layer in layers]
    room = np.array(
        [[k <= core.synapses and n <= core.neurons for core in cores] for k, n in asked], bool
    ).reshape(len(layers), len(cores))
    found = maximum_bipartite_matching(csr_array(room.astype(np.int8)), perm_type="column")
    given = {layer.name: int(i) for layer, i in zip(layers, found, strict=True) if i >= 0}
    said = [
        _missing(layer, asked[n], room[n], cores)
        for n, layer in enumerate(layers)
        if layer.name not in given
    ]
    return given, said


def _missing(layer: Mapped, asked: tuple[int, int], room: np.ndarray, cores: Sequence[Core]) -> str:
    kernel, neurons = asked
    text = f"{layer.name}: kernel memory {kernel / KI:.4g} Ki, neuron memory {neurons / KI:.4g} Ki"
    if room.any():
        taken = f"the {int(room.sum())} cores that can hold it are taken by other layers"
        return f"{text}: {taken}, one core too few"
    over = [
        f"{what} is {100 * (got / most - 1):.0f} % over the largest core's {most // KI} Ki"
        for what, got, most in (
            ("kernel memory", kernel, max(core.synapses for core in cores)),
            ("neuron memory", neurons, max(core.neurons for core in cores)),
        )
        if got > most
    ]
    return f"{text}: {' and '.join(over) or 'no core has both'}"
