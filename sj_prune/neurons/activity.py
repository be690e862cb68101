"""Mergeable statistics of one recording neuron layer.

Maxima over the map are taken per sample, so sums over samples are all that has to be stored:
``[C, k]`` in float64 and a count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from sj_prune.engines.collect import collect, serves
from sj_prune.neurons.statistics import STATISTICS, check_statistics, is_function


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether there are numbers now: neither compiled, nor fake, nor in a transform."""
    watched = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return type(tensor) is torch.Tensor and not watched


class Activity:
    """Sums over samples of per-sample channel statistics.

    Args:
        names: the statistics to keep, names of `statistics.TABLE`; by default `STATISTICS`.
    """

    def __init__(self, names: Iterable[str] = STATISTICS) -> None:
        self.names = check_statistics(names)
        self.sums: torch.Tensor | None = None
        self.samples: torch.Tensor | None = None
        self.overflowed: torch.Tensor | None = None
        self.latest: torch.Tensor | None = None
        self._ticket: torch.Tensor | None = None  # of the CUDA engine

    def __repr__(self) -> str:
        """Say how much was recorded, for bug reports."""
        return f"Activity(names={self.names}, channels={self.channels}, count={self.count})"

    @property
    def count(self) -> int:
        """Number of samples recorded (this reads the device)."""
        return 0 if self.samples is None else int(self.samples)

    @property
    def lost(self) -> int:
        """Number of samples that were nan or infinite and do not count (this reads the device).

        On CUDA those that were summed with one, too, where maps are one element.
        """
        return 0 if self.overflowed is None else int(self.overflowed)

    @property
    def channels(self) -> int | None:
        """Number of channels, or None before the first update."""
        return None if self.sums is None else self.sums.shape[0]

    def allocate(self, channels: int, device: torch.device) -> None:
        """Set the sums to zero for `channels` channels on `device`."""
        # Born in inference mode they could not be added to outside of it.
        with torch.inference_mode(False):
            self.sums = torch.zeros(channels, len(self.names), dtype=torch.float64, device=device)
            self.samples = torch.zeros((), dtype=torch.int64, device=device)
            self.overflowed = torch.zeros_like(self.samples)

    def update(self, partials: torch.Tensor, count: int | None = None) -> None:
        """Add one batch; a sample that overflowed (AMP skips its step) is not counted.

        Args:
            partials: ``[N, C, k]``, one value per sample, channel and name, in order of `names`.
                Or ``[R, C, k]``: sums over ``ceil(count / R)`` samples each, the last over what is
                left, which count or overflow together.
            count: the number of samples; by default N.

        Raises:
            ValueError: if `C` or `k` differs from what was recorded before.
        """
        _, channels, kinds = partials.shape
        if kinds != len(self.names):
            raise ValueError(f"Expected {len(self.names)} statistics {self.names} but got {kinds}")
        if is_function(self.names[-1]):
            self.latest = partials.detach()
        if self.sums is None or self.samples is None:
            self.allocate(channels, partials.device)
        assert self.sums is not None  # noqa: S101 (for the type checker)
        assert self.samples is not None  # noqa: S101
        if self.sums.shape[0] != channels:
            raise ValueError(
                f"Expected {self.sums.shape[0]} channels as recorded before but got {channels}: "
                "a neuron layer shared by layers of different width cannot keep statistics; give "
                "each layer its own neuron or set recording = False on it"
            )
        if _is_plain(partials) and self._add_at_once(partials, count or len(partials)):
            return
        finite = torch.isfinite(partials).all(-1).all(-1)
        counted = torch.where(finite[:, None, None], partials, 0.0)
        # In place, so that a captured graph (torch.compile, CUDA graphs) adds to the same memory.
        self.sums.add_(counted.sum(0, dtype=torch.float64))
        counted_samples = finite.sum()
        if count is not None:
            each = -(-count // len(partials))
            counted_samples = counted_samples * each - finite[-1] * (each * len(partials) - count)
        self.samples.add_(counted_samples)
        if self.overflowed is not None:
            self.overflowed.add_((count or finite.numel()) - counted_samples)

    def _add_at_once(self, partials: torch.Tensor, count: int) -> bool:
        """Add one batch in fewer calls than `update` does; tell whether that was possible."""
        assert self.sums is not None  # noqa: S101 (for the type checker)
        assert self.samples is not None  # noqa: S101
        ours = self.sums.device == partials.device and self.sums.is_contiguous()
        if ours and serves(partials):
            if self._ticket is None or self._ticket.device != partials.device:
                with torch.inference_mode(False):
                    self._ticket = torch.zeros((), dtype=torch.int32, device=partials.device)
            assert self.overflowed is not None  # noqa: S101
            collect(partials, count, self.sums, self.samples, self.overflowed, self._ticket)
            return True
        if partials.device.type == "cpu":
            # A sum that is not finite tells of an overflow at no cost here.
            total = partials.sum(0, dtype=torch.float64)
            if math.isfinite(total.sum().item()):
                self.sums.add_(total)
                self.samples.add_(count)
                return True
        return False

    def mean(self, name: str) -> torch.Tensor:
        """Return the mean over samples of one statistic, ``[C]`` in float64.

        Raises:
            ValueError: if `name` is unknown or was not switched on.
            RuntimeError: if nothing was recorded yet.
        """
        if name not in self.names:
            check_statistics([name])
            raise ValueError(
                f"Expected one of the recorded statistics {self.names} but got {name}: set "
                f'statistics = [...] of the node, or mark the score that reads it: @reads("{name}")'
            )
        if self.sums is None or self.samples is None or self.count == 0:
            raise RuntimeError(
                f"Expected recorded activity to read {name!r} but nothing was recorded: run a "
                "multi-step forward in train mode with recording = True first; a score of a Plan "
                f'says what it reads, @reads("{name}")'
            )
        return self.sums[:, self.names.index(name)] / self.samples

    def merge(self, other: Activity) -> None:
        """Add what `other` recorded, as if its batches had been recorded here.

        Raises:
            ValueError: if names or channels differ.
        """
        if other.names != self.names:
            raise ValueError(f"Expected statistics {self.names} to merge but got {other.names}")
        if other.sums is None or other.samples is None:
            return
        if self.sums is None or self.samples is None:
            self.allocate(other.sums.shape[0], other.sums.device)
        assert self.sums is not None  # noqa: S101
        assert self.samples is not None  # noqa: S101
        if self.sums.shape != other.sums.shape:
            raise ValueError(
                f"Expected {self.sums.shape[0]} channels to merge but got {other.sums.shape[0]}"
            )
        self.sums.add_(other.sums.to(self.sums.device))
        self.samples.add_(other.samples.to(self.samples.device))
        if self.overflowed is not None and other.overflowed is not None:
            self.overflowed.add_(other.overflowed.to(self.overflowed.device))

    def drop(self, names: Iterable[str]) -> None:
        """Keep some statistics no longer; what the others recorded stays."""
        gone = set(names)
        kept = [i for i, name in enumerate(self.names) if name not in gone]
        if len(kept) == len(self.names):
            return
        self.names = tuple(self.names[i] for i in kept)
        if self.sums is not None:
            self.sums = self.sums[:, kept]

    def clear(self) -> None:
        """Forget everything recorded, in place (captured graphs keep the same memory)."""
        if self.sums is not None and self.samples is not None:
            self.sums.zero_()
            self.samples.zero_()
        if self.overflowed is not None:
            self.overflowed.zero_()

    def move_to(self, device: torch.device) -> None:
        """Move the sums to `device`; they stay float64 whatever happens to the module."""
        if self.sums is not None and self.samples is not None and self.sums.device != device:
            self.sums = self.sums.to(device)
            self.samples = self.samples.to(device)
        if self.overflowed is not None:
            self.overflowed = self.overflowed.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors and strings, safe for ``torch.load(weights_only=True)``."""
        return {
            "names": list(self.names),
            "sums": None if self.sums is None else self.sums.clone(),
            "samples": None if self.samples is None else self.samples.clone(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device | None = None) -> None:
        """Replace the content by `state`, on `device`; by default on the present one."""
        if device is None and self.sums is not None:
            device = self.sums.device
        names = check_statistics(state["names"])
        if strange := {name for name in names if is_function(name)}.difference(self.names):
            # A checkpoint does not say what is to be called.
            raise ValueError(f"Expected statistics {self.names} but got {sorted(strange)}")
        self.names = names
        self.sums = None if state["sums"] is None else state["sums"].clone().to(device)
        self.samples = None if state["samples"] is None else state["samples"].clone().to(device)
        self.overflowed = None if self.samples is None else torch.zeros_like(self.samples)
