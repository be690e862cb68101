"""Proof that a smaller network computes what the masked one does.

Both run in float64 and eval mode. Once as they are, spikes and input gradients compared. Once with
a *dense signal*: every neuron layer returns a smooth function of its input that is 0 at 0, so that
a network whose neurons are silent cannot hide a wrong answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from sj_prune import _host
from sj_prune.compaction.errors import CompactionError
from sj_prune.compaction.forward import (
    ForwardError,
    Result,
    differ,
    evaluate,
    finite,
    hooked,
    tensors_of,
)
from sj_prune.compaction.slices import Cut, staying
from sj_prune.network.layers import is_weighted
from sj_prune.network.norms import is_channel_norm

logger = logging.getLogger("sj_prune")


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return some names for a message."""
    more = f" (and {len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def prove(
    twin: nn.Module,
    shrink: Callable[[], None],
    masked: Callable[[], nn.Module],
    cut: Cut,
    args: tuple[Any, ...],
    groups: Callable[..., str],
) -> None:
    """Raise unless a float64 copy in eval mode computes the same before and after it is cut.

    Args:
        twin: a copy of the masked network; it is the smaller one afterwards.
        shrink: cuts it.
        masked: returns another copy of the masked network.
        cut: what leaves.
        args: positional inputs in float64.
        groups: names the groups that a module has to do with, for messages.

    Raises:
        CompactionError: naming the first layer that differs, or the module that raised.
    """
    fired: dict[str, bool] = {}

    def note(name: str, _: Any, out: Any) -> None:  # noqa: ANN401
        fired[name] = fired.get(name, False) or any(bool(x.any()) for x in tensors_of(out))

    try:
        expected = {True: evaluate(twin, args, {}, dense=True)}
        with hooked(twin, note, _host.is_neuron):
            expected[False] = evaluate(twin, args, {}, dense=False)
    except ForwardError as error:
        raise CompactionError(
            f"Expected the network to run on example_input in float64 but {error}: let its "
            "forward keep the type of its input and return tensors: equality is proved on them"
        ) from error
    shrink()
    for dense, result in expected.items():
        try:
            actual = evaluate(twin, args, {}, dense=dense)
        except ForwardError as error:
            raise CompactionError(
                f"Expected the smaller network to run on example_input but {error}. The width of "
                f"{groups(error.module)} seems to be written into the forward of the network: "
                "read it from the tensor there, or name the layer in skip"
            ) from error
        if not _same(result, actual):
            raise CompactionError(_first_difference(masked(), twin, cut, args, dense, groups))
        if not finite(result.outputs):
            raise CompactionError(
                "Expected finite outputs on example_input but got inf or nan: nothing can be "
                "proved; give inputs and weights that the network can compute with"
            )
    silent = [name for name, any_spike in fired.items() if not any_spike]
    if silent:
        logger.warning(
            "compact: on example_input no neuron fires in %s; there the proof of equality rests "
            "on its dense signal alone. Give real inputs to have it in spikes too",
            listed(silent),
        )


def _same(a: Result, b: Result) -> bool:
    if len(a.outputs) != len(b.outputs) or len(a.gradients) != len(b.gradients):
        return False
    for x, y in zip((*a.outputs, *a.gradients), (*b.outputs, *b.gradients), strict=True):
        if (x is None) != (y is None) or (x is not None and y is not None and differ(x, y)):
            return False
    return True


def _first_difference(
    masked: nn.Module,
    small: nn.Module,
    cut: Cut,
    args: tuple[Any, ...],
    dense: bool,
    groups: Callable[..., str],
) -> str:
    """Return the message that names the first module whose output differs."""
    kind = "a dense signal" if dense else "spikes"
    a, b = (_layer_outputs(net, args, dense) for net in (masked, small))
    for (name, x), (_, y) in zip(a, b, strict=False):
        difference = differ(_kept(x, y, cut.leaving(name)), y)
        if difference:
            return (
                f"Expected the smaller network to equal the masked one in float64 but with {kind} "
                f"the output of {name} differs first, by up to {difference:.3g}: channels of "
                f"{groups(name)} that are silent are still read somewhere; name the layer in "
                "skip, and please report the network"
            )
    return (
        f"Expected the smaller network to equal the masked one in float64 but with {kind} its "
        "outputs or input gradients differ, though no layer's output does: look for operations "
        "outside of modules in the forward, and name the layers that feed them in skip"
    )


def _layer_outputs(net: nn.Module, args: tuple[Any, ...], dense: bool) -> list[tuple[str, Tensor]]:
    """Return the outputs of layers, norms, neurons and childless modules in order of execution."""
    found: list[tuple[str, Tensor]] = []

    def note(name: str, _: Any, out: Any) -> None:  # noqa: ANN401
        if isinstance(out, Tensor):
            found.append((name, out.detach()))

    def seen(m: nn.Module) -> bool:
        return is_weighted(m) or is_channel_norm(m) or _host.is_neuron(m) or not any(m.children())

    with hooked(net, note, seen):
        evaluate(net, args, {}, dense=dense)
    return found


def _kept(x: Tensor, y: Tensor, leaving: Tensor | None) -> Tensor:
    """Return the channels of a masked output that the smaller one has."""
    if leaving is None or x.shape == y.shape or x.ndim != y.ndim:
        return x if x.shape == y.shape else y  # of a module without weights: nothing is known
    for dim in range(x.ndim):
        if x.shape[dim] != y.shape[dim] and int(leaving.max()) < x.shape[dim]:
            keep = staying(x.shape[dim], leaving)
            return x if keep is None else x.index_select(dim, keep.to(x.device))
    return x
