"""Weights of an ONNX graph as the nonzero ones and the gaps between them: plain nodes undo it."""

from __future__ import annotations

from typing import Any

import numpy as np

_FARTHEST = 255  # that a gap says in one byte
_LARGE = 2**14  # bytes from which it is worth the nodes


def store_sparse(onnx: Any, model: Any, names: list[str]) -> None:  # noqa: ANN401
    """Replace initializers by values, gaps and the nodes that scatter them, where that is smaller.

    A file is not compressed, and the standard's own sparse tensors take 8 bytes an index. What a
    runtime computes from initializers alone it computes once, when it loads the graph.

    Args:
        onnx: the package.
        model: `onnx.ModelProto`, changed in place.
        names: of initializers.
    """
    stored = {t.name: t for t in model.graph.initializer}
    for name in names:
        array = onnx.numpy_helper.to_array(stored[name])
        values, gaps = packed(array)
        if (
            array.nbytes < _LARGE
            or not len(values)
            or 2 * (values.nbytes + gaps.nbytes) > array.nbytes
        ):
            continue
        model.graph.initializer.remove(stored[name])
        parts = {"values": values, "gaps": gaps, "size": np.array([array.size])}
        parts |= {"shape": np.array(array.shape), "axis": np.array(0)}
        of = {part: f"{name}_{part}" for part in (*parts, "steps", "places", "zeros", "flat")}
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(value, of[part]) for part, value in parts.items()
        )
        zero = onnx.numpy_helper.from_array(np.zeros(1, array.dtype))
        node, scattered = onnx.helper.make_node, [of["zeros"], of["places"], of["values"]]
        nodes = (
            node("Cast", [of["gaps"]], [of["steps"]], to=onnx.TensorProto.INT64),
            node("CumSum", [of["steps"], of["axis"]], [of["places"]]),
            node("ConstantOfShape", [of["size"]], [of["zeros"]], value=zero),
            node("ScatterElements", scattered, [of["flat"]], axis=0),
            node("Reshape", [of["flat"], of["shape"]], [name]),
        )
        for position, each in enumerate(nodes):
            model.graph.node.insert(position, each)


def packed(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nonzero values and how far each lies from the one before, in bytes.

    Where that is too far, zeros stand in between.
    """
    flat = array.ravel()
    places = np.flatnonzero(flat)
    gaps = np.diff(places, prepend=0)
    between = np.maximum(gaps - 1, 0) // _FARTHEST
    last = np.cumsum(between + 1) - 1
    steps = np.full(len(places) + int(between.sum()), _FARTHEST, np.uint8)
    values = np.zeros(len(steps), array.dtype)
    steps[last], values[last] = gaps - _FARTHEST * between, flat[places]
    return values, steps


def unpacked(stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return an initializer as it was, by name."""
    if name in stored:
        return stored[name]
    found = np.zeros(stored[f"{name}_shape"], stored[f"{name}_values"].dtype)
    found.reshape(-1)[stored[f"{name}_gaps"].cumsum(dtype=np.int64)] = stored[f"{name}_values"]
    return found
