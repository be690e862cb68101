"""The statistics of one pass in plain torch: what every engine's reductions are tested against."""

from __future__ import annotations

import torch

from sj_prune.neurons.activity import STATISTICS

_CRITICALITY = ("criticality_mean", "criticality_max")


class Sums:
    """Per-neuron sums over time of the wanted statistics, reduced to ``[N, C]`` each at the end.

    Args:
        names: the statistics to reduce, a subset of `STATISTICS`.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = tuple(name for name in STATISTICS if name in names)
        self.totals: dict[str, torch.Tensor] = {}

    @property
    def wants_derivative(self) -> bool:
        """Whether `step` needs `g'`."""
        return any(name in self.names for name in _CRITICALITY)

    def _add(self, key: str, value: torch.Tensor) -> None:
        total = self.totals.get(key)
        self.totals[key] = value.clone() if total is None else total.add_(value)

    def step(
        self, s: torch.Tensor, v: torch.Tensor, h: torch.Tensor, g: torch.Tensor | None
    ) -> None:
        """Add one step: spikes, `V` after the reset, `H`, and `g'` where it is wanted."""
        if "firing_rate" in self.names:
            self._add("firing_rate", s)
        if "abs_potential" in self.names:
            self._add("abs_potential", v.abs())
        if "abs_charge" in self.names:
            self._add("abs_charge", h.abs())
        if g is not None and self.wants_derivative:
            self._add("criticality", g)

    def partials(self, steps: int) -> list[torch.Tensor]:
        """Return one ``[N, C]`` tensor per name."""
        reduced = []
        for name in self.names:
            total = self.totals["criticality" if name in _CRITICALITY else name] / steps
            # [N] has one channel; [N, C] and [N, C, *] have C of them with a map of size >= 1.
            per_map = total.reshape(total.shape[0], total.shape[1] if total.ndim > 1 else 1, -1)
            reduced.append(per_map.amax(-1) if name == "criticality_max" else per_map.mean(-1))
        return reduced
