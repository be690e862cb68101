"""The autograd graph walked back from a tensor to the layers that made it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

# Graph nodes through which a weight may pass before its layer uses it (casts, transposes, views).
_NAMES = (
    "T Transpose ToCopy Permute View UnsafeView ReshapeAlias Alias Clone Unsqueeze Squeeze Expand"
)
_PASSING = {f"{name}Backward{i}" for name in _NAMES.split() for i in (0, 1)}
# What a chain of layers may hold beside them: linear operations, and norms.
_LINEAR = frozenset(
    "Convolution ConvolutionOverrideable MkldnnConvolution Addmm Mm Bmm Linear MkldnnLinear "
    "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm BatchNormImpl NativeGroupNorm NativeLayerNorm "
    "Add Sub Mul Div Neg Mean Sum AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool2D "
    "AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D ConstantPadNd Slice Select Cat Stack Unbind Split "
    f"SplitWithSizes AsStrided {_NAMES}".split()
)


def _leaf(fn: Any) -> Tensor | None:  # noqa: ANN401
    """Return the parameter at the end of a chain of casts and views, if that is what `fn` is."""
    while fn is not None:
        if hasattr(fn, "variable"):
            return fn.variable
        parents = [parent for parent, _ in fn.next_functions if parent is not None]
        if type(fn).__name__ not in _PASSING or len(parents) != 1:
            return None
        (fn,) = parents
    return None


class Behind(NamedTuple):
    """A layer behind a tensor, the norm directly before it, and the layers in between.

    Those in between are the nearest to the tensor first; without any it made the tensor itself.
    """

    name: str
    norm: str | None
    passed: tuple[str, ...]


class Walker:
    """Walks from a tensor back to the layers that made it.

    Args:
        weights: id of a weight -> its layer's name.
        norms: id of a gamma -> its norm's name.

    Attributes:
        stops: graph nodes behind which nothing is looked for, and whose they are.
        inputs: layer's name -> names of the stops that its input was found to come from.
    """

    def __init__(self, weights: Mapping[int, str], norms: Mapping[int, str]) -> None:
        self.weights = weights
        self.norms = norms
        self.stops: dict[Any, str] = {}
        self.inputs: dict[str, tuple[str, ...]] = {}

    def layers_behind(self, tensor: Tensor) -> list[Behind]:
        """Return the layers that made a tensor, the nearest first, each once."""
        found: dict[str, Behind] = {}
        pending: deque[tuple[Any, str | None, tuple[str, ...], bool]] = deque()
        pending.append((tensor.grad_fn, None, (), True))
        visited = set()
        while pending:
            fn, norm, passed, linear = pending.popleft()
            if fn in self.stops and passed:
                known = self.inputs.get(passed[-1], ())
                self.inputs[passed[-1]] = tuple(dict.fromkeys((*known, self.stops[fn])))
            if fn is None or fn in visited or fn in self.stops:
                continue
            visited.add(fn)
            if passed and type(fn).__name__.split("Backward")[0] not in _LINEAR:
                linear = False  # an activation: layers before it are scored by nobody
            parents = [parent for parent, _ in fn.next_functions if parent is not None]
            leaves = [id(leaf) for parent in parents if (leaf := _leaf(parent)) is not None]
            mine = [self.weights[leaf] for leaf in leaves if leaf in self.weights]
            if mine and not linear:
                continue
            for name in mine:
                found.setdefault(name, Behind(name, norm, passed))
            if mine:
                norm, passed = None, (*passed, mine[0])
            norm = next((self.norms[leaf] for leaf in leaves if leaf in self.norms), norm)
            pending.extend((parent, norm, passed, linear) for parent in parents)
        return list(found.values())
