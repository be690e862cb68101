"""What plots are given, in one form and checked: histories of runs, values of channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

from sj_prune.neurons.convert import sensors
from sj_prune.reports.measured import channel_means
from sj_prune.run.history import UpdateRecord
from sj_prune.wrapper import PruningWrapper

#: of one run
History: TypeAlias = PruningWrapper | Sequence[UpdateRecord]
#: of several by name, or of one
Histories: TypeAlias = History | Mapping[str, History]
#: one value a channel by layer name, or a wrapper that has such
Channels: TypeAlias = PruningWrapper | Mapping[str, Tensor]


def named(argument: str, given: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """Return what has names, as most plots want it.

    Raises:
        TypeError: for something else, naming the argument.
    """
    if not isinstance(given, Mapping):
        raise TypeError(
            f"Expected {argument} by name, as a dict, but got {type(given).__name__}: "
            '{"a name": ...}'
        )
    return given


def history_of(given: Any, argument: str = "history") -> Sequence[UpdateRecord]:  # noqa: ANN401
    """Return the records of one run.

    Raises:
        TypeError: for something else, such as several histories by name.
    """
    records = given.history if isinstance(given, PruningWrapper) else given
    is_sequence = isinstance(records, Sequence) and not isinstance(records, str)
    if not is_sequence or not all(isinstance(record, UpdateRecord) for record in records):
        raise TypeError(
            f"Expected {argument} to be a PruningWrapper or its history, a list of UpdateRecord, "
            f"but got {type(given).__name__}: for several runs call this plot once for each"
        )
    return records


def histories_of(given: Histories) -> dict[str, Sequence[UpdateRecord]]:
    """Return the records of several runs by name; one alone has the name "".

    Raises:
        TypeError: for something else.
    """
    if not isinstance(given, Mapping):
        return {"": history_of(given, "histories")}
    return {name: history_of(each, f"histories[{name!r}]") for name, each in given.items()}


def channel_values(
    given: Channels,
    example_input: Any,  # noqa: ANN401
    statistic: str,
    argument: str,
) -> dict[str, Tensor]:
    """Return a statistic per channel of every neuron layer, ``[C]`` each.

    Args:
        given: a wrapper, or the values.
        example_input: what a wrapper measures it on; without it, what its neurons have recorded.
        statistic: its name.
        argument: what `given` is called, for errors.

    Raises:
        TypeError: for something else.
        ValueError: for NaN or infinite values, or neurons that are given such; names the layer.
    """
    if not isinstance(given, PruningWrapper):
        return finite_values(named(argument, given), argument)
    net = given.session.net
    with _noting_overflow(net) as overflowed:
        values = channel_means(given.session, example_input, statistic)
    # A sample with NaN does not count, so a layer of nothing else would be missing unsaid.
    overflowed += [n for n, s in sensors(net).items() if s.activity.lost and not s.activity.count]
    if overflowed:
        raise ValueError(
            f"Expected finite inputs of neurons but those of layer {overflowed[0]!r} hold NaN or "
            "inf: look for a diverged loss or an overflow in the weights before it, or such "
            "numbers in example_input"
        )
    return finite_values(values, argument)


def finite_values(values: Mapping[str, Tensor], argument: str) -> dict[str, Tensor]:
    """Return one flat tensor a layer; one without values is left out.

    Raises:
        ValueError: for NaN or infinite ones, naming the layer.
    """
    for layer, each in values.items():
        # A plot would leave them out, or all others, and count them all the same.
        if not each.isfinite().all():
            raise ValueError(
                f"Expected finite values to draw but {argument} has NaN or inf in layer {layer!r}: "
                "look for a diverged loss or an overflow, or leave the layer out"
            )
    return {layer: v.detach().flatten() for layer, v in values.items() if v.numel()}


@contextmanager
def _noting_overflow(net: nn.Module) -> Iterator[list[str]]:
    """Note which neuron layers are given NaN or infinite numbers in this block."""
    found: list[str] = []

    def note(name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        if not all(x.isfinite().all() for x in tensors):
            found.append(name)

    hooks = {name: net.get_submodule(name) for name in sensors(net)}
    handles = [m.register_forward_pre_hook(partial(note, name)) for name, m in hooks.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
