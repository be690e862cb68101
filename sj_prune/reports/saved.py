"""What the checkpoint of a wrapper holds, without its network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sj_prune.methods.identity import flat
from sj_prune.reports.tables import table
from sj_prune.run.damage import EXTRA_STATE
from sj_prune.run.history import UpdateRecord

_HEADERS = ("masks of", "weight", "kept", "of", "sparsity", "")


def describe_checkpoint(checkpoint: Any) -> str:  # noqa: ANN401
    """Return method, step, sparsity of each layer and the last update, as plain text.

    Args:
        checkpoint: what `PruningWrapper.state_dict` returned, or anything that holds it: that of a
            larger module, or a dictionary with an optimizer's beside it.

    Raises:
        ValueError: if there is none in it, or it is damaged.
    """
    found = list(_wrappers(checkpoint, ""))
    if not found:
        raise ValueError(
            f"Expected the state_dict of a PruningWrapper, with {EXTRA_STATE!r} in it, but found "
            "none: a network that finalize() returned is saved without masks"
        )
    try:
        texts = [_text(*each) for each in found]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a whole {EXTRA_STATE!r} but it is damaged: {type(error).__name__}: {error}"
        ) from error
    return "\n\n".join(texts)


def _wrappers(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any], Mapping[str, Any]]]:  # noqa: ANN401
    """Yield place, weights by their names in the network, and extra state of every wrapper."""
    for key, each in value.items() if isinstance(value, Mapping) else ():
        name = str(key)
        if isinstance(each, Mapping) and name.endswith(EXTRA_STATE) and "masks" in each:
            start = name.removesuffix(EXTRA_STATE) + "net."
            weights = {str(k).removeprefix(start): v for k, v in value.items()}
            yield where + name.removesuffix(EXTRA_STATE).rstrip("."), weights, each
        else:
            yield from _wrappers(each, f"{where}{name}.")


def _text(where: str, weights: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    method = dict(state["method"])
    lines = [f"method: {method.pop('name')}"]
    lines += [f"  {key} = {value!r}" for key, value in flat(method).items()]
    if where:
        lines.insert(0, f"in: {where.rstrip('.')}")
    lines += [f"step: {state['step']}", f"seed: {state['generator']['seed']}"]
    lines += [f"updates: {len(state['history'])}", "", _masks(weights, state)]
    if state["history"]:
        lines += ["", _last(UpdateRecord(**state["history"][-1]))]
    return "\n".join(lines)


def _masks(weights: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    if not state["masks"]:
        return "no masks: no forward has shown the channels yet"
    uncounted, rows, total, left = state.get("uncounted", ()), [], 0, 0
    for name, mask in state["masks"].items():
        kept, size = int(mask.sum()), mask.numel()
        if not size:
            raise ValueError(
                f"Expected a mask of {name!r} but it is empty: {EXTRA_STATE!r} is damaged"
            )
        weight = weights.get(f"{name}.weight")
        shape = "" if weight is None else "x".join(map(str, weight.shape))
        dense = "dense, not counted" if name in uncounted else ""
        rows.append([name, shape, str(kept), str(size), f"{1 - kept / size:.4f}", dense])
        if not dense:
            total, left = total + size, left + kept
    if total:
        rows.append(["total", "", str(left), str(total), f"{1 - left / total:.4f}", ""])
    return table(_HEADERS, rows, markdown=False)


def _last(record: UpdateRecord) -> str:
    rows = [
        [name, *(str(found.get(name, 0)) for found in (record.kept, record.dropped, record.grown))]
        for name in record.kept
    ]
    said = f"last update: step {record.step}, sparsity {record.sparsity:.4f} of {record.target:.4f}"
    return f"{said}\n{table(('', 'kept', 'dropped', 'grown'), rows, markdown=False)}"
