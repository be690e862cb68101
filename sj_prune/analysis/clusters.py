"""How features lie by class: their variance within one, and how alike train and test are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.analysis.looking import Forward, Labeled, answered, labeled, looking
from sj_prune.network.layers import weighted_layers
from sj_prune.reports.tables import optional, table

_HEADERS = ("class", "samples", "variance", "test samples", "test variance", "train/test cosine")
_MEASURED = ("variance", "test_variance", "similarity")


@dataclass(frozen=True)
class ClassCluster:
    """The features of one class, L2-normalized.

    Attributes:
        label: number of the class.
        samples: how many training samples it has.
        variance: ``sum ||x - mu||^2 / samples``, in [0, 1].
        test_samples: as `samples`, of the test data.
        test_variance: as `variance`; None without test samples.
        similarity: cosine between the mean features of train and test; None where either has none
            or they are 0.
    """

    label: int
    samples: int
    variance: float | None
    test_samples: int = 0
    test_variance: float | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class Clusters:
    """The clusters of all classes; `str` gives the table.

    Attributes:
        layer: whose input the features are.
        rows: one a class.
        silent: samples whose features are all 0: they count as 0 vectors.
    """

    layer: str
    rows: tuple[ClassCluster, ...]
    silent: int

    def mean(self, name: str) -> float | None:
        """Return the mean of ``"variance"``, ``"test_variance"`` or ``"similarity"``."""
        found = [v for row in self.rows if (v := getattr(row, name)) is not None]
        return sum(found) / len(found) if found else None

    def __str__(self) -> str:
        return self._text(markdown=False)

    def to_markdown(self) -> str:
        """Return the same in GitHub's Markdown."""
        return self._text(markdown=True)

    def _text(self, *, markdown: bool) -> str:
        tested = any(row.test_samples for row in self.rows)
        cells = [
            _cells(str(r.label), r.samples, r.test_samples, [getattr(r, k) for k in _MEASURED])
            for r in self.rows
        ]
        samples = sum(row.samples for row in self.rows)
        test_samples = sum(row.test_samples for row in self.rows)
        cells.append(_cells("mean", samples, test_samples, [self.mean(k) for k in _MEASURED]))
        kept = [row if tested else [*row[:3], "", "", ""] for row in cells]
        silent = f"; of {self.silent} samples they are all 0" if self.silent else ""
        note = f"features: the input of {self.layer}, mean over time, L2-normalized{silent}"
        return "\n\n".join([table(_HEADERS, kept, markdown), note])


def _cells(
    name: str, samples: int, test_samples: int, numbers: Sequence[float | None]
) -> list[str]:
    variance, test_variance, similarity = map(optional, numbers)
    return [name, str(samples), variance, str(test_samples), test_variance, similarity]


def clusters(
    net: nn.Module,
    train: Iterable[Any],
    test: Iterable[Any] | None = None,
    *,
    layer: str | None = None,
    batches: int | None = None,
    forward: Forward | None = None,
) -> Clusters:
    """Measure intra-cluster variance and class similarity of the features before the classifier.

    A feature vector is what goes into a layer, averaged over time, flattened, and divided by its L2
    norm. Variance: arXiv 2311.16141, eq. (19), ``sum ||x - mu||^2 / samples`` of a class.
    Similarity: the cosine between a class's mean features on training and on test data. Sums are
    kept in float64; one pass over each loader, nothing else is held.

    Args:
        net: any network, wrapped or not; it is left as it is.
        train: yields ``(x, y)`` as `sj_prune.prune` takes them, y class numbers ``[N]``.
        test: likewise; without it there are no similarities.
        layer: whose input the features are; by default the weighted layer that runs last.
        batches: of each loader, so many; by default all.
        forward: called as ``forward(net, *inputs)``; for single-step networks whose loop over time
            is outside: ``lambda net, x_seq: functional.multi_step_forward(x_seq, net)``.

    Raises:
        TypeError: if `net` is no module.
        ValueError: for an unknown layer, one that does not run, batches without labels, inputs that
            the network does not take, features that are not of the samples or not finite.
    """
    with looking(net, forward) as twin:
        layers: Mapping[str, nn.Module] = weighted_layers(twin)
        if layer is not None:
            layers = {layer: _named(twin, layer)}
        seen: dict[str, list[Tensor]] = {}
        handles = [
            module.register_forward_pre_hook(_keep(name, seen)) for name, module in layers.items()
        ]
        try:
            sums = [
                _summed(twin, labeled(twin, loader, batches), seen, layers)
                for loader in (train, test)
                if loader is not None
            ]
        finally:
            for handle in handles:
                handle.remove()
    first, second = sums[0], sums[1] if len(sums) > 1 else _Sums()
    rows = [_row(label, first, second) for label in sorted({*first.count, *second.count})]
    return Clusters(first.layer, tuple(rows), first.silent + second.silent)


@dataclass
class _Sums:
    """Sums of the features of one loader, by class, float64."""

    layer: str = ""
    silent: int = 0
    count: dict[int, int] = field(default_factory=dict)
    total: dict[int, Tensor] = field(default_factory=dict)
    squares: dict[int, float] = field(default_factory=dict)

    def add(self, features: Tensor, y: Tensor) -> None:
        x = F.normalize(features.double(), dim=1, eps=torch.finfo(torch.float64).tiny)
        self.silent += int((x == 0).all(1).sum())
        for label in y.unique().tolist():
            own = x[y == label]
            self.count[label] = self.count.get(label, 0) + len(own)
            self.total[label] = self.total.get(label, 0) + own.sum(0)
            self.squares[label] = self.squares.get(label, 0.0) + float(own.square().sum())

    def mean(self, label: int) -> Tensor | None:
        return self.total[label] / self.count[label] if label in self.count else None

    def variance(self, label: int) -> float | None:
        mean = self.mean(label)
        if mean is None:
            return None
        # The mean of ||x - mu||^2 is that of ||x||^2 less ||mu||^2; rounding may fall below 0.
        return max(0.0, self.squares[label] / self.count[label] - float(mean.square().sum()))


def _row(label: int, train: _Sums, test: _Sums) -> ClassCluster:
    means = train.mean(label), test.mean(label)
    similarity = None
    if means[0] is not None and means[1] is not None and means[0].any() and means[1].any():
        similarity = float(F.cosine_similarity(means[0], means[1], dim=0, eps=0.0))
    return ClassCluster(
        label,
        train.count.get(label, 0),
        train.variance(label),
        test.count.get(label, 0),
        test.variance(label),
        similarity,
    )


def _named(net: nn.Module, name: str) -> nn.Module:
    try:
        return net.get_submodule(name)
    except AttributeError as error:
        known = list(weighted_layers(net))[-3:]
        raise ValueError(
            f"Expected layer to name a module, such as {known}, but got {name!r}"
        ) from error


def _keep(name: str, seen: dict[str, list[Tensor]]) -> Callable[[nn.Module, Any], None]:
    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls = seen.pop(name, [])  # put last: the order is that of the last calls
        seen[name] = [*calls, inputs[0].detach()]

    return keep


def _summed(
    net: nn.Module,
    batches: Iterator[Labeled],
    seen: dict[str, list[Tensor]],
    layers: Mapping[str, nn.Module],
) -> _Sums:
    sums = _Sums()
    for args, y in batches:
        seen.clear()
        answered(net, args)
        if not seen:
            raise ValueError(f"Expected one of {list(layers)} to run in the forward but none does")
        sums.layer = list(seen)[-1]
        sums.add(_features(sums.layer, layers[sums.layer], seen[sums.layer], args, len(y)), y)
    return sums


def _features(
    name: str, layer: nn.Module, calls: list[Tensor], args: tuple[Any, ...], samples: int
) -> Tensor:
    """Return what went into a layer, mean over time, ``[N, features]``."""
    shapes = [x.shape for x in args if isinstance(x, Tensor)]
    # Joined to [T * N, *], 8 samples would pass for 4: inputs are [T, N, *] or [N, *].
    fits = not shapes or any(samples in shape[:2] for shape in shapes)
    steps = [_by_sample(name, layer, x, samples, fits) for x in calls]
    features = torch.cat(steps).mean(0)
    if not features.isfinite().all():
        raise ValueError(
            f"Expected finite features but the input of {name!r} has nan or infinite numbers: look "
            "at the data and at the weights before that layer"
        )
    return features


def _by_sample(name: str, layer: nn.Module, x: Tensor, samples: int, fits: bool) -> Tensor:
    """Return the input of a layer as ``[steps, N, features]``, float64.

    Multi-step layers get ``[T, N, *]``, single-step ones ``[N, *]``, and those in a container that
    joins time and samples ``[T * N, *]``, if the network's inputs are of as many samples.
    """
    mode = _host.step_mode(layer)
    steps = x.ndim > 2 and mode != "s" and (mode == "m" or x.shape[1] == samples)
    if isinstance(layer, nn.modules.conv._ConvNd):
        steps = x.ndim == layer.weight.ndim + 1
    fits = x.shape[1] == samples if steps else fits and len(x) % samples == 0
    if not fits:
        raise ValueError(
            f"Expected the input of {name!r} to be of the {samples} samples that have labels but "
            f"got {tuple(x.shape)}: give one label a sample, or name another layer="
        )
    x = x.flatten(0, 1) if steps else x
    return x.double().reshape(-1, samples, x[0].numel())
