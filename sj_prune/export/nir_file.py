"""`export_nir`: a network as a NIR file, read back and compared."""

from __future__ import annotations

import io
import logging
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune._files import replace_file
from sj_prune.compaction.build import copied
from sj_prune.deploy.plan import Plan
from sj_prune.export.folded import check_equal, check_zeros, folded, outputs
from sj_prune.export.to_nir import nir_graph

_LOGGER = logging.getLogger("sj_prune")
_RATE = 0.05  # a layer that fires less says little about the neurons behind it


def export_nir(
    net: nn.Module,
    path: str | PathLike[str],
    x_seq: Tensor,
    *,
    dt: float = 1e-3,
    prove: bool = True,
) -> Any:  # noqa: ANN401
    """Write a network as a graph of the Neuromorphic Intermediate Representation.

    Norms are folded into the weights before them, adaptive pooling becomes average pooling, voting
    a linear layer, and additions several edges into one node; weights that are 0 stay 0. The
    graph's metadata holds version, `T`, `dt`, reset and the density of each layer. What the network
    does after its last time-distributed layer, a mean over time, is left to the reader
    (``metadata["output"]``). Channels that were pruned are gone from what `compact` returns. Nodes
    of layers that `quantize` has rounded have ``bits``, ``integers``, ``scale`` as metadata.

    Args:
        net: a stock network in multi-step mode, or one with recording nodes; left as it was.
        path: of the file, HDF5; an older one is replaced when the new one is whole.
        x_seq: an input ``[T, N, *]``, or ``[N, *]`` where the network repeats still images; with
            `prove` one at which the neurons fire.
        dt: seconds of one time step.
        prove: read the file back through SpikingJelly's importer, in float64, and compare the
            outputs on `x_seq` over all steps, and the zeros. Needs SpikingJelly 2.0.0.

    Returns:
        The `nir.NIRGraph` that was written.

    Raises:
        ImportError: without nir and nirtorch: ``pip install "sj_prune[nir]"``.
        ExportError: a ValueError: for what NIR cannot say (soft reset, maximum pooling, groups),
            naming layer and reason; and if the file does not compute what the network does. Then
            nothing is written.
    """
    nir = _nir()
    if not dt > 0:
        raise ValueError(f"Expected dt to be positive, seconds a time step, but got {dt}")
    made = folded(net, x_seq)
    graph, names = nir_graph(made, dt)
    file = io.BytesIO()
    nir.write(file, graph)
    if prove:
        _prove(net, nir.read(file), x_seq, dt, (made, names))
    with replace_file(path) as temporary:
        temporary.write_bytes(_packed(file).getvalue())
    return graph


def _nir() -> Any:  # noqa: ANN401
    try:
        import nir
        import nirtorch  # noqa: F401 (the importer needs it)
    except ImportError as error:
        raise ImportError(
            'Expected nir and nirtorch to be installed: pip install "sj_prune[nir]"'
        ) from error
    return nir


def _packed(file: io.BytesIO) -> io.BytesIO:
    """Return an HDF5 file with every array in one chunk: many small ones double its size."""
    import h5py

    packed = io.BytesIO()
    with h5py.File(file) as before, h5py.File(packed, "w", libver="latest") as after:

        def copy(name: str, item: Any) -> None:  # noqa: ANN401
            if isinstance(item, h5py.Group):
                after.require_group(name)
            elif item.chunks is None or not item.size:
                before.copy(item, after, name)
            else:
                after.create_dataset(
                    name, data=item[()], chunks=item.shape, compression="gzip", compression_opts=9
                )

        before.visititems(copy)
    return packed


def _prove(
    net: nn.Module,
    graph: Any,  # noqa: ANN401 (nir.NIRGraph, as it was read)
    x_seq: Tensor,
    dt: float,
    built: tuple[Plan, dict[str, str]],
) -> None:
    import_from_nir = _host.nir_importer()
    made, names = built
    check_zeros(made, lambda layer: graph.nodes[names[layer.name]].weight)
    read = import_from_nir(graph, dt=dt, dtype=torch.float64, step_mode="m")
    expected, rates = outputs(copied(net).double(), x_seq.detach().double())
    for name, rate in rates.items():
        if rate < _RATE:
            _LOGGER.warning(
                "%s fires at %.2g %% on x_seq: the proof says little about what lies behind it",
                name,
                100 * rate,
            )
    x = x_seq.detach().double()
    x = x if made.graph.sequence else x.expand(made.graph.steps, *x.shape)
    with torch.no_grad():
        found = read(x)[0]
    found = found if made.graph.timed else found.mean(0)
    check_equal(found, expected, "the NIR file")
