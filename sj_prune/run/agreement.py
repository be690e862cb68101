"""What the ranks of a distributed run tell each other: statistics, gradients, and that they agree.

A wrapper speaks to its likes on other ranks in `attach`, in mask updates once an optimizer is
attached, and in `gather_statistics`; never in a forward or backward pass, and with one process
never at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sj_prune.methods.identity import flat
from sj_prune.network.coupling import Coupling
from sj_prune.run import joining, processes
from sj_prune.run.anatomy import ensure_topology, plain_inputs, restore_inputs
from sj_prune.run.state import Run

T = TypeVar("T")


class Agreement:
    """Lets the runs of one network on all ranks act as one.

    Args:
        net: the network on this rank.
        run: its run.
    """

    def __init__(self, net: nn.Module, run: Run) -> None:
        self.net = net
        self.run = run
        self._takes_part = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_takes_part": False}  # a copy is detached

    @property
    def several(self) -> bool:
        """Whether there is anybody to speak to, and this run takes part in it."""
        return self._takes_part and processes.world_size() > 1

    @property
    def log_level(self) -> int:
        """At which this rank says what happened to all."""
        speaks = not self.several or processes.rank() == 0
        return logging.INFO if speaks else logging.DEBUG

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return joining.device_of(self.net)

    # ---- agreeing ------------------------------------------------------------------------------

    def agreed(
        self, where: str, compute: Callable[[], T], facts: Callable[[T], Mapping[str, Any]]
    ) -> T:
        """Return what every rank has computed, if all have come to the same.

        Args:
            where: name of what is done, for messages.
            compute: runs on every rank, without talking to others.
            facts: returns, as plain values by name, what has to be the same.

        Raises:
            RuntimeError: on all ranks, if facts differ, naming what each rank has; or if another
                rank raised. The rank that raised does so again.
        """
        if not self.several:
            return compute()
        result, error, mine = None, None, {}
        try:
            result = compute()
            mine = dict(facts(result))
        except Exception as caught:
            error = caught
        said = None if error is None else f"{type(error).__name__}: {error}"
        everybody = processes.gather((said, mine), self.device)
        if error is not None:
            raise error
        _check_alike(where, everybody)
        return result  # type: ignore[return-value]

    def check_start(self) -> None:
        """Refuse ranks that prune differently, or stand elsewhere.

        Raises:
            RuntimeError: naming what differs.
        """
        before, self._takes_part = self._takes_part, True
        try:
            self.agreed("attach()", lambda: None, lambda _: {**self._settings(), **self._masks()})
        except RuntimeError:
            self._takes_part = before
            raise

    def check_masks(self, step: int) -> None:
        """Refuse masks that differ between ranks after they have followed the weights."""
        self.agreed(f"the update in step {step}", lambda: None, lambda _: self._masks())

    def prepare(self, where: str, ready: Callable[[], None]) -> None:
        """Bring every rank to the point where it can score.

        A rank that has seen no batch yet learns the shapes of inputs from one that has.

        Args:
            where: name of what is done, for messages.
            ready: learns what a forward tells.
        """
        if not self.several:
            ready()
            return
        traced = self.run.anatomy.topology is not None
        told = bool(self.run.anatomy.places)
        mine = plain_inputs(self.run), traced, sorted(self.run.masks.idle) if told else None
        seen = processes.gather(mine, self.device)
        known = next((inputs for inputs, _, _ in seen if inputs is not None), None)

        def learn() -> None:
            restore_inputs(self.net, self.run, known)
            ready()
            if any(traced for _, traced, _ in seen):
                ensure_topology(self.net, self.run)
            for _, _, idle in seen:  # what runs on one rank is counted on all
                if idle is not None:
                    self.run.masks.idle &= frozenset(idle)

        self.agreed(where, learn, lambda _: {**self._settings(), **self._traces()})

    def _settings(self) -> dict[str, Any]:
        settings = dict(self.run.identity)
        layers = {name: self.net.get_submodule(name) for name in self.run.layers}
        return {
            "method": settings.pop("name"),
            **flat(settings, "method."),
            "seed": self.run.seed,
            "step": self.run.step,
            "updates so far": self.run.draws,
            **{f"shape of {n!r}": list(layer.weight.shape) for n, layer in layers.items()},  # type: ignore[union-attr, operator, arg-type]
        }

    def _masks(self) -> dict[str, Any]:
        return {"masks": processes.digest(*self.run.masks.state_dict().values())}

    def _traces(self) -> dict[str, Any]:
        """Return what the first forward has told of the network: a hash of each trace."""
        topology, coupling = self.run.anatomy.topology, self.run.anatomy.coupling
        found = {}
        if coupling is not None:
            found["coupled channels"] = _hash(_plain(coupling))
        if topology is not None:
            chains = {layer: sorted(ends) for layer, ends in topology.through.items()}
            told = [topology.neurons, topology.norms, topology.spread, chains]
            found["neurons behind layers"] = _hash(told)
        return found

    # ---- joining -------------------------------------------------------------------------------

    def joined(self) -> AbstractContextManager[None]:
        """Let every rank score what all have seen, inside this block."""
        return joining.joined(self.net, self.run) if self.several else nullcontext()

    def gather_statistics(self) -> None:
        """Move what all ranks have recorded and summed to rank 0; the sum stays the same."""
        if self.several:
            joining.gather(self.net, self.run)


def _check_alike(where: str, everybody: list[tuple[str | None, dict[str, Any]]]) -> None:
    for rank, (said, _) in enumerate(everybody):
        if said is not None:
            raise RuntimeError(f"Rank {rank} of {len(everybody)} failed at {where}: {said}")
    for key in {key: None for _, facts in everybody for key in facts}:
        values = [facts.get(key) for _, facts in everybody]
        if any(value != values[0] for value in values):
            listed = ", ".join(f"{value!r} on rank {rank}" for rank, value in enumerate(values))
            raise RuntimeError(
                f"Expected every rank to have the same {key} at {where} but it is {listed}: build "
                "the same wrapper, with the same seed, on every rank, load a checkpoint on all of "
                "them, and keep the weights equal (torch.nn.parallel.DistributedDataParallel does)"
            )


def _hash(plain: Any) -> str:  # noqa: ANN401
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _plain(coupling: Coupling) -> list[Any]:
    def rows(indices: Mapping[str, Tensor]) -> dict[str, list[Any]]:
        return {name: index.tolist() for name, index in indices.items()}

    groups = [
        [g.name, g.units, sorted(g.bare), *map(rows, (g.producers, g.norms, g.consumers))]
        for g in coupling.groups
    ]
    return [groups, sorted(coupling.frozen)]
