"""A network put back as it was, to the last bit, when something fails on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sj_prune import _host


class _Table:
    """The parameters or buffers of a network: which tensors they are, and what is in them."""

    def __init__(self, net: nn.Module, attribute: str) -> None:
        self.tables = [(t := vars(m)[attribute], dict(t)) for m in net.modules()]
        found = {id(t): t for _, table in self.tables for t in table.values() if t is not None}
        self.gradients: list[tuple[Tensor, Tensor | None]] = [
            (t, t.grad) for t in found.values() if t.is_leaf
        ]
        tensors = [*found.values(), *(g for _, g in self.gradients if g is not None)]
        # The storage too: `.to` and `.double()` put another one behind a parameter.
        self.values = [(t, t.data, t.detach().clone()) for t in tensors]

    def put_back(self) -> None:
        for table, tensors in self.tables:
            table.update(tensors)
        for tensor, storage, value in self.values:
            tensor.data = storage
            tensor.data.copy_(value)
        for tensor, gradient in self.gradients:
            tensor.grad = gradient


@contextmanager
def restored_on_error(net: nn.Module) -> Iterator[None]:
    """Put the network back if what happens inside raises.

    Parameters and buffers (their identity, values and gradients), neuron memories and training
    flags; classes and hooks are for whoever changed them.
    """
    put_back = _host.remembered(net)
    tables = [_Table(net, attribute) for attribute in ("_parameters", "_buffers")]
    try:
        yield
    except BaseException:
        put_back()
        with torch.no_grad():
            for table in tables:
                table.put_back()
        raise
