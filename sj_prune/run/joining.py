"""What the ranks of a distributed run have seen, added up: statistics, sums, gradients.

Every function is collective: all ranks call it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune.neurons.activity import Activity
from sj_prune.neurons.convert import sensors
from sj_prune.run import processes
from sj_prune.run.state import Run
from sj_prune.run.views import scored_parameters, view


def device_of(net: nn.Module) -> torch.device:
    """Return where a network is."""
    return next(net.parameters()).device


@contextmanager
def joined(net: nn.Module, run: Run) -> Iterator[None]:
    """Let every rank score what all have seen, inside this block.

    Recorded sums and what the method has observed are added up over the ranks; gradients are
    averaged if they differ (behind DDP they do not). Afterwards each rank has its own again.
    """
    nodes = sensors(net)
    with ExitStack() as stack:
        for node, activity in _joined_activities(net, run).items():
            stack.enter_context(_swapped(nodes[node], "activity", activity))
        for name, state in _joined_state(net, run).items():
            stack.enter_context(_updated(run.memory[name], state))
        for parameter, grad in _joined_gradients(net, run):
            stack.enter_context(_swapped(parameter, "grad", grad))
        yield


def gather(net: nn.Module, run: Run) -> None:
    """Move what all ranks have recorded and summed to rank 0; the sum stays the same."""
    first = processes.rank() == 0
    activities, states = _joined_activities(net, run), _joined_state(net, run)
    nodes = sensors(net)
    for name, joined in activities.items():
        activity = nodes[name].activity
        activity.clear()
        if first:
            activity.merge(joined)
    for name, state in states.items():
        for key, value in state.items():
            run.memory[name][key].copy_(value if first else value.zero_())


def _joined_activities(net: nn.Module, run: Run) -> dict[str, Activity]:
    """Return the sums over ranks by neuron layer, for all that recorded on some rank."""
    nodes = sensors(net)
    mine = {n: (node.activity.names, node.activity.channels) for n, node in nodes.items()}
    everybody = processes.gather(mine, device_of(net))
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
            empty[name].allocate(widths[0][1], device_of(net))
    return _add_up(net, empty)


def _add_up(net: nn.Module, empty: dict[str, Activity]) -> dict[str, Activity]:
    tensors: list[Tensor] = []
    nodes = sensors(net)
    for name, joined in empty.items():
        if nodes[name].activity.sums is not None:
            joined.merge(nodes[name].activity)
        assert joined.sums is not None  # noqa: S101 (for the type checker)
        assert joined.samples is not None  # noqa: S101
        tensors += [joined.sums, joined.samples]
    totals = iter(processes.sum_over_ranks(tensors, device_of(net)))
    for joined in empty.values():
        joined.sums, joined.samples = next(totals), next(totals).to(torch.int64)
    return empty


def _joined_state(net: nn.Module, run: Run) -> dict[str, dict[str, Tensor]]:
    """Return the sums over ranks of what scores add up, by layer and key."""
    scores, layers = run.plan.accumulating, run.masks.layers
    if not scores:
        return {}
    views = {name: view(net, run, name) for name in layers}  # makes what is missing
    places = [(n, key) for n in layers for score in scores for key in score.sums(views[n])]
    mine = [run.memory[name][key] for name, key in places]
    found: dict[str, dict[str, Tensor]] = {}
    totals = processes.sum_over_ranks(mine, device_of(net))
    for (name, key), total, before in zip(places, totals, mine, strict=True):
        found.setdefault(name, {})[key] = total.to(before.dtype)
    return found


def _joined_gradients(net: nn.Module, run: Run) -> list[tuple[Tensor, Tensor]]:
    """Return the mean over ranks of the scored gradients that differ between them."""
    plan = run.plan
    if plan.gradient != "update" and not plan.accumulating:
        return []
    parameters = scored_parameters(net, run)
    mine = [None if p.grad is None else processes.digest(p.grad) for p in parameters]
    everybody = processes.gather(mine, device_of(net))
    found = []
    for parameter, hashes in zip(parameters, zip(*everybody, strict=True), strict=True):
        if len(set(hashes)) > 1:
            grad = parameter.grad
            own = torch.zeros_like(parameter) if grad is None else grad
            found.append((parameter, processes.average(own)))
    return found


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
