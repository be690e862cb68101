"""Follow every channel through one forward: which ones a weighted layer makes, and who reads them.

One forward runs in eval mode, without gradients and with the network's state preserved. Weighted
layers, norms and neurons are seen as modules (`modules` knows what they do to channel labels);
everything between them is seen as tensor operations (`rules`). It works in multi-step mode as it
is, on every release of SpikingJelly, and what it does not understand it freezes with a reason.

A unit is silent when gamma and beta of its norms are 0, or filter and bias of a layer without one:
from there on its value is exactly 0, through pooling, residual additions (SEW's ADD, AND and IAND
alike) and neurons at rest, up to the layers that read it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from sj_prune import _host
from sj_prune.network.coupling.assemble import assemble
from sj_prune.network.coupling.groups import Coupling
from sj_prune.network.coupling.labels import Labels
from sj_prune.network.coupling.modules import has_rule, relabel_module
from sj_prune.network.coupling.rules import NotSeparateError, relabel
from sj_prune.network.coupling.traced import Traced
from sj_prune.network.inputs import few_samples
from sj_prune.network.layers import weight_identity
from sj_prune.network.unheard import unheard
from sj_prune.neurons.convert import sensor_of


def couple(
    net: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    skip: Collection[str] = (),
) -> Coupling:
    """Return the groups of coupled channels of a network.

    Args:
        net: any network; it comes back exactly as it was.
        args: positional inputs of one forward.
        kwargs: keyword inputs.
        skip: names of layers whose channels are to stay.
    """
    traced = _traced(net, args, kwargs or {})
    for name in skip:
        if name in traced.outputs:
            traced.partition.freeze(traced.outputs[name], "skipped by name")
    return assemble(traced)


def _traced(net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Traced:
    tracer = _Tracer(net)
    with _host.preserved_state(net), unheard(net), torch.no_grad(), _hooked(net, tracer):
        _host.reset_net(net.eval())
        with torch.compiler.set_stance("force_eager"), tracer:
            try:
                out = net(*args, **kwargs)
            finally:
                tracer.look_again()
        for x in tree_flatten(out)[0]:
            tracer.freeze(x, "it is an output of the network")
    return tracer.traced


@dataclass(frozen=True)
class Channels:
    """Where the channels of a neuron layer's input are.

    Attributes:
        dim: their dimension, from the end.
        own: the layers whose output channels they are, one by one.
    """

    dim: int
    own: frozenset[str]


def neuron_channels(
    net: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> dict[str, Channels]:
    """Follow channels to whatever senses in a network: name -> where they are.

    Neurons that no labels reach, or along different dimensions, are left out; so are all if the
    forward does not run like this.
    """
    first = _first_names(net)
    for some in few_samples(args):
        with suppress(Exception):  # where samples lie along another dimension
            traced = _traced(net, some, kwargs or {})
            roots = {layer: traced.partition.roots(ids) for layer, ids in traced.outputs.items()}
            found = {n: _own(traced, n, roots, first) for n in traced.met}
            return {n: Channels(*where) for n, where in found.items() if where}
    return {}


def _first_names(net: nn.Module) -> dict[str, str]:
    """Return the name of the first module with its weight, by name of each."""
    first: dict[int, str] = {}
    return {n: first.setdefault(weight_identity(m), n) for n, m in net.named_modules()}


def _own(
    traced: Traced, name: str, outputs: Mapping[str, list[int]], first: Mapping[str, str]
) -> tuple[int, frozenset[str]] | None:
    dims = {dim for dim, _ in traced.met[name]}
    if len(dims) != 1:
        return None
    roots = traced.partition.roots
    given = [roots(torch.tensor(ids, device="cpu")) for _, ids in traced.met[name]]
    own = [layer for layer, labels in outputs.items() if labels in given]
    # A weight that several layers share goes by the name of the first.
    return dims.pop(), frozenset(own) | {first[layer] for layer in own}


class _Tracer(TorchDispatchMode):
    """Labels of all tensors of a forward; what every module has met goes into `traced`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.traced = Traced.of(net)
        self._labels: Any = WeakTensorKeyDictionary()
        self._depth = 0

    # ---- labels of tensors ---------------------------------------------------------------------

    def labels_of(self, x: Any) -> Labels | None:  # noqa: ANN401
        """Return the labels of a tensor, or None."""
        return self._labels.get(x) if isinstance(x, Tensor) else None

    def freeze(self, x: Any, reason: str) -> None:  # noqa: ANN401
        """Keep all channels of a tensor."""
        self.traced.freeze(self.labels_of(x), reason)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and label its result."""
        kwargs = kwargs or {}
        known = self._known_inputs(args, kwargs)
        before = {id(x): self.labels_of(x) for x in known}
        out = func(*args, **kwargs)
        if known:
            try:
                found = relabel(
                    func, args, kwargs, out, lambda x: before.get(id(x)), self.traced.partition
                )
                self._attach(out, found)
                if func._schema.is_mutable:
                    self._written(args[0])
            except NotSeparateError as problem:
                for x in known:
                    self.freeze(x, str(problem))
        return out

    def _known_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Return the arguments that carry channels; freeze layers whose weights are among them."""
        tensors = [x for x in tree_flatten((args, dict(kwargs)))[0] if isinstance(x, Tensor)]
        for x in tensors:
            for name in self.traced.owners.get(id(x), ()):
                reason = "its parameters are used outside of it too"
                self.traced.frozen_layers.setdefault(name, reason)
        return [x for x in tensors if self.labels_of(x) is not None]

    def _attach(self, out: Any, found: Any) -> None:  # noqa: ANN401
        pairs = zip(out, found, strict=True) if isinstance(found, list) else [(out, found)]
        for x, labels in pairs:
            if isinstance(x, Tensor):
                self._set(x, labels)

    def _written(self, x: Any) -> None:  # noqa: ANN401
        """Something was written in place: what it is a part of holds the result too."""
        labels, base = self.labels_of(x), getattr(x, "_base", None)
        if labels is None or base is None or base.numel() == x.numel():
            return  # all of it: a view that a module has returned, added to in place
        if self.labels_of(base) is None:
            self.freeze(x, "it is written into a part of another tensor")
        elif not labels.zero:
            self.freeze(x, "something else is written into a part of it")
            self.freeze(base, "something else is written into a part of it")

    def _set(self, x: Tensor, labels: Labels | None) -> None:
        if labels is None:
            self._labels.pop(x, None)
        else:
            assert x.shape[labels.dim] == len(labels.ids)  # noqa: S101 (a rule that lies)
            self._labels[x] = labels

    def meet(self, name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Note the channels that are given to what senses."""
        x = args[0] if args and not self._depth else None
        if (labels := self.labels_of(x)) is not None:
            where = labels.dim - x.ndim, tuple(labels.ids.tolist())  # type: ignore[union-attr]
            self.traced.met.setdefault(name, set()).add(where)

    # ---- modules -------------------------------------------------------------------------------

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """What happens inside of the module is its own affair, and not looked at."""
        if not self._depth:
            self.__exit__(None, None, None)
        self._depth += 1

    def look_again(self) -> None:
        """Look at operations, though a module may have raised that was entered."""
        if self._depth:
            self._depth = 0
            self.__enter__()

    def leave(self, name: str, module: nn.Module, x: Any, out: Any) -> None:  # noqa: ANN401
        """Label what a module has returned."""
        self._depth -= 1
        if self._depth:
            return
        if isinstance(x, Tensor) and isinstance(out, Tensor):
            labels = relabel_module(self.traced, name, module, x, self.labels_of(x), out)
            if labels is not None:
                self._set(out, labels)
        self.__enter__()


@contextmanager
def _hooked(net: nn.Module, tracer: _Tracer) -> Iterator[None]:
    with ExitStack() as stack:
        for name, module in net.named_modules():
            if sensor_of(module) is not None:
                meet = module.register_forward_pre_hook(partial(tracer.meet, name))
                stack.callback(meet.remove)
            if not has_rule(module):
                continue

            def left(m: Any, args: Any, kwargs: Any, out: Any, name: str = name) -> None:  # noqa: ANN401
                tracer.leave(name, m, next(iter((*args, *kwargs.values())), None), out)

            stack.callback(module.register_forward_pre_hook(tracer.enter).remove)
            stack.callback(module.register_forward_hook(left, with_kwargs=True).remove)
        yield
