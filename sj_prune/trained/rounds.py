"""The trainings of a search for tickets: masks and rewinding between them, and what is saved."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sj_prune import _files
from sj_prune._checks import check_factor, check_fraction, check_integer
from sj_prune.masks.regrow import LayerUpdate
from sj_prune.run.update import install_now, would_drop
from sj_prune.trained.going_on import put_back, random_state, set_random_state, state_of
from sj_prune.wrapper import PruningWrapper


@dataclass(frozen=True)
class EarlyBird:
    """When the masks of a dense training stand still (You et al., ICLR 2020; Kim et al., 2022).

    At the start of every epoch the masks that global `|w|` would give are put into a queue. Once it
    is full, the distance of the newest to each older one is the fraction of entries in which they
    differ; the search is over when the largest is below `distance`. If it never is, the last masks
    are taken.

    Args:
        sparsity: of the ticket.
        distance: 0.02 in the released code.
        window: length of the queue, 5 there.
    """

    sparsity: float
    distance: float = 0.02
    window: int = 5

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)
        check_factor("distance", self.distance, positive=True)
        check_integer("window", self.window, 2)


@dataclass(frozen=True)
class Stage:
    """One training to come: its round, what it is, epochs, factor of the rate, time steps."""

    number: int
    training: str
    epochs: int
    rate: float = 1.0
    time_steps: int | None = None


@dataclass(frozen=True)
class TicketRound:
    """One training that is done.

    Attributes:
        number: of the round, from 0.
        training: "dense", "search" (with some weights pruned, or of Early-Bird), or "ticket".
        time_steps: of Early-Time; None: the network's own.
        epochs: that it took.
        sparsity: of its masks.
        result: what the user's function returned.
    """

    number: int
    training: str
    time_steps: int | None
    epochs: int
    sparsity: float
    result: float | None


class Search:
    """Where a search is: the training in hand, its epochs, the rewind point.

    Args:
        model: the wrapped network.
        stages: all trainings.
        fraction: of the weights left, pruned before each later one.
        rewind_to: epoch of the rewind point; None: the initial parameters.
        early_bird: when to end the first training.
    """

    def __init__(
        self,
        model: PruningWrapper,
        stages: Sequence[Stage],
        fraction: float,
        rewind_to: int | None,
        early_bird: EarlyBird | None,
    ) -> None:
        self.model, self.stages = model, stages
        self.fraction, self.rewind_to, self.early_bird = fraction, rewind_to, early_bird
        self.rows: list[TicketRound] = []
        self.epoch = 0
        self.point = self._parameters() if rewind_to is None else None
        self.queue: list[dict[str, Tensor]] = []
        self._path: str | os.PathLike[str] | None = None
        self._saved: dict[str, Any] | None = None  # of a training that was interrupted
        self._bar: Any = None
        self._begun = False  # the training in hand has asked for its epochs

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint has to be of, as plain values."""
        bird = None if self.early_bird is None else asdict(self.early_bird)
        stages = [asdict(stage) for stage in self.stages]
        own = {"fraction": self.fraction, "rewind_to": self.rewind_to}
        return {"stages": stages, "early_bird": bird, **own}

    def left(self) -> Iterator[Stage]:
        """Yield the trainings that are not done."""
        while len(self.rows) < len(self.stages):
            stage = self.stages[len(self.rows)]
            self._bar.set_description(f"round {stage.number} ({stage.training})")
            self._begun = False
            yield stage

    def epochs(self, parts: Sequence[Any]) -> Iterator[int]:
        """Yield the epochs left of the training in hand; save before them and after each.

        Raises:
            RuntimeError: if this training has asked for them before.
        """
        first, stage = not self.rows, self.stages[len(self.rows)]
        if self._begun:  # what is left would silently be no epoch, or train with other optimizers
            raise RuntimeError(
                f"Expected one loop over training.run(...) a training but train called it again "
                f"in round {stage.number}: give it all optimizers at once, and begin without the "
                "checkpoint, which holds those of the first call alone"
            )
        self._begun = True
        self._go_on(parts)
        if not self.epoch:  # a generator that all trainings share is to be found as it is now
            self._save([state_of(part) for part in parts])
        for epoch in range(self.epoch, stage.epochs):
            if first and self.early_bird is not None and self._stands_still(self.early_bird):
                return
            yield epoch
            self.epoch = epoch + 1
            if first and epoch == self.rewind_to:
                self.point = self._parameters()
            self._bar.update()
            self._save([state_of(part) for part in parts])

    def finish(self, result: object) -> None:
        """Note a training that is done; prune and rewind for the next one.

        Raises:
            TypeError: for a result that is no number.
            ValueError: if no epoch was trained, or the rewind point was not reached.
        """
        stage, number = (
            self.stages[len(self.rows)],
            result.item() if isinstance(result, Tensor) else result,
        )
        if number is not None and not isinstance(number, Real):
            raise TypeError(f"Expected train to return a number or None but got {result!r}")
        if not self.epoch or self.point is None:
            wanted = "one" if not self.epoch else f"{(self.rewind_to or 0) + 1}, the rewind point,"
            raise ValueError(
                f"Expected train to go through at least {wanted} of the epochs of "
                f"training.run(optimizer, ...) but it went through {self.epoch}"
            )
        sparsity, result = self.model.sparsity()["total"], None if number is None else float(number)
        row = TicketRound(
            stage.number, stage.training, stage.time_steps, self.epoch, sparsity, result
        )
        self.rows.append(row)
        self._bar.update(stage.epochs - self.epoch)
        self.epoch = 0
        if len(self.rows) < len(self.stages):
            self._prune(self.stages[len(self.rows)])
            self._rewind(self.point)
        self._save(None)

    # ---- masks ---------------------------------------------------------------------------------

    def _prune(self, following: Stage) -> None:
        if self.early_bird is not None:
            kept = self.queue[-1]
            found = {n: LayerUpdate(mask, torch.zeros_like(mask)) for n, mask in kept.items()}
            install_now(self.model.session, found)
        elif following.training != "ticket":  # which trains the last masks of the search again
            masks = self.model.masks
            left, total = sum(masks.kept().values()), sum(masks.units().values())
            self.model.update_masks(1.0 - (left - int(self.fraction * left)) / total)

    def _stands_still(self, bird: EarlyBird) -> bool:
        dropped = would_drop(self.model.session)
        self.queue.append({name: ~mask for name, mask in dropped.items()})
        self.queue = self.queue[-bird.window :]
        newest, total = self.queue[-1], sum(mask.numel() for mask in dropped.values())
        differ = [
            sum(int((older[n] != mask).sum()) for n, mask in newest.items()) / total
            for older in self.queue[:-1]
        ]
        return len(self.queue) == bird.window and max(differ) < bird.distance

    def _parameters(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.model.net.named_parameters()}

    @torch.no_grad()
    def _rewind(self, point: dict[str, Tensor]) -> None:
        for name, parameter in self.model.net.named_parameters():
            parameter.copy_(point[name])
        self.model.masks.enforce()

    # ---- files ---------------------------------------------------------------------------------

    @contextmanager
    def opened(self, path: str | os.PathLike[str] | None, progress: bool) -> Iterator[None]:
        """Go on from a file, if it is there, and show a bar."""
        self._path = path
        if path is not None and os.path.exists(path):
            self._load(_files.load(path, "sj_prune.tickets"), path)
        done = sum(stage.epochs for stage in self.stages[: len(self.rows)]) + self.epoch
        total = sum(stage.epochs for stage in self.stages)
        with tqdm(total=total, initial=done, unit="epoch", disable=not progress) as self._bar:
            yield

    def _save(self, parts: list[Any] | None) -> None:
        if self._path is None:
            return
        state = {
            "settings": self.settings,
            "rows": [asdict(row) for row in self.rows],
            "epoch": self.epoch,
            "point": self.point,
            "queue": self.queue,
            "model": self.model.state_dict(),
            "parts": parts,
            "random": random_state(),
        }
        _files.save(self._path, state)

    def _load(self, state: Any, path: str | os.PathLike[str]) -> None:  # noqa: ANN401
        got = state.get("settings") if isinstance(state, dict) else _files.described(state)
        if got != self.settings:
            raise ValueError(
                f"Expected a checkpoint of this search at {os.fspath(path)!r}, {self.settings}, "
                f"but got {got}: give another path, or the arguments that it was begun with"
            )
        self.model.load_state_dict(state["model"])
        self.rows = [TicketRound(**row) for row in state["rows"]]
        self.epoch = state["epoch"]
        names = {name: p.device for name, p in self.model.net.named_parameters()}
        point = state["point"]
        self.point = point and {name: point[name].to(device) for name, device in names.items()}
        self.queue = [
            {n: mask.to(self.model.masks.weight(n).device) for n, mask in kept.items()}
            for kept in state["queue"]
        ]
        self._saved = None if state["parts"] is None else state
        set_random_state(state["random"])

    def _go_on(self, parts: Sequence[Any]) -> None:
        """Put optimizers and random numbers back as an interrupted training left them."""
        state, self._saved = self._saved, None
        if state is None:
            return
        put_back(parts, state["parts"])
        set_random_state(state["random"])
