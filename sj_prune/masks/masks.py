"""Which units are pruned: masks by name, counts, and what that means for layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from sj_prune.masks.scopes import Scope
from sj_prune.masks.select import count


class Masks(Mapping[str, Tensor]):
    """Masks by name: a read-only mapping of copies, True = kept.

    Args:
        scopes: what is ranked: units and the layers that they span.

    Attributes:
        idle: names of the scopes that are neither ranked nor counted: no layer of theirs has run.
    """

    def __init__(self, scopes: Iterable[Scope] = ()) -> None:
        self.idle: frozenset[str] = frozenset()
        self._scopes = {scope.name: scope for scope in scopes}
        # Stored inverted: what is applied at every step is "fill where pruned".
        self._pruned = {scope.name: scope.none() for scope in self._scopes.values()}
        self._masked: dict[str, list[Scope]] = {}
        self._layers: dict[str, list[Scope]] = {}
        for scope in self._scopes.values():
            for name in scope.masked:
                self._masked.setdefault(name, []).append(scope)
            for name in scope.layers:
                self._layers.setdefault(name, []).append(scope)

    # ---- masks by name -------------------------------------------------------------------------

    def _units(self, scope: str) -> Tensor:
        """Return which units of a scope are pruned, itself, where the scope keeps them."""
        found = self._scopes[scope].placed(self._pruned[scope])
        self._pruned[scope] = found
        return found

    def pruned(self, name: str) -> Tensor:
        """Return the inverted mask of a name, on its parameter's device; not to be written."""
        found = None
        for scope in self._masked[name]:
            found = scope.spread(name, self._units(scope.name), found)
        assert found is not None  # noqa: S101 (every name has a scope)
        return found

    def __getitem__(self, name: str) -> Tensor:
        """Return a copy of one mask."""
        if name not in self._masked:
            raise KeyError(f"Expected a name with a mask among {list(self)} but got {name!r}")
        return ~self.pruned(name)

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
        pruned = {name: self.pruned(name) for name in self}
        sizes = {name: mask.numel() for name, mask in pruned.items()}
        numbers = zip(sizes.items(), count(list(pruned.values())), strict=True)
        return {name: size - number for (name, size), number in numbers}, sizes

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
        """What is ranked and counted, by name."""
        return {name: scope for name, scope in self._scopes.items() if name not in self.idle}

    @property
    def layers(self) -> list[str]:
        """Names of the layers whose scores are ranked, each once."""
        return list(self._layers)

    def alive(self, scope: str) -> Tensor:
        """Return which units of a scope are kept."""
        return ~self._units(scope)

    def units(self) -> dict[str, int]:
        """Return the number of units of each scope that is counted."""
        return {name: scope.size for name, scope in self.ranked.items()}

    def kept_units(self) -> dict[str, int]:
        """Return the number of kept units of each scope that is counted."""
        numbers = count([self._units(name) for name in self.ranked])
        return {n: size - p for (n, size), p in zip(self.units().items(), numbers, strict=True)}

    def pruned_units(self) -> dict[str, list[int]]:
        """Return which units of channels are pruned; single weights are too many to be listed."""
        listed = [name for name, scope in self._scopes.items() if scope.sleeps]
        return {name: self._units(name).nonzero().flatten().tolist() for name in listed}

    def layer_mask(self, layer: str) -> Tensor:
        """Return the mask of a layer: the weight's shape, or ``[C_out]`` for channels."""
        return ~self.layer_units(layer, {name: self._units(name) for name in self._scopes})

    def layer_units(self, layer: str, units: Mapping[str, Tensor]) -> Tensor:
        """Return what is true of scopes' units for a layer, in the shape of its mask."""
        found = None
        for scope in self._layers[layer]:
            found = scope.spread(layer, units[scope.name], found)
        assert found is not None  # noqa: S101 (every layer has a scope)
        return found

    def element_masks(self) -> dict[str, Tensor]:
        """Return which weights of each layer remain, by layer name, in the weight's shape."""
        masks: dict[str, Tensor] = {}
        for name, scope in self._scopes.items():
            scope.add_elements(self._units(name), masks)
        return masks

    def widths(self) -> dict[str, tuple[int, int]]:
        """Return output channels and how many of them are kept, by layer; none for weights."""
        sleeping = {n: s for n, s in self._layers.items() if s[0].sleeps}
        masks = {layer: self.layer_mask(layer) for layer in sleeping}
        kept = count(list(masks.values()))
        return {name: (len(m), n) for (name, m), n in zip(masks.items(), kept, strict=True)}

    def resting(self) -> list[tuple[str, Tensor]]:
        """Return neuron layers, and the channels of them that are pruned and so at rest."""
        found = (scope.resting(self._units(name)) for name, scope in self._scopes.items())
        return [item for table in found for item in table.items()]
