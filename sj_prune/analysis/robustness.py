"""How much accuracy a network loses under noise: on its inputs, on its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune._checks import check_factor, check_integer, check_steps
from sj_prune.analysis.looking import Forward, Labeled, Value, accuracy, labeled, looking, valued
from sj_prune.network.layers import weighted_layers
from sj_prune.reports.tables import table

#: what noise may be on
KINDS = ("inputs", "parameters")
_HEADERS = ("noise on", "level", "mean", "lowest", "highest")
_MEANING = (
    "Gaussian noise; level: its standard deviation over that of the inputs, or over the root mean "
    "square of a layer's nonzero weights. Weights that are 0 stay so."
)


@dataclass(frozen=True)
class NoiseLevel:
    """What noise of one level leaves.

    Attributes:
        kind: "inputs" or "parameters".
        level: standard deviation of the noise, as a fraction.
        values: accuracy (or another value) of every repeat; one without noise.
    """

    kind: str
    level: float
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over repeats."""
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class Robustness:
    """All levels of noise; `str` gives the table."""

    rows: tuple[NoiseLevel, ...]

    def __str__(self) -> str:
        return self._text(markdown=False)

    def to_markdown(self) -> str:
        """Return the same in GitHub's Markdown."""
        return self._text(markdown=True)

    def _text(self, *, markdown: bool) -> str:
        cells = [
            [row.kind, f"{row.level:g}"]
            + [f"{value:.4g}" for value in (row.mean, min(row.values), max(row.values))]
            for row in self.rows
        ]
        return "\n\n".join([table(_HEADERS, cells, markdown), _MEANING])


def robustness(
    net: nn.Module,
    loader: Iterable[Any],
    *,
    inputs: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 2.0),
    parameters: Sequence[float] = (0.0, 0.1, 0.2, 0.5, 1.0),
    repeats: int = 5,
    batches: int = 16,
    value: Value = accuracy,
    forward: Forward | None = None,
    seed: int = 0,
) -> Robustness:
    """Measure the accuracy of a network under Gaussian noise.

    On inputs, noise of `level` times the standard deviation of all inputs is added to every number
    of the first input: to each frame anew, where an image is repeated over time outside of the
    network. On parameters, noise of `level` times the root mean square of a layer's nonzero weights
    is added to these; biases and norms stay, and so do weights that are 0: a pruned synapse is not
    there. Every repeat draws one pattern, which all levels scale.

    Args:
        net: any network, wrapped or not; it is left as it is.
        loader: yields ``(x, y)`` as `sj_prune.prune` takes them, y class numbers ``[N]``; the first
            `batches` of it are held in memory.
        inputs: levels of noise on inputs; 0 is no noise, and not repeated.
        parameters: levels of noise on weights, likewise.
        repeats: patterns of noise.
        batches: how many batches to measure on.
        value: instead of accuracy, called as ``value(output, y)``, a mean over the batch.
        forward: as for `clusters`.
        seed: of the noise; the generators of torch, NumPy and Python are left as they are.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: for a negative level, batches without labels, inputs that are no floats or have
            no standard deviation, weights that are computed (parametrized).
    """
    inputs, parameters = _levels("inputs", inputs), _levels("parameters", parameters)
    check_steps("repeats", repeats)
    seed = check_integer("seed", seed, 0)
    rows = []
    with looking(net, forward) as twin:
        held = list(labeled(twin, loader, batches))
        for kind, levels in zip(KINDS, (inputs, parameters), strict=True):
            if not levels:
                continue
            noisy = _Inputs(held) if kind == "inputs" else _Weights(twin, held)
            for level in levels:
                found = []
                for repeat in range(repeats if level else 1):
                    generator = torch.Generator().manual_seed(seed * repeats + repeat)
                    with noisy.shaken(level, generator) as given:
                        found.append(valued(twin, given, value))
                rows.append(NoiseLevel(kind, float(level), tuple(found)))
    return Robustness(tuple(rows))


def _levels(name: str, levels: object) -> tuple[float, ...]:
    if not isinstance(levels, Iterable):
        raise TypeError(
            f"Expected {name} to be levels of noise but got {levels!r}: give (0.0, 0.5)"
        )
    found = tuple(levels)
    for level in found:
        check_factor(f"a level of {name}", level)
    return found


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal noise, the same on every device."""
    return torch.randn(like.shape, generator=generator, device="cpu").to(like)


class _Inputs:
    """Batches whose first input is shaken."""

    def __init__(self, held: list[Labeled]) -> None:
        first = [args[0] for args, _ in held]
        if not all(isinstance(x, Tensor) and x.is_floating_point() for x in first):
            raise ValueError(
                "Expected the first input of every batch to be a tensor of floats, to add noise "
                f"to, but got {getattr(first[0], 'dtype', type(first[0]).__name__)}: let the "
                "loader yield x.float(), or give inputs=()"
            )
        self.held = held
        numbers = torch.cat([x.flatten() for x in first])
        # Of one number torch warns, and gives nan.
        self.deviation = numbers.std() if len(numbers) > 1 else torch.tensor(torch.nan)
        if not self.deviation.isfinite():
            raise ValueError(
                "Expected inputs with a finite standard deviation, to scale noise by, but that of "
                f"{len(numbers)} numbers is {float(self.deviation)}: give more or other data, or "
                "inputs=()"
            )

    @contextmanager
    def shaken(self, level: float, generator: torch.Generator) -> Iterator[list[Labeled]]:
        scale = level * self.deviation
        yield [
            ((args[0] + scale * _noise(args[0], generator), *args[1:]), y) for args, y in self.held
        ]


class _Weights:
    """A network whose nonzero weights are shaken, for a while."""

    def __init__(self, net: nn.Module, held: list[Labeled]) -> None:
        found = {n: each._parameters.get("weight") for n, each in weighted_layers(net).items()}
        if computed := [name for name, weight in found.items() if weight is None]:
            raise ValueError(
                "Expected weights that are parameters, to add noise to, but those of "
                f"{computed[:3]} are computed: remove the parametrization, or give parameters=()"
            )
        self.weights = [weight for weight in found.values() if weight is not None]
        self.held = held

    @contextmanager
    def shaken(self, level: float, generator: torch.Generator) -> Iterator[list[Labeled]]:
        before = [weight.clone() for weight in self.weights]
        for weight in self.weights:
            there = weight != 0
            scale = level * weight.square().sum().div(there.sum().clamp(min=1)).sqrt()
            weight.add_(scale * _noise(weight, generator) * there)
        yield self.held
        for weight, value in zip(self.weights, before, strict=True):
            weight.copy_(value)
