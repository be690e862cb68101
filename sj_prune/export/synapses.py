"""The connections of a network, one by one: for whoever maps them to something else."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from sj_prune.deploy.plan import Layer, Plan
from sj_prune.export.folded import folded, layers


def synapses(net: nn.Module, x_seq: Tensor) -> list[Any]:
    """Return the connection matrix of each layer: one entry a synapse, norms folded.

    A weight of a convolution is a synapse at every position at which it meets the map and not the
    padding. Weights that are 0 are no synapses.

    Args:
        net: a stock network in multi-step mode; left as it was.
        x_seq: an input ``[T, N, *]`` (or ``[N, *]``): only its shape matters.

    Returns:
        `scipy.sparse.csr_array` of ``[C_out * H_out * W_out, C_in * H_in * W_in]`` in float32, in
        the order in which the layers run; rows and columns as `flatten` numbers a map.

    Raises:
        ValueError: (`UnsupportedError`) for what the graph does not understand, by name.
    """
    made = folded(net, x_seq)
    return [matrix(made, layer) for layer in layers(made)]


def matrix(made: Plan, layer: Layer) -> Any:  # noqa: ANN401 (scipy's)
    """Return the connection matrix of one layer."""
    from scipy import sparse

    assert layer.weight is not None  # noqa: S101
    shape_in, shape_out = made.values[layer.input].shape, made.values[layer.output].shape
    weight = layer.weight.float().numpy()
    found = [
        _offset(layer, weight[:, :, i, j], (i, j), shape_in, shape_out)
        for i, j in np.ndindex(*weight.shape[2:])
    ]
    rows, columns, values = (np.concatenate(part) for part in zip(*found, strict=True))
    size = (int(np.prod(shape_out)), int(np.prod(shape_in)))
    return sparse.csr_array(sparse.coo_array((values, (rows, columns)), shape=size))


def _offset(
    layer: Layer,
    weight: np.ndarray,
    offset: tuple[int, int],
    shape_in: tuple[int, int, int],
    shape_out: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, columns and values of the synapses of one place in the kernel."""
    out, inner = np.nonzero(weight)
    group = out // (weight.shape[0] // layer.geometry["groups"])
    channel = group * weight.shape[1] + inner
    (y, from_y), (x, from_x) = (
        _line(layer, offset[d], d, shape_in[1 + d], shape_out[1 + d]) for d in (0, 1)
    )
    places = (y[:, None] * shape_out[2] + x).ravel()
    sources = (from_y[:, None] * shape_in[2] + from_x).ravel()
    rows = out[:, None] * (shape_out[1] * shape_out[2]) + places
    columns = channel[:, None] * (shape_in[1] * shape_in[2]) + sources
    values = np.broadcast_to(weight[out, inner][:, None], rows.shape)
    return rows.ravel(), columns.ravel(), values.ravel()


def _line(
    layer: Layer, offset: int, dim: int, size_in: int, size_out: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return places of the output along one dimension, and what they read through an offset."""
    stride, padding, dilation = (layer.geometry[k][dim] for k in ("stride", "padding", "dilation"))
    place = np.arange(size_out)
    source = place * stride - padding + offset * dilation
    inside = (source >= 0) & (source < size_in)
    return place[inside], source[inside]


def fans(made: Plan, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return how many synapses each neuron of a layer receives, and how many leave each input.

    Counted without building the matrix: the kernel's nonzeros by place, times the positions of the
    map at which that place meets the map.

    Returns:
        ``[C_out, H_out, W_out]`` and ``[C_in, H_in, W_in]``, int64.
    """
    assert layer.weight is not None  # noqa: S101
    shape_in, shape_out = made.values[layer.input].shape, made.values[layer.output].shape
    nonzero = (layer.weight != 0).numpy()
    groups = layer.geometry["groups"]
    lines = [reach(layer, d, shape_in[1 + d], shape_out[1 + d]) for d in (0, 1)]
    into = np.einsum("okl,yk,xl->oyx", nonzero.sum(1), lines[0].any(1), lines[1].any(1))
    leaving = nonzero.reshape(groups, -1, *nonzero.shape[1:]).sum(1).reshape(-1, *nonzero.shape[2:])
    out = np.einsum("ckl,yk,xl->cyx", leaving, lines[0].any(0), lines[1].any(0))
    return into, out


def reach(layer: Layer, dim: int, size_in: int, size_out: int) -> np.ndarray:
    """Return ``[size_out, size_in, kernel]``, bool: what reads what, through which place."""
    kernel = layer.geometry["kernel"][dim]
    found = np.zeros((size_out, size_in, kernel), bool)
    for offset in range(kernel):
        place, source = _line(layer, offset, dim, size_in, size_out)
        found[place, source, offset] = True
    return found
