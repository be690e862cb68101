"""SBC and OBC: one-shot pruning by second order, which rewrites the weights that are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sj_prune._checks import check_factor
from sj_prune.masks.allocation import Allocation, Uniform
from sj_prune.masks.schedule import Manual
from sj_prune.methods.base import Method
from sj_prune.methods.parts import reads
from sj_prune.methods.plan import Plan
from sj_prune.methods.view import LayerView

_GRAM, _DENSE = "gram", "dense"
# Numbers of all inverses at once: 128 MiB.
_AT_ONCE = 2**24


@dataclass(frozen=True)
class RemovalLoss:
    """What a layer loses when a weight goes, in the order in which its row would lose them.

    Args:
        leak: of the membrane potential from step to step; 0: the inputs of each step by themselves.
        damp: of the Hessian, over the mean of its diagonal.
    """

    leak: float
    damp: float

    def sums(self, layer: LayerView) -> dict[str, Tensor]:
        """Return zeros for ``sum z z^T`` of each group, ``[groups, K, K]`` in float64."""
        groups = 1 if layer.fed is None else len(layer.fed)
        size = layer.weight[0].numel()
        return {_GRAM: layer.weight.new_zeros(groups, size, size, dtype=torch.float64)}

    def add(self, layer: LayerView) -> None:
        """Add ``sum over samples and steps of z[t] z[t]^T``, ``z[t] = leak z[t-1] + x[t]``."""
        if layer.fed is None:
            return
        z, total = torch.zeros((), dtype=torch.float64), layer.state[_GRAM]
        for x in layer.fed.double().unbind(1):  # [groups, places, K]
            z = self.leak * z.to(x) + x
            total = total + z.mT @ z
        layer.state[_GRAM] = total

    @reads("inputs")
    def __call__(self, layer: LayerView) -> Tensor:
        """Return the loss at which each weight goes, never falling along its row."""
        layer.state[_DENSE] = layer.weight.clone()
        weight, found = layer.weight.double().flatten(1), []
        for rows, inverse in self.blocks(layer):
            parts = weight[rows].split(max(1, _AT_ONCE // inverse.numel()))
            found += [removal_losses(part, inverse) for part in parts]
        return torch.cat(found).view_as(layer.weight)

    def rewrite(self, layer: LayerView) -> Tensor:
        """Return kept weights that make up for those that are gone: the least squares of `H`."""
        weight = layer.state[_DENSE].double().flatten(1)
        for rows, inverse in self.blocks(layer):
            gone = ~layer.mask.flatten(1)[rows]
            for row, where in zip(range(rows.start, rows.stop), gone, strict=True):
                part = torch.linalg.solve(inverse[where][:, where], weight[row][where])
                weight[row] -= inverse[:, where] @ part
                weight[row][where] = 0.0
        return weight.view(layer.weight.shape).to(layer.weight)

    def blocks(self, layer: LayerView) -> list[tuple[slice, Tensor]]:
        """Return the rows of each group, and the inverse of their damped Hessian."""
        hessians = 2 * layer.state[_GRAM]
        size, found = len(layer.weight) // len(hessians), []
        for group, hessian in enumerate(hessians):
            mean = hessian.diagonal().mean()
            damp = self.damp * (mean if mean > 0 else mean.new_ones(()))
            damped = hessian + damp * torch.eye(len(hessian)).to(hessian)
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
            found.append((slice(group * size, (group + 1) * size), inverse))
        return found


def removal_losses(weight: Tensor, inverse: Tensor) -> Tensor:
    """Return ``w_p^2 / [H^-1]_pp`` at the moment that each weight of each row is the cheapest.

    Args:
        weight: ``[rows, K]``.
        inverse: ``H^-1``, ``[K, K]``.

    Returns:
        The largest so far in the row's order, ``[rows, K]``, so that any ranking keeps the order.
    """
    w, h = weight.clone(), inverse.expand(len(weight), -1, -1).clone()
    rows, found = torch.arange(len(w), device=w.device), torch.zeros_like(w)
    alive, most = torch.ones_like(w, dtype=torch.bool), w.new_zeros(len(w))
    for _ in range(w.shape[1]):
        diagonal = h.diagonal(dim1=1, dim2=2)
        loss = torch.where(alive, w.square() / diagonal, torch.inf)
        cost, p = loss.min(1)
        most = torch.maximum(most, cost)
        found[rows, p] = most
        alive[rows, p] = False
        column, pivot = h[rows, :, p], diagonal[rows, p].unsqueeze(1).clone()
        w = w - (w[rows, p].unsqueeze(1) / pivot) * column
        h.baddbmm_(column.unsqueeze(2), (column / pivot).unsqueeze(1), alpha=-1)  # in place
        h.diagonal(dim1=1, dim2=2).masked_fill_(~alive, 1.0)  # of what is gone nothing is left
    return found


@dataclass(frozen=True, kw_only=True)
class OBC(Method):
    """Optimal brain compression (Frantar and Alistarh, NeurIPS 2022, arXiv 2208.11580), one-shot.

    Layer by layer, weights go whose loss ``w_p^2 / [H^-1]_pp`` is the least, and the others of the
    row make up for them, ``dw = -(w_p / [H^-1]_pp) H^-1_{:,p}``; ``H = 2 sum x x^T`` over samples
    and steps. For `sj_prune.prune`: all masks are chosen on inputs of the dense network; weights
    are rewritten layer by layer on inputs that those before have made. Linear layers and 2d
    convolutions; the time is that of ``K^3`` a row of `K` weights.

    Args:
        sparsity: fraction pruned, in [0, 1).
        allocation: `Uniform()`, `ERK()`; `Global()` compares losses of different layers.
        damp: added to the diagonal of `H`, over its mean.
    """

    sparsity: float = 0.5
    allocation: Allocation = Uniform()
    damp: float = 0.01

    def __post_init__(self) -> None:
        check_factor("damp", self.damp, positive=True)
        if self.structure.sleeps:
            raise ValueError(
                "Expected a structure of single weights, which the others of a row make up for, "
                f"but got {self.structure!r}: structure=Unstructured()"
            )
        super().__post_init__()

    def plan(self) -> Plan:
        """Drop by the loss of removal, and rewrite what is kept."""
        score = RemovalLoss(self._leak, self.damp)
        return self._plan(
            schedule=Manual(final=self.sparsity),
            drop=score,
            allocation=self.allocation,
            rewrite=score.rewrite,
        )

    @property
    def _leak(self) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class SBC(OBC):
    """Spiking brain compression (arXiv 2506.03996): `OBC` on what the membrane makes of inputs.

    ``H = 2 sum z z^T`` with ``z[t] = (1 - 1/tau) z[t-1] + x[t]``, the input as the leak of the
    neurons behind a layer filters it. Arguments are those of `OBC`, and

    Args:
        tau: of the LIF nodes behind the layers, above 1; None: IF nodes, which leak nothing.
    """

    tau: float | None = 2.0

    def __post_init__(self) -> None:
        if self.tau is not None:
            check_factor("tau", self.tau, positive=True)
            if self.tau <= 1:
                raise ValueError(f"Expected tau above 1, or None for IF nodes, but got {self.tau}")
        super().__post_init__()

    @property
    def _leak(self) -> float:
        return 1.0 if self.tau is None else 1.0 - 1.0 / self.tau
