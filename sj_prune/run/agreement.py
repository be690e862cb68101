"""What the ranks of a distributed run tell each other: statistics, gradients, and that they agree.

A wrapper speaks to its likes on other ranks in `attach`, in mask updates once an optimizer is
attached, and in `gather_statistics`; never in a forward or backward pass, and with one process
never at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from sj_prune.methods.base import Method
from sj_prune.neurons.activity import Activity
from sj_prune.run import processes as distributed

if TYPE_CHECKING:
    from sj_prune.network.coupling import Coupling
    from sj_prune.wrapper import PruningWrapper

__all__ = ["Ranks"]

T = TypeVar("T")


class Ranks:
    """Lets the wrappers of one network on all ranks act as one.

    Args:
        wrapper: the one on this rank.
    """

    def __init__(self, wrapper: PruningWrapper) -> None:
        self.wrapper = wrapper
        self._takes_part = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_takes_part": False}  # a copy is detached

    @property
    def several(self) -> bool:
        """Whether there is anybody to speak to, and this wrapper takes part in it."""
        return self._takes_part and distributed.world_size() > 1

    @property
    def speaks(self) -> bool:
        """Whether it is for this rank to say what happened to all."""
        return not self.several or distributed.rank() == 0

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.wrapper.net.parameters()).device

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
        everybody = distributed.gather((said, mine), self.device)
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
        wrapper = self.wrapper
        seen = distributed.gather((wrapper.inputs, wrapper.topology is not None), self.device)
        known = next((inputs for inputs, _ in seen if inputs is not None), None)

        def learn() -> None:
            wrapper.restore_outline(known)
            ready()
            if any(traced for _, traced in seen):
                wrapper.ensure_topology()

        self.agreed(where, learn, lambda _: {**self._settings(), **self._traces()})

    def _settings(self) -> dict[str, Any]:
        wrapper = self.wrapper
        settings = wrapper.method.describe()
        return {
            "method": settings.pop("name"),
            **{f"method.{name}": value for name, value in settings.items()},
            "seed": wrapper.seed,
            "step": wrapper.step,
            "updates so far": wrapper.updater.draws,
            **{
                f"shape of {name!r}": list(layer.weight.shape)
                for name, layer in wrapper.layers.items()
            },
        }

    def _masks(self) -> dict[str, Any]:
        return {"masks": distributed.digest(*self.wrapper.masks.state_dict().values())}

    def _traces(self) -> dict[str, Any]:
        """Return what the first forward has told of the network: a hash of each trace."""
        topology, coupling = self.wrapper.topology, self.wrapper.coupling
        found = {}
        if coupling is not None:
            found["coupled channels"] = _hash(_plain(coupling))
        if topology is not None:
            told = [topology.neurons, topology.norms, topology.spread]
            found["neurons behind layers"] = _hash(told)
        return found

    # ---- joining -------------------------------------------------------------------------------

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Let every rank score what all have seen, inside this block.

        Recorded sums and what the method has observed are added up over the ranks; gradients are
        averaged if they differ (behind DDP they do not). Afterwards each rank has its own again.
        """
        if not self.several:
            yield
            return
        with ExitStack() as stack:
            for node, activity in self._joined_activities().items():
                stack.enter_context(_swapped(self.wrapper.nodes[node], "activity", activity))
            for name, state in self._joined_state().items():
                stack.enter_context(_updated(self.wrapper.updater.state[name], state))
            for parameter, grad in self._joined_gradients():
                stack.enter_context(_swapped(parameter, "grad", grad))
            yield

    def gather_statistics(self) -> None:
        """Move what all ranks have recorded and observed to rank 0; the sum stays the same."""
        if not self.several:
            return
        first = distributed.rank() == 0
        activities, states = self._joined_activities(), self._joined_state()
        for name, joined in activities.items():
            activity = self.wrapper.nodes[name].activity
            activity.clear()
            if first:
                activity.merge(joined)
        for name, state in states.items():
            for key, value in state.items():
                self.wrapper.updater.state[name][key].copy_(value if first else value.zero_())

    def _joined_activities(self) -> dict[str, Activity]:
        """Return the sums over ranks by neuron layer, for all that recorded on some rank."""
        nodes = self.wrapper.nodes
        mine = {n: (node.activity.names, node.activity.channels) for n, node in nodes.items()}
        everybody = distributed.gather(mine, self.device)
        empty: dict[str, Activity] = {}
        for name in nodes:
            widths = [ranks[name] for ranks in everybody if ranks[name][1] is not None]
            if widths and len(set(widths)) > 1:
                raise RuntimeError(
                    f"Expected the same statistics of neuron layer {name!r} on every rank but they "
                    f"are {[ranks[name] for ranks in everybody]} (names and channels)"
                )
            if widths:
                empty[name] = Activity(widths[0][0])
                empty[name].allocate(widths[0][1], self.device)
        return self._add_up(empty)

    def _add_up(self, empty: dict[str, Activity]) -> dict[str, Activity]:
        tensors: list[Tensor] = []
        for name, joined in empty.items():
            if self.wrapper.nodes[name].activity.sums is not None:
                joined.merge(self.wrapper.nodes[name].activity)
            assert joined.sums is not None  # noqa: S101 (for the type checker)
            assert joined.samples is not None  # noqa: S101
            tensors += [joined.sums, joined.samples]
        totals = iter(distributed.sum_over_ranks(tensors, self.device))
        for joined in empty.values():
            joined.sums, joined.samples = next(totals), next(totals).to(torch.int64)
        return empty

    def _joined_state(self) -> dict[str, dict[str, Tensor]]:
        """Return the sums over ranks of what the method observes, by layer and key."""
        keys, updater = self.wrapper.method.observed, self.wrapper.updater
        if not keys:
            return {}
        for name in self.wrapper.masks.layers:
            updater.view(name)  # makes what is not there yet
        places = [(name, key) for name in self.wrapper.masks.layers for key in keys]
        mine = [updater.state[name][key] for name, key in places]
        found: dict[str, dict[str, Tensor]] = {}
        totals = distributed.sum_over_ranks(mine, self.device)
        for (name, key), total, before in zip(places, totals, mine, strict=True):
            found.setdefault(name, {})[key] = total.to(before.dtype)
        return found

    def _joined_gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Return the mean over ranks of the scored gradients that differ between them."""
        method = self.wrapper.method
        if method.gradient != "update" and type(method).observe is Method.observe:
            return []
        parameters = list(self.wrapper.updater.scored_parameters())
        mine = [None if p.grad is None else distributed.digest(p.grad) for p in parameters]
        everybody = distributed.gather(mine, self.device)
        found = []
        for parameter, hashes in zip(parameters, zip(*everybody, strict=True), strict=True):
            if len(set(hashes)) > 1:
                grad = parameter.grad
                own = torch.zeros_like(parameter) if grad is None else grad
                found.append((parameter, distributed.average(own)))
        return found


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


@contextmanager
def _swapped(owner: Any, attribute: str, value: Any) -> Iterator[None]:  # noqa: ANN401
    before = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, before)


@contextmanager
def _updated(values: dict[str, Tensor], changed: Mapping[str, Tensor]) -> Iterator[None]:
    before = {key: values[key] for key in changed}
    values.update(changed)
    try:
        yield
    finally:
        values.update(before)
