"""tickets(): lottery tickets, which several trainings find; it goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from sj_prune import _host
from sj_prune._checks import check_flag, check_fraction, check_integer, check_steps
from sj_prune.masks.schedule import Manual
from sj_prune.methods.parts import magnitude
from sj_prune.methods.plan import Plan
from sj_prune.network.restore import restored_on_error
from sj_prune.reports.tables import optional, table
from sj_prune.trained.rounds import EarlyBird, Search, Stage, TicketRound
from sj_prune.wrapper import PruningWrapper


class Tickets(NamedTuple):
    """What `tickets` returns; its text is the table of rounds."""

    net: nn.Module
    rounds: tuple[TicketRound, ...]

    def __str__(self) -> str:
        """Return one line a training."""
        headers = ("round", "training", "T", "epochs", "sparsity", "result")
        rows = [
            [
                str(r.number),
                r.training,
                "" if r.time_steps is None else str(r.time_steps),
                str(r.epochs),
                f"{r.sparsity:.4f}",
                optional(r.result),
            ]
            for r in self.rounds
        ]
        return table(headers, rows, markdown=False)


@dataclass(frozen=True)
class Training:
    """One training, as `tickets` hands it to the user's function.

    Attributes:
        model: the wrapped network, masks on: what to train.
        number: of the round, from 0.
        sparsity: of its masks.
        epochs: how many to train, from the full learning rate on.
        rate: factor of the learning rate: 2 in the search of Early-Bird, else 1.
        time_steps: to train with, in the search of Early-Time; None: your own.
    """

    model: PruningWrapper
    number: int
    sparsity: float
    epochs: int
    rate: float
    time_steps: int | None
    _search: Search

    def run(self, *parts: Any) -> Iterator[int]:  # noqa: ANN401
        """Yield the epochs that are left to train, from 0.

        Before the first of them the optimizers are attached and, after an interruption, everything
        is put back as it was saved; after each of them it is saved.

        Args:
            parts: the optimizers, and what else changes while training: learning-rate schedules, a
                GradScaler (anything with a `state_dict`), generators. Those of torch, NumPy and
                `random` are saved anyway.

        Raises:
            TypeError: for no optimizer, or a part whose state cannot be saved.
            ValueError: for parts other than those that were saved.
            RuntimeError: if this training has called it before.
        """
        optimizers = [part for part in parts if isinstance(part, Optimizer)]
        if not optimizers:
            raise TypeError(
                f"Expected the optimizer in training.run(optimizer, ...) but got {parts!r}"
            )
        for optimizer in optimizers:
            self.model.attach(optimizer)
        try:
            yield from self._search.epochs(parts)
        finally:
            for optimizer in optimizers:
                self.model.release(optimizer)


def tickets(
    net: nn.Module,
    train: Callable[[Training], object],
    *,
    epochs: int,
    rounds: int = 15,
    fraction: float = 0.25,
    rewind_to: int | None = None,
    early_bird: EarlyBird | None = None,
    search_time_steps: int | None = None,
    checkpoint: Any = None,  # noqa: ANN401
    skip: Iterable[str] = (),
    seed: int = 0,
    progress: bool = True,
) -> Tickets:
    """Find a lottery ticket: a sparse network that trains from early weights on.

    ::

        def train(training):
            model = training.model
            optimizer = torch.optim.SGD(model.parameters(), lr=0.3 * training.rate, momentum=0.9)
            schedule = CosineAnnealingLR(optimizer, training.epochs)
            for _ in training.run(optimizer, schedule):    # one epoch; saved after each
                for x_seq, y in loader:
                    ...                                    # any loop
                schedule.step()
            return accuracy(model)                         # for the table; or nothing

        found = sj_prune.tickets(net, train, epochs=300, rewind_to=20, checkpoint="tickets.pt")
        print(found)

    **Iterative magnitude pruning** (Kim et al., ECCV 2022): round 0 trains the dense network;
    before every later one the ``int(fraction n)`` smallest `|w|` of the `n` weights that are left,
    over all layers together, go for good, and all parameters (weights, biases, norms; no running
    statistics) go back to what they were after the epoch of index `rewind_to`. That round then
    trains ``epochs - rewind_to`` epochs with a new optimizer. **Early-Bird** (`early_bird`): one
    dense training at twice the learning rate ends as soon as the masks that it would give stand
    still; the initial parameters are trained with them. **Early-Time** (`search_time_steps`):
    either search runs with fewer time steps, and the ticket is then trained with all.

    The same call after a crash goes on with `checkpoint` where it was, to the same bits.

    Args:
        net: a SpikingJelly network, not trained yet. Trained in place; if anything raises, it is
            as it was, and the checkpoint stays.
        train: called with a `Training` once a round: builds a new optimizer, runs
            ``for _ in training.run(optimizer, ...)``, and returns a number for the table, or None.
        epochs: of a training from the beginning; the paper has 300.
        rounds: trainings of the search, the dense one included; 15 in the paper, to 98.2 %.
        fraction: of the weights left, pruned before each later one, in (0, 1).
        rewind_to: index of the epoch, from 0, after which the rewind point is taken; None: the
            initial parameters. The paper takes 20.
        early_bird: search like this instead; `rounds`, `fraction` and `rewind_to` are not used.
        search_time_steps: `training.time_steps` of all trainings of the search; one with the
            network's own follows. The paper's choice of it is left to you.
        checkpoint: path of a file; None: nothing is saved.
        skip: names of layers, or of modules with layers in them, that stay dense.
        seed: of the wrapper.
        progress: show a bar over the epochs of all trainings.

    Returns:
        The trained ticket, stock SpikingJelly classes with zeros burnt in, and one row a training.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if one is out of range, a training ended before the rewind point, or if
            `checkpoint` is of another search.
    """
    _check(train, epochs, rounds, fraction, rewind_to, early_bird, search_time_steps, progress)
    early = rewind_to is None or early_bird is not None
    stages = _stages(epochs, rounds, 0 if early else rewind_to, early_bird, search_time_steps)
    final = early_bird.sparsity if early_bird else 1.0 - (1.0 - fraction) ** (rounds - 1)
    with restored_on_error(net):
        plan = Plan(schedule=Manual(final=final), drop=magnitude, name="tickets")
        model = PruningWrapper(net, plan, skip=skip, seed=seed)
        search = Search(model, stages, fraction, None if early else rewind_to, early_bird)
        try:
            with search.opened(checkpoint, progress):
                for stage in search.left():
                    sparsity = model.sparsity()["total"]
                    own = stage.number, sparsity, stage.epochs, stage.rate, stage.time_steps
                    search.finish(train(Training(model, *own, search)))
        except BaseException:
            model.discard()
            raise
        net = model.finalize()
        _host.reset_net(net)
    return Tickets(net, tuple(search.rows))


def _stages(
    epochs: int,
    rounds: int,
    rewound: int | None,
    early_bird: EarlyBird | None,
    time_steps: int | None,
) -> list[Stage]:
    """Return all trainings, in their order."""
    later = epochs - (rewound or 0)
    if early_bird is not None:
        return [Stage(0, "search", epochs, 2.0, time_steps), Stage(1, "ticket", epochs)]
    found = [
        Stage(k, "search" if k else "dense", later if k else epochs, 1.0, time_steps)
        for k in range(rounds)
    ]
    return found if time_steps is None else [*found, Stage(rounds, "ticket", later)]


def _check(
    train: object,
    epochs: object,
    rounds: object,
    fraction: float,
    rewind_to: int | None,
    early_bird: object,
    search_time_steps: object,
    progress: object,
) -> None:
    if not callable(train):
        raise TypeError(f"Expected train to be a function of a Training but got {train!r}")
    check_steps("epochs", epochs)
    check_steps("rounds", rounds)
    check_fraction("fraction", fraction, open_below=True)
    if rewind_to is not None:
        most = check_integer("epochs", epochs) - 1
        if not 0 <= check_integer("rewind_to", rewind_to) <= most:
            raise ValueError(
                f"Expected rewind_to in [0, {most}], an epoch of the first training, or None but "
                f"got {rewind_to}"
            )
    if not isinstance(early_bird, EarlyBird | None):
        raise TypeError(f"Expected early_bird to be EarlyBird(...) or None but got {early_bird!r}")
    if search_time_steps is not None:
        check_steps("search_time_steps", search_time_steps)
    check_flag("progress", progress)
