"""Which units are pruned: masks by name, counts, and what that means for layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor

from sj_prune.masks.scopes import Scope
from sj_prune.masks.select import count


class Masks(Mapping[str, Tensor]):
    """Masks by name: a read-only mapping of copies, True = kept.

    Args:
        scopes: what is ranked: units and the layers that they span.

    Attributes:
        uncounted: scopes that are whole and that nothing scores: as if they had been skipped.
        idle: names of the scopes that are neither ranked nor counted: no layer of theirs has run.
    """

    def __init__(self, scopes: Iterable[Scope] = ()) -> None:
        self.idle: frozenset[str] = frozenset()
        self._scopes = {scope.name: scope for scope in scopes}
        self._alive = {scope.name: scope.whole() for scope in self._scopes.values()}
        #: how often masks have been replaced
        self.changes = 0
        self.uncounted: frozenset[str] = frozenset()
        self._masked: dict[str, list[Scope]] = {}
        self._layers: dict[str, list[Scope]] = {}
        for scope in self._scopes.values():
            for name in scope.masked:
                self._masked.setdefault(name, []).append(scope)
            for name in scope.layers:
                self._layers.setdefault(name, []).append(scope)

    # ---- masks by name -------------------------------------------------------------------------

    def _mask(self, name: str, scopes: Iterable[Scope], alive: Callable[[str], Tensor]) -> Tensor:
        """Return what scopes keep of a layer or norm, where its parameter is."""
        found = None
        for scope in scopes:
            found = scope.spread(name, alive(scope.name), found)
        assert found is not None  # noqa: S101 (every name has a scope)
        return found

    def _replace(self, scope: str, mask: Tensor) -> None:
        """Take over a copy of a scope's new mask."""
        self._alive[scope] = self._scopes[scope].placed(mask).clone()
        self.changes += 1

    def pruned(self, name: str) -> Tensor:
        """Return the inverted mask of a name, on its parameter's device."""
        return ~self._mask(name, self._masked[name], self.alive)

    def __getitem__(self, name: str) -> Tensor:
        """Return a copy of one mask."""
        if name not in self._masked:
            raise KeyError(f"Expected a name with a mask among {list(self)} but got {name!r}")
        return self._mask(name, self._masked[name], self.alive).clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._masked)

    def __len__(self) -> int:
        return len(self._masked)

    @property
    def masks(self) -> dict[str, Tensor]:
        """All masks by name, copies."""
        return {name: self[name] for name in self}

    def kept(self) -> dict[str, int]:
        """Return how much each name keeps: weights, or channels."""
        return self._kept()[0]

    def _kept(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return what each name keeps, and its size."""
        masks = {n: self._mask(n, scopes, self.alive) for n, scopes in self._masked.items()}
        sizes = {name: mask.numel() for name, mask in masks.items()}
        return dict(zip(masks, count(masks.values()), strict=True)), sizes

    def sparsity(self) -> dict[str, float]:
        """Return the pruned fraction of each name; ``"total"`` counts coupled channels once."""
        kept, sizes = self._kept()
        result = {name: 1.0 - kept[name] / size for name, size in sizes.items()}
        for name in (n for n, scopes in self._masked.items() if scopes[0].sleeps):
            result[name] = (sizes[name] - kept[name]) / sizes[name]  # exact where few are pruned
        total, left = sum(self.units().values()), sum(self.kept_units().values())
        result["total"] = 1.0 - left / total if total else 0.0
        return result

    # ---- units ---------------------------------------------------------------------------------

    @property
    def scopes(self) -> dict[str, Scope]:
        """All scopes, by name."""
        return dict(self._scopes)

    @property
    def ranked(self) -> dict[str, Scope]:
        """What the plan may score, by name: all but what has not run."""
        return {name: scope for name, scope in self._scopes.items() if name not in self.idle}

    @property
    def counted(self) -> dict[str, Scope]:
        """Those that the sparsity is over, by name."""
        return {name: s for name, s in self.ranked.items() if name not in self.uncounted}

    @property
    def layers(self) -> list[str]:
        """Names of the layers whose scores are ranked, each once."""
        counted = self.counted
        return [n for n, scopes in self._layers.items() if any(s.name in counted for s in scopes)]

    def whole(self, scope: str) -> bool:
        """Tell whether all units of a scope are kept."""
        return bool(self.alive(scope).all())

    def alive(self, scope: str) -> Tensor:
        """Return which units of a scope are kept, where it keeps them; not to be written."""
        found = self._scopes[scope].placed(self._alive[scope])
        self._alive[scope] = found
        return found

    def units(self) -> dict[str, int]:
        """Return the number of units of each scope that counts."""
        return {name: scope.size for name, scope in self.counted.items()}

    def kept_units(self) -> dict[str, int]:
        """Return the number of kept units of each scope that counts."""
        return dict(zip(self.counted, count(map(self.alive, self.counted)), strict=True))

    def pruned_units(self) -> dict[str, list[int]]:
        """Return which units of channels are pruned; single weights are too many to be listed."""
        listed = [name for name, scope in self.counted.items() if scope.sleeps]
        return {name: (~self.alive(name)).nonzero().flatten().tolist() for name in listed}

    def layer_mask(self, layer: str, alive: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return a layer's mask: the weight's shape, or ``[C_out]`` for channels.

        Args:
            layer: its name.
            alive: units that are kept, by scope; by default those that are now, and the mask is
                not to be written.
        """
        return self._mask(layer, self._layers[layer], alive.__getitem__ if alive else self.alive)

    def element_masks(self) -> dict[str, Tensor]:
        """Return which weights of each layer remain, by layer name, in the weight's shape."""
        masks: dict[str, Tensor] = {}
        for name, scope in self.counted.items():
            scope.add_elements(self.alive(name), masks)
        return masks

    def widths(self) -> dict[str, tuple[int, int]]:
        """Return output channels and how many of them are kept, by layer; none for weights."""
        sleeping = {n: s for n, s in self._layers.items() if s[0].sleeps}
        masks = {layer: self.layer_mask(layer) for layer in sleeping}
        kept = count(masks.values())
        return {name: (len(m), n) for (name, m), n in zip(masks.items(), kept, strict=True)}

    def resting(self) -> list[tuple[str, Tensor]]:
        """Return neuron layers, and the channels of them that are pruned and so at rest."""
        found = (scope.resting(self.alive(name)) for name, scope in self._scopes.items())
        return [item for table in found for item in table.items()]
