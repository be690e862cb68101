"""Data that stays on the training device, cropped, flipped and normalized there.

A fast GPU waits for data loading when 32x32 images come one by one from worker processes. CIFAR
fits its memory as uint8 (150 MB), and a batch is a gather there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class CropFlip:
    """Random crop of a zero-padded batch and random mirroring, each image on its own.

    Args:
        padding: zeros around the image before the crop to its old size.
        flip: probability of mirroring left and right.

    Raises:
        ValueError: an argument is out of range.
    """

    padding: int = 4
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.padding, int) or self.padding < 0:
            raise ValueError(f"Expected padding to be an integer >= 0 but got {self.padding}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"Expected flip in [0, 1] but got {self.flip}")

    def __call__(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Crop and mirror.

        Args:
            x: ``[N, C, H, W]``, of any type, on any device.
            generator: CPU generator, so that a seed gives the same result on any device.
        """
        n, _, height, width = x.shape
        start = torch.randint(2 * self.padding + 1, (2, n), generator=generator)
        flip = torch.rand(n, generator=generator) < self.flip
        top, left = start.to(x.device, non_blocking=True)
        windows = F.pad(x, (self.padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        crop = windows[torch.arange(n, device=x.device), :, top, left]
        flip = flip.to(x.device, non_blocking=True)[:, None, None, None]
        return torch.where(flip, crop.flip(-1), crop)


class Normalize:
    """Bring 8-bit images to zero mean and unit variance on the device where they are.

    Args:
        mean: of each channel, in 0..1.
        std: standard deviation of each channel.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(
                f"Expected as many positive std as mean but got mean={mean} and std={std}"
            )
        self.mean = tuple(mean)
        self.std = tuple(std)
        self._constants: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def imagenet(cls) -> Normalize:
        """Return the statistics of ImageNet."""
        return cls((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[N, C, H, W]`` of uint8 ``x`` of the same shape."""
        if x.device not in self._constants:
            # Kept: a copy to the device for every batch would wait for it.
            scale, shift = torch.tensor([self.std, self.mean], dtype=torch.float32)
            columns = (shift * 255).view(-1, 1, 1), (1 / (scale * 255)).view(-1, 1, 1)
            self._constants[x.device] = columns[0].to(x.device), columns[1].to(x.device)
        mean, inverse = self._constants[x.device]
        return (x.float() - mean) * inverse

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


class ResidentLoader:
    """Batches of data that is kept on one device.

    Every random number follows from the seed, the epoch and the number of the batch, none from what
    happened before: a loader that takes up the saved state goes on bit-identically, on the CPU and
    on a GPU with the same batches.

    An iteration that is broken off does not count: the next one starts the epoch again. One after
    :meth:`load_state_dict` starts with the batch after the last one that was given out.

    Args:
        x: data ``[N, ...]``; uint8 is scaled to 0..1, floating types are only cast to float32.
        y: labels ``[N]``.
        batch_size: samples of a batch, over all ranks.
        device: where to keep the data; default: where it is.
        augment: ``augment(x, generator)`` on each batch, before it is normalized; for example
            :class:`CropFlip` or :func:`sj_prune.data.event_augmentation`.
        normalize: replaces the scaling of uint8; for example :class:`Normalize`.
        shuffle: draw a new order every epoch.
        drop_last: leave out an incomplete last batch.
        seed: fixes order and augmentation.
        rank: number of this process.
        world_size: number of processes: each gets its slice of every batch, in which samples and
            augmentation are the same however many processes there are. Slices differ by one sample
            at most; that of a last batch with fewer samples than processes may be empty.

    Attributes:
        epoch: number of completed epochs.
        position: batches given out in the current one.
        samples: of the batch that was given out last, over all ranks.

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        batch_size: int,
        *,
        device: torch.device | str | None = None,
        augment: Augmentation | None = None,
        normalize: Callable[[torch.Tensor], torch.Tensor] | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(x) != len(y) or len(y) == 0:
            raise ValueError(f"Expected as many x as y but got {len(x)} and {len(y)}")
        if batch_size < 1 or seed < 0:
            raise ValueError(
                f"Expected batch_size >= 1 and seed >= 0 but got {batch_size} and {seed}"
            )
        _check_split(batch_size, rank, world_size)
        self.x = x.to(device) if device is not None else x
        self.y = y.to(self.x.device)
        self.batch_size = batch_size
        self.augment = augment
        self.normalize = normalize
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.position = 0
        self.samples = 0
        self._resumed = False
        if len(self) == 0:
            raise ValueError(
                f"Expected at least one full batch but got {len(y)} samples for batches of "
                f"{batch_size}: lower batch_size or pass drop_last=False"
            )

    def split(self, rank: int, world_size: int) -> ResidentLoader:
        """Take this rank's slice of every batch from here on; return the loader.

        Raises:
            ValueError: as the constructor.
        """
        _check_split(self.batch_size, rank, world_size)
        self.rank, self.world_size = rank, world_size
        return self

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        n = len(self.y)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the rest of the epoch: ``x [n, ...]`` float32 and ``y [n]``."""
        if not self._resumed:
            self.position = 0
        self._resumed = False
        order = self._order().to(self.x.device)
        while self.position < len(self):
            start = self.position * self.batch_size
            chosen = order[start : start + self.batch_size]
            batch = self._prepare(self.x[chosen]), self.y[chosen][self._slice(len(chosen))]
            self.samples = len(chosen)
            # Before the batch is given out: a state that is saved while it is in use counts it.
            self.position += 1
            yield batch
        self.epoch += 1
        self.position = 0

    def _order(self) -> torch.Tensor:
        n = len(self.y)
        return torch.randperm(n, generator=self._generator(0)) if self.shuffle else torch.arange(n)

    def _slice(self, samples: int) -> slice:
        """Return which samples of a batch are this rank's."""
        ends = (self.rank * samples, (self.rank + 1) * samples)
        return slice(*(end // self.world_size for end in ends))

    def _prepare(self, x: torch.Tensor) -> torch.Tensor:
        mine = self._slice(len(x))
        if self.augment is not None:  # the whole batch: its random numbers are drawn for all of it
            x = self.augment(x, self._generator(1, self.position))
        x = x[mine]
        if self.normalize is not None:
            return self.normalize(x)
        return x.float() / 255 if x.dtype == torch.uint8 else x.float()

    def _generator(self, *purpose: int) -> torch.Generator:
        entropy = np.random.SeedSequence([self.seed, self.epoch, *purpose])
        return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))

    def _identity(self) -> dict[str, Any]:
        names = ("batch_size", "shuffle", "drop_last", "seed")
        return {"samples": len(self.y), **{name: getattr(self, name) for name in names}}

    def state_dict(self) -> dict[str, Any]:
        """Return epoch, position and what they refer to; plain numbers, the same on every rank."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the loader that gave `state` stood.

        Raises:
            ValueError: it had other data or settings, so that its batches were others. At the start
                of an epoch the batch size may differ, and the number of processes always.
        """
        expected = self._identity()
        if state.get("position") == 0:
            for name in ("batch_size", "drop_last"):
                expected.pop(name)
        wrong = {n: (v, state.get(n)) for n, v in expected.items() if state.get(n) != v}
        if wrong:
            text = ", ".join(f"{name}={mine} but got {his}" for name, (mine, his) in wrong.items())
            raise ValueError(
                f"Expected a loader state with {text}: make the loader as it was when it was saved"
            )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._resumed = True


def _check_split(batch_size: int, rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"Expected 0 <= rank < world_size but got rank {rank} of {world_size}")
    if batch_size < world_size:
        raise ValueError(
            f"Expected batch_size, the samples of a batch over all {world_size} processes, to give "
            f"each of them one at least but got {batch_size}"
        )
