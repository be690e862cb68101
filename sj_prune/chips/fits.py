"""`fits`: whether a network finds room on a chip, and where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from sj_prune.chips.limits import NAMED, Chip, Core
from sj_prune.chips.mapping import Mapped, mapped
from sj_prune.chips.population import population_problems
from sj_prune.chips.speck import assigned, speck_problems
from sj_prune.reports.tables import shape_text, table


@dataclass(frozen=True)
class Fit:
    """Whether a network fits.

    Attributes:
        ok: it does.
        table: what each layer asks for, as text.
        cores: the core, or cores, of each layer by name, where the chip has several.
        problems: in words, each with the layer's name and by how much it misses.
    """

    ok: bool
    table: str
    cores: dict[str, str]
    problems: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        said = [f"- {problem}" for problem in self.problems] or ["It fits."]
        return "\n".join([self.table, "", *said])


def fits(net: nn.Module, x_seq: Tensor, chip: Chip | str) -> Fit:
    """Tell whether a network finds room on a chip.

    Shapes, kinds and zeros are judged, not the values of `x_seq`.

    Args:
        net: a stock network in multi-step mode, as `finalize` or `compact` leaves it; not changed.
        x_seq: an input ``[T, N, *]``, or ``[N, *]`` where the network repeats still images.
        chip: limits, such as `sj_prune.chips.SPECK2F`, or their name, such as "speck2f".

    Raises:
        ValueError: for an unknown name, and (`UnsupportedError`) for a network whose graph is not
            understood, by name.
    """
    return fits_layers(mapped(net, x_seq), chip_of(chip))


def chip_of(chip: Chip | str) -> Chip:
    """Return a chip by its name, or as it is.

    Raises:
        ValueError: for an unknown name.
        TypeError: for something else.
    """
    if isinstance(chip, str):
        if chip not in NAMED:
            raise ValueError(f"Expected chip to be one of {sorted(NAMED)} but got {chip!r}")
        return NAMED[chip]
    if not isinstance(chip, Chip):
        raise TypeError(f"Expected chip to be a Chip or its name but got {type(chip).__name__}")
    return chip


def fits_layers(layers: Sequence[Mapped], chip: Chip) -> Fit:
    """Tell whether layers find room on a chip."""
    problems = [p for layer in layers for p in _kind(layer, chip, layer is layers[-1])]
    cores: dict[str, str] = {}
    if chip.convolution is not None:
        problems += speck_problems(layers, chip.convolution)
        found, missing = assigned(layers, chip.convolution.cores)
        cores = {name: _core(i, chip.convolution.cores[i]) for name, i in found.items()}
        problems += missing
    if chip.population is not None:
        problems += population_problems(layers, chip.population)
    general, counted = _general(layers, chip)
    return Fit(
        not (problems + general),
        _table(layers, chip, cores | counted),
        cores | counted,
        tuple(problems + general),
    )


def _kind(layer: Mapped, chip: Chip, last: bool) -> list[str]:
    """Return what of a layer the chip has no means for."""
    if chip.neurons is None:
        return []
    found = [f"{layer.name}: {problem}" for problem in layer.problems]
    if layer.neuron is None:
        if not last:
            found.append(f"{layer.name}: no neurons follow it: the chip sends spikes only")
    elif layer.neuron not in chip.neurons:
        kinds = ", ".join(chip.neurons)
        found.append(f"{layer.name}: {layer.neuron} neurons, and the chip has {kinds} alone")
    return found


def _core(number: int, core: Core) -> str:
    return f"{number} ({core.synapses // 1024}/{core.neurons // 1024} Ki)"


def _general(layers: Sequence[Mapped], chip: Chip) -> tuple[list[str], dict[str, str]]:
    """Return problems with limits of fans and cores of one size, and how many cores are used."""
    problems = []
    for layer in layers:
        for name, found, most in (
            ("fan-in", layer.fan_in.max(), chip.fan_in),
            ("fan-out", layer.fan_out.max(), chip.fan_out),
            ("mean fan-in", layer.fan_in.mean(), chip.mean_fan_in),
            ("mean fan-out", layer.fan_out.mean(), chip.mean_fan_out),
        ):
            if most is not None and found > most:
                problems.append(_over(layer.name, name, float(found), most))
    per_core = (chip.neurons_per_core, chip.synapses_per_core)
    if per_core == (None, None):
        return problems, {}
    used = {layer.name: cores_of(layer, *per_core) for layer in layers}
    for layer in layers:
        if chip.synapses_per_core is not None and layer.fan_in.max() > chip.synapses_per_core:
            most, found = chip.synapses_per_core, float(layer.fan_in.max())
            problems.append(_over(layer.name, "synapses of one neuron on one core", found, most))
    total = sum(used.values())
    if chip.cores is not None and total > chip.cores:
        largest = max(used, key=lambda name: used[name])
        problems.append(
            f"the network needs {total} cores of {chip.cores}, {total - chip.cores} too many; "
            f"{largest} alone {used[largest]}"
        )
    return problems, {name: str(count) for name, count in used.items()}


def cores_of(layer: Mapped, neurons: int | None, synapses: int | None) -> int:
    """Return how many cores of one size a layer is cut into; neurons are not cut."""
    if synapses is None:
        return -(-layer.neurons // (neurons or 1))
    count, left_synapses, left_neurons = 0, 0, 0
    for fan in np.sort(layer.fan_in.ravel())[::-1].tolist():
        if left_neurons < 1 or left_synapses < fan:
            count, left_synapses, left_neurons = count + 1, synapses, neurons or layer.neurons
        left_synapses, left_neurons = left_synapses - fan, left_neurons - 1
    return count


def _over(name: str, what: str, found: float, most: float) -> str:
    over = 100 * (found / most - 1)
    return f"{name}: {what} {found:,.6g} of at most {most:,.6g}, {over:.0f} % over"


def _table(layers: Sequence[Mapped], chip: Chip, cores: dict[str, str]) -> str:
    headers = ("layer", "reads", "neurons", "kernel", "synapses", "fan-in", "fan-out", "memory")
    bits = chip.bits or 32
    rows = [
        (
            layer.name,
            shape_text(layer.shape_in),
            f"{shape_text(layer.shape_out)} {layer.neuron or ''}".strip(),
            shape_text(layer.kernel),
            f"{layer.synapses:,}",
            f"{layer.fan_in.mean():.1f} (<= {layer.fan_in.max()})",
            f"{layer.fan_out.mean():.1f} (<= {layer.fan_out.max()})",
            f"{layer.weights * bits / 8192:.1f} KiB",
            cores.get(layer.name, ""),
        )
        for layer in layers
    ]
    said = f"{chip.name}; memory of kernels with {bits} bits a weight, zeros too"
    return f"{said}\n{table((*headers, 'core'), rows, markdown=False)}"
