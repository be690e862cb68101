"""Follow every channel through one forward: which ones a weighted layer makes, and who reads them.

One forward runs in eval mode, without gradients and with the network's state preserved. Weighted
layers, norms and neurons are seen as modules; everything between them is seen as tensor operations,
whose effect on channel labels `rules` knows. It works in multi-step mode as it is, on every release
of SpikingJelly, and what it does not understand it freezes with a reason.

A unit is silent when gamma and beta of its norms are 0, or filter and bias of a layer without one:
from there on its value is exactly 0, through pooling, residual additions (SEW's ADD, AND and IAND
alike) and neurons at rest, up to the layers that read it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from sj_prune import _host
from sj_prune.network.coupling.assemble import assemble
from sj_prune.network.coupling.groups import Coupling
from sj_prune.network.coupling.labels import Labels, Partition
from sj_prune.network.coupling.rest import why_not_silent
from sj_prune.network.coupling.rules import NotSeparateError, relabel

__all__ = ["couple"]

_NORMS = nn.modules.batchnorm._NormBase
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


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
    tracer = _Tracer(net)
    with _host.preserved_state(net), torch.no_grad(), _hooked(net, tracer):
        _host.reset_net(net.eval())
        with torch.compiler.set_stance("force_eager"), tracer:
            out = net(*args, **dict(kwargs or {}))
        for x in tree_flatten(out)[0]:
            tracer.freeze(x, "it is an output of the network")
    for name in skip:
        if name in tracer.outputs:
            tracer.partition.freeze(tracer.outputs[name], "skipped by name")
    return assemble(net, tracer)


class _Tracer(TorchDispatchMode):
    """Labels of all tensors of a forward, and the labels that every module has met.

    Attributes:
        partition: which labels belong together.
        outputs: layer name -> labels of its output channels.
        inputs: layer name -> labels of its input channels.
        norms: norm name -> labels of its channels.
        neurons: neuron layer name -> labels of its channels.
        neuron_dims: neuron layer name -> dimension of its channels, from the end.
        bare: layers whose output something else than a norm reads.
        norm_of: layer name -> the first norm behind it.
        layers: names of all weighted layers.
        frozen_layers: layer name -> why nothing of it can be pruned.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.partition = Partition()
        self.outputs: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.neurons: dict[str, Tensor] = {}
        self.neuron_dims: dict[str, int] = {}
        self.bare: set[str] = set()
        self.norm_of: dict[str, str] = {}
        self.frozen_layers: dict[str, str] = {}
        self._labels: Any = WeakTensorKeyDictionary()
        self._depth = 0
        self._weights = _owners(net)
        self.layers = [name for name, m in net.named_modules() if isinstance(m, _LAYERS)]

    # ---- labels of tensors ---------------------------------------------------------------------

    def labels_of(self, x: Any) -> Labels | None:  # noqa: ANN401
        """Return the labels of a tensor, or None."""
        return self._labels.get(x) if isinstance(x, Tensor) else None

    def freeze(self, x: Any, reason: str) -> None:  # noqa: ANN401
        """Keep all channels of a tensor."""
        labels = self.labels_of(x)
        if labels is not None:
            self.partition.freeze(labels.ids, reason)
            self.bare.update(labels.raw)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and label its result."""
        kwargs = kwargs or {}
        known = [] if self._depth else self._known_inputs(args, kwargs)
        before = {id(x): self.labels_of(x) for x in known}
        out = func(*args, **kwargs)
        if known:
            try:
                found = relabel(
                    func, args, kwargs, out, lambda x: before.get(id(x)), self.partition
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
            for name in self._weights.get(id(x), ()):
                self.frozen_layers[name] = "its parameters are used outside of it too"
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

    def shared(self) -> list[list[str]]:
        """Return the names of layers that hold one parameter together."""
        return [names for names in self._weights.values() if len(names) > 1]

    # ---- modules -------------------------------------------------------------------------------

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """What happens inside of the module is its own affair."""
        self._depth += 1

    def leave(self, name: str, module: nn.Module, x: Any, out: Any) -> None:  # noqa: ANN401
        """Label what a module has returned."""
        self._depth -= 1
        if self._depth or not isinstance(x, Tensor) or not isinstance(out, Tensor):
            return
        with _disabled():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                self._convolution(name, module, x, out)
            elif isinstance(module, nn.Linear):
                self._linear(name, x, out)
            elif isinstance(module, _NORMS):
                self._norm(name, module, x, out)
            else:
                self._neuron(name, module, x, out)

    def _meet(self, table: dict[str, Tensor], name: str, ids: Tensor) -> None:
        """Join labels with those that the module has met in an earlier call."""
        known = table.setdefault(name, ids)
        if len(known) == len(ids):
            self.partition.join(known, ids)
        else:
            for labels in (known, ids):
                self.partition.freeze(labels, f"{name} meets two numbers of channels")

    def _read(self, name: str, x: Tensor, dim: int) -> None:
        """A weighted layer reads channels along `dim`."""
        labels = self.labels_of(x)
        if labels is None:
            return
        self.bare.update(labels.raw)
        if labels.dim != dim:
            self.partition.freeze(labels.ids, f"{name} reads another dimension than its channels")
        elif not labels.zero:
            self.partition.freeze(labels.ids, f"{name} would not read 0 from a silent channel")
        else:
            self._meet(self.inputs, name, labels.ids)

    def _convolution(self, name: str, conv: Any, x: Tensor, out: Tensor) -> None:  # noqa: ANN401
        dim = x.ndim - conv.weight.ndim + 1
        labels = self.labels_of(x)
        ids = self._outputs(name, conv.out_channels)
        if conv.groups > 1 and conv.groups == conv.in_channels:
            self._depthwise(name, conv, labels, dim, ids, out)
            return
        self._read(name, x, dim)
        if conv.groups > 1:  # as many channels leave every group
            self._tie_groups(ids, conv.groups)
            if labels is not None:
                self._tie_groups(labels.ids, conv.groups)
        self._set(out, Labels(dim, ids, True, frozenset({name})))

    def _depthwise(
        self,
        name: str,
        conv: Any,  # noqa: ANN401
        labels: Labels | None,
        dim: int,
        ids: Tensor,
        out: Tensor,
    ) -> None:
        raw = frozenset({name})
        if labels is None:
            self.partition.freeze(ids, "its input channels belong to no layer")
        elif labels.dim != dim:
            self.partition.freeze(ids, "its input channels are not where it reads them")
            self.partition.freeze(labels.ids, f"{name} reads another dimension than its channels")
        else:
            self._meet(self.inputs, name, labels.ids)
            own = labels.ids.repeat_interleave(conv.out_channels // conv.in_channels)
            self.partition.join(own, ids)
            raw = raw | labels.raw
        self._set(out, Labels(dim, ids, True, raw))

    def _tie_groups(self, ids: Tensor, groups: int) -> None:
        rows = ids.view(groups, -1)
        for row in rows[1:]:
            self.partition.join(rows[0], row)

    def _linear(self, name: str, x: Tensor, out: Tensor) -> None:
        self._read(name, x, x.ndim - 1)
        ids = self._outputs(name, out.shape[-1])
        self._set(out, Labels(out.ndim - 1, ids, True, frozenset({name})))

    def _outputs(self, name: str, number: int) -> Tensor:
        if name not in self.outputs:
            self.outputs[name] = self.partition.new(number)
        return self.outputs[name]

    def _norm(self, name: str, norm: Any, x: Tensor, out: Tensor) -> None:  # noqa: ANN401
        labels = self.labels_of(x)
        if labels is None:
            return
        multi_step = getattr(norm, "step_mode", "s") == "m"
        affine = norm._parameters.get("weight") is not None
        if labels.dim != 1 + multi_step or len(labels.ids) != norm.num_features:
            self.freeze(x, f"{name} norms another dimension than its channels")
            return
        for layer in labels.raw:
            self.norm_of.setdefault(layer, name)
        if not affine or norm._parameters.get("bias") is None:
            self.freeze(x, f"{name} has no weight and bias to silence it by")
        self._meet(self.norms, name, labels.ids)
        self._set(out, Labels(labels.dim, labels.ids))

    def _neuron(self, name: str, node: nn.Module, x: Tensor, out: Tensor) -> None:
        labels = self.labels_of(x)
        if labels is None:
            return
        self.bare.update(labels.raw)
        problem = why_not_silent(node, x)
        if problem or not labels.zero:
            self.freeze(x, problem or f"{name} is not given 0 by a silent channel")
        self._meet(self.neurons, name, labels.ids)
        self.neuron_dims[name] = labels.dim - x.ndim
        if out.shape == x.shape:
            self._set(out, Labels(labels.dim, labels.ids))
        else:
            self.freeze(x, f"{name} changes the shape of its input")


def _owners(net: nn.Module) -> dict[int, list[str]]:
    """Return parameter id -> names of the weighted layers and norms that hold it."""
    owners: dict[int, list[str]] = {}
    for name, module in net.named_modules():
        if isinstance(module, (*_LAYERS, _NORMS)):
            for parameter in module._parameters.values():
                if parameter is not None:
                    owners.setdefault(id(parameter), []).append(name)
    return owners


@contextmanager
def _disabled() -> Iterator[None]:
    with torch.utils._python_dispatch._disable_current_modes():
        yield


@contextmanager
def _hooked(net: nn.Module, tracer: _Tracer) -> Iterator[None]:
    handles = []
    for name, module in net.named_modules():
        if _is_seen(module):
            handles.append(module.register_forward_pre_hook(tracer.enter))
            handles.append(
                module.register_forward_hook(
                    lambda m, args, kwargs, out, name=name: tracer.leave(
                        name, m, next(iter((*args, *kwargs.values())), None), out
                    ),
                    with_kwargs=True,
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_seen(module: nn.Module) -> bool:
    """Tell whether a rule of ours stands for what happens inside of a module."""
    if isinstance(module, _LAYERS):
        return _host.is_plain_layer(module)
    return isinstance(module, _NORMS) or _host.is_neuron(module)
