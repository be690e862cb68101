"""Try what the tracing of channels claims: take a channel out of every group and compare."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.compaction.attributes import candidates, follow, inside, widths_of
from sj_prune.compaction.build import borrowed, copied, shrink
from sj_prune.compaction.forward import ForwardError, Trail, differ, doubled, finite, running
from sj_prune.compaction.slices import Cut, silence
from sj_prune.network.coupling import Coupling, Group, couple
from sj_prune.network.coupling.groups import Widths
from sj_prune.network.layers import is_weighted
from sj_prune.network.norms import is_channel_norm

logger = logging.getLogger("sj_prune")

_WRITTEN = "its width is written into the forward of the network"
_CHANGES = "removing one of its channels changes the output"
_TRIES = (2, 4)  # of ints that may have to follow: for several groups at once, and for a single one
_MOST_UNITS = 4  # that are tried of a group


def couple_checked(
    net: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    skip: Collection[str] = (),
    seed: int = 0,
) -> Coupling:
    """Return the groups of coupled channels of a network that can really be taken out.

    `couple` cannot see a width that a forward reads or has written down (``reshape(T, N, 64, -1)``,
    a division by ``x.shape[2]``). So a few units of every group are silenced on a copy with random
    norms, then taken out of it, and a dense signal is sent through in float64. Where that fails, an
    int that a module keeps (``self.hidden``) and that repeats a width follows it, if the forward
    comes further with it. Groups whose removal fails or changes the output all the same are
    searched for where the forward failed, and frozen with the reason.

    Args:
        net: any network; it comes back exactly as it was.
        args: positional inputs of one forward.
        kwargs: keyword inputs.
        skip: names of layers whose channels are to stay.
        seed: of the choice of units.

    Returns:
        What `couple` returns, less the groups that failed. If the network cannot be copied or does
        not run in float64 it is `couple`'s answer as it is, and a warning is logged.
    """
    coupling = couple(net, args, kwargs, skip=skip)
    return tried_out(coupling, lambda: double_of(net), args, kwargs, seed=seed)


def double_of(net: nn.Module) -> nn.Module:
    """Return a float64 copy in eval mode."""
    return copied(net).double().eval()


def tried_out(
    coupling: Coupling,
    twin: Callable[[], nn.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    only: Collection[str] | None = None,
    seed: int = 0,
) -> Coupling:
    """Return a coupling less the groups that cannot be taken out, as `couple_checked` does.

    Args:
        coupling: as traced.
        twin: returns a float64 copy of the network in eval mode, which comes back as it was.
        args: positional inputs of one forward.
        kwargs: keyword inputs.
        only: names of the groups to try, all by default; the others are kept as they are.
        seed: of the choice of units.
    """
    groups = [g for g in coupling.groups if g.units > 1 and (only is None or g.name in only)]
    if not groups:
        return coupling
    try:
        net = twin()
        with _values_kept(net):
            trial = _Trial(net, groups, args, kwargs or {}, seed)
            frozen = trial.culprits(groups)
    except Exception as error:  # whatever a copy or a forward of the user's raises
        logger.warning(
            "Coupled channels could not be tried out, and are taken as traced: %s: %s",
            type(error).__name__,
            error,
        )
        return coupling
    return _without(coupling, frozen, trial.widths)


def _without(coupling: Coupling, frozen: Mapping[str, str], widths: Widths) -> Coupling:
    reasons = dict(coupling.frozen)
    for group in coupling.groups:
        if group.name in frozen:
            reasons.update(
                {name: reasons.get(name, frozen[group.name]) for name in group.producers}
            )
            logger.info("%s stays as it is: %s", group.name, frozen[group.name])
    kept = tuple(group for group in coupling.groups if group.name not in frozen)
    return replace(coupling, groups=kept, frozen=reasons, widths=widths)


@dataclass(frozen=True)
class _Failure:
    """Why groups cannot be taken out.

    Attributes:
        reason: in words.
        module: the one that raised, None if none did.
        trail: what had run by then; None if all had.
    """

    reason: str
    module: str | None = None
    trail: Trail | None = None

    @property
    def progress(self) -> tuple[float, int]:
        """How far the forward came."""
        return (float("inf"), 0) if self.trail is None else self.trail.progress


class _Trial:
    """Some units of every group silenced on a copy, which is changed, and what comes out of it.

    Attributes:
        widths: ints kept by modules that have turned out to repeat the width of a layer that can
            be cut.
    """

    def __init__(
        self,
        net: nn.Module,
        groups: Sequence[Group],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        seed: int,
    ) -> None:
        generator = torch.Generator("cpu").manual_seed(seed)
        self.net = net
        _randomize(self.net, generator)
        self.chosen = _chosen(groups, generator)
        for group in groups:
            silence(self.net, group, self.chosen[group.name])
        self.widths: Widths = {}
        self._guessed: Widths = {}
        self._inputs = doubled(args), doubled(dict(kwargs))

    def culprits(self, groups: Sequence[Group]) -> dict[str, str]:
        """Return the names of groups that cannot be taken out -> why. The others can, together.

        Raises:
            ForwardError: if the forward fails with all channels.
            ValueError: if it returns inf or nan.
        """
        accepted: list[Group] = []
        frozen: dict[str, str] = {}

        def accept(pending: Sequence[Group]) -> None:
            failure = self._repaired(accepted, pending)
            if failure is None:
                accepted.extend(pending)
                self.widths = self._guessed
            elif len(pending) == 1:
                frozen[pending[0].name] = failure.reason
            else:
                for part in _parts(pending, failure.module):
                    accept(part)

        with running(self.net, dense=True) as self._run:
            self._expected = self._run(*self._inputs)
            if not finite(self._expected.outputs):
                raise ValueError("Expected finite outputs but got inf or nan: give finite inputs")
            accept(groups)
        return frozen

    def _repaired(self, accepted: Sequence[Group], pending: Sequence[Group]) -> _Failure | None:
        """Return why these groups cannot be taken out, whatever ints follow; note those that do."""
        cut = Cut.of((group, self.chosen[group.name]) for group in (*accepted, *pending))
        before = widths_of(self.net, cut)
        with borrowed(self.net, before):
            try:
                shrink(self.net, cut)
            except (RuntimeError, IndexError) as error:
                return _Failure(f"its channels cannot be cut out of the layers: {error}")
            if len(pending) == 1:
                self._guessed = self.widths
            failure = self._failure(self._guessed)
            while failure is not None:
                ran = None if failure.trail is None else failure.trail.entered
                found = candidates(self.net, before, self._guessed, failure.module or "", ran)
                for candidate in found[: _TRIES[len(pending) == 1]]:
                    widths = {**self._guessed, **candidate}
                    now = self._failure(widths)
                    if now is None or now.progress > failure.progress:
                        self._guessed, failure = widths, now
                        break
                else:
                    break
        return failure

    def _failure(self, widths: Widths) -> _Failure | None:
        """Return why the network that has been cut does not compute the same, or None."""
        with borrowed(self.net, {name for name, _ in widths}):
            follow(self.net, widths)
            try:
                actual = self._run(*self._inputs)
            except ForwardError as error:
                return _Failure(f"{_WRITTEN}: {error}", error.module, error.trail)
        pairs = zip(self._expected.outputs, actual.outputs, strict=False)
        differs = any(differ(a, b) for a, b in pairs)
        return _Failure(_CHANGES) if differs else None


@contextmanager
def _values_kept(net: nn.Module) -> Iterator[None]:
    """Put the values of a copy's parameters and buffers back."""
    values = [(t, t.detach().clone()) for t in (*net.parameters(), *net.buffers())]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)


def _chosen(groups: Sequence[Group], generator: torch.Generator) -> dict[str, Tensor]:
    """Return the units of each group that are tried: different numbers for groups of one width."""
    chosen: dict[str, Tensor] = {}
    alike: Counter[int] = Counter()
    for group in groups:
        number = 1 + alike[group.units] % min(group.units - 1, _MOST_UNITS)
        alike[group.units] += 1
        units = torch.zeros(group.units, dtype=torch.bool, device="cpu")
        units[torch.randperm(group.units, generator=generator, device="cpu")[:number]] = True
        chosen[group.name] = units
    return chosen


def _parts(groups: Sequence[Group], module: str | None) -> tuple[Sequence[Group], Sequence[Group]]:
    """Divide groups into those that are likely to be taken out, and those that are not.

    Suspect are groups with channels on both sides of the module that raised, or inside of it.
    """
    if module is not None:
        sides = [{inside(name, module) for name in group.modules()} for group in groups]
        for suspect in ({True, False}, {True}):
            found = [g for g, side in zip(groups, sides, strict=True) if suspect <= side]
            if 0 < len(found) < len(groups):
                return [g for g in groups if g not in found], found
    middle = len(groups) // 2
    return groups[:middle], groups[middle:]


def _randomize(net: nn.Module, generator: torch.Generator) -> None:
    """Open every path of a copy: norms and gates that start at 0, filters that are 0."""

    def uniform(t: Tensor | None, low: float, high: float) -> None:
        if t is not None:
            values = torch.rand(t.shape, generator=generator, dtype=t.dtype, device="cpu")
            t.copy_(values * (high - low) + low)

    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                uniform(parameter, 0.5, 1.5)
        for module in net.modules():
            if is_channel_norm(module):
                uniform(module._parameters["weight"], 0.5, 1.5)
                uniform(module._parameters["bias"], -0.5, 0.5)
                uniform(module._buffers["running_mean"], -0.1, 0.1)
                uniform(module._buffers["running_var"], 0.5, 1.5)
            elif is_weighted(module):
                weight = module._parameters.get("weight")
                if weight is not None and bool((weight.flatten(1) == 0).all(1).any()):
                    bound = weight[0].numel() ** -0.5
                    uniform(weight, -bound, bound)
