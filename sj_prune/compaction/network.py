"""From a masked network to a smaller one that computes the same."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, NamedTuple

from torch import Tensor, nn

from sj_prune import _host
from sj_prune.compaction.attributes import follow, inside
from sj_prune.compaction.build import Index, copied, shrink
from sj_prune.compaction.errors import CompactionError
from sj_prune.compaction.forward import doubled
from sj_prune.compaction.owned import rebind
from sj_prune.compaction.proof import listed, prove
from sj_prune.compaction.slices import Cut, silent_units
from sj_prune.compaction.trial import double_of, tried_out
from sj_prune.network.coupling import Coupling, Group, couple
from sj_prune.network.inputs import as_args

logger = logging.getLogger("sj_prune")

Units = list[tuple[Group, Tensor]]


class Compacted(NamedTuple):
    """A smaller network, and the indices of its parameters and buffers in the masked one."""

    net: nn.Module
    kept: dict[str, Index]


def compact(net: nn.Module, example_input: Any, *, skip: Collection[str] = ()) -> nn.Module:  # noqa: ANN401
    """Return a smaller network that computes what the masked one does.

    A unit of coupled channels is removed if it is silent: gamma and beta are 0 at its channels in
    every norm (whatever the filters behind them are), or filter and bias in every layer that
    something else than a norm reads. At least one unit of a group stays. What the network does not
    keep apart stays too; `sj_prune.network.coupling.couple` says why.

    Before it returns, equality with the masked network is proved in float64 on `example_input`:
    outputs, input gradients where the host differentiates in eval mode, and once more with a dense
    signal in place of spikes, so that silent neurons hide nothing.

    Args:
        net: a network with its masks burnt in (`PruningWrapper.finalize`), multi- or single-step.
            It comes back exactly as it was.
        example_input: one input, such as ``x_seq [T, N, C, H, W]``; a tuple holds several
            positional ones. Real data makes the proof stronger.
        skip: names of layers whose output channels are to stay.

    Returns:
        A copy with stock classes and smaller layers, which trains on: same mode, hooks,
        ``requires_grad``, type, device and memory format; neuron memories reset. Optimizers that
        the network itself owns go on training the copy, their slots cut.

    Raises:
        TypeError: if `net` is no module, or is still wrapped.
        CompactionError: if the smaller network does not compute the same; names the layer.
    """
    return build_compact(net, example_input, skip=skip).net


def build_compact(net: nn.Module, example_input: Any, *, skip: Collection[str] = ()) -> Compacted:  # noqa: ANN401
    """As `compact`; says too what stayed of every parameter and buffer."""
    _check(net, skip)
    args = as_args(example_input)
    masked = _copy(net).double().eval()
    traced = couple(net, args, skip=skip)
    # Of the other groups nothing leaves, so there is nothing to try.
    units = _leaving(net, traced)
    coupling = tried_out(traced, lambda: masked, args, only={group.name for group, _ in units})
    cuttable = {group.name for group in coupling.groups}
    units = [(group, gone) for group, gone in units if group.name in cuttable]
    cut = Cut.of(units)
    small = _copy(net)
    names = {id(p): name for name, p in small.named_parameters()}
    kept = _cut(small, cut, coupling)
    rebind(small, names, kept)
    prove(
        masked,
        lambda: _cut_alike(masked, cut, coupling, small),
        lambda: double_of(net),
        cut,
        doubled(args),
        lambda name: _about(units, name),
    )
    _log(units, coupling)
    return Compacted(small, kept)


def _cut(net: nn.Module, cut: Cut, coupling: Coupling) -> dict[str, Index]:
    kept = shrink(net, cut)
    follow(net, coupling.widths)
    return kept


def _cut_alike(twin: nn.Module, cut: Cut, coupling: Coupling, small: nn.Module) -> None:
    """Cut a float64 copy as the network that is returned was: of this one equality is proved."""
    _cut(twin, cut, coupling)
    pairs = zip(small.state_dict().items(), twin.state_dict().items(), strict=True)
    for (name, a), (_, b) in pairs:
        if isinstance(a, Tensor) and bool(((a.to(b) != b) & (b == b)).any()):
            raise CompactionError(f"Expected one way to cut {name} but two differ: report it")


def _check(net: nn.Module, skip: Collection[str]) -> None:
    _host.check_module(net)
    if getattr(net, "is_pruning_wrapper", False):
        raise TypeError(
            f"Expected a network with its masks burnt in but got a {type(net).__name__}: call "
            "net = model.finalize() first, then compact(net, example_input)"
        )
    names = dict(net.named_modules())
    unknown = sorted(set(skip) - set(names))
    if unknown:
        raise ValueError(f"Expected skip to name modules of the network but got {unknown}")


def _copy(net: nn.Module) -> nn.Module:
    try:
        return copied(net)
    except Exception as error:  # whatever a user's attribute raises
        raise CompactionError(
            f"Expected a network that copy.deepcopy can copy but got {type(error).__name__}: "
            f"{error}; clear what a forward has kept in attributes of modules, such as tensors "
            "that are part of a graph"
        ) from error


def _leaving(net: nn.Module, coupling: Coupling) -> Units:
    """Return the units of every group that leave, at least one stays."""
    units: Units = []
    for group in coupling.groups:
        gone = silent_units(net, group)
        if gone.all():
            gone[0] = False
            logger.debug(
                "compact: one of the %d silent channels of %s stays, for no group is emptied",
                group.units,
                group.name,
            )
        elif not gone.any():
            logger.debug(
                "compact: %s stays whole: none of its %d channels is silent",
                group.name,
                group.units,
            )
        if gone.any():
            units.append((group, gone))
    return units


def _about(units: Units, name: str) -> str:
    """Return the groups that a module has to do with, or all of them."""

    def near(group: Group) -> bool:
        return any(inside(other, name) for other in group.modules())

    found = [group.name for group, _ in units if name and near(group)]
    return listed(found or [group.name for group, _ in units])


def _log(units: Units, coupling: Coupling) -> None:
    """Say what left, and at DEBUG what stayed and why."""
    gone = [int(leaving.sum()) for _, leaving in units]
    logger.info(
        "compact: %d of %d channels removed, in %d of %d groups; %d layers stay as they are",
        sum(gone),
        sum(group.units for group in coupling.groups),
        len(gone),
        len(coupling.groups),
        len(coupling.frozen),
    )
    for name, reason in coupling.frozen.items():
        logger.debug("compact: %s stays as it is: %s", name, reason)
