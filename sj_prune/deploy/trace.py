"""One forward watched: which modules ran, and which tensor operations lay between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from sj_prune import _host
from sj_prune.deploy import leaves, operations
from sj_prune.deploy.graph import Graph, Node, UnsupportedError, Value, as_map
from sj_prune.deploy.operations import BATCH, SEQUENCE, Label

_SAMPLES = 3  # of a watched forward: with one, batch and other dimensions look alike


def trace(net: nn.Module, x_seq: Tensor) -> Graph:
    """Return the graph of a network in eval mode; the network comes back exactly as it was.

    Args:
        net: a stock network.
        x_seq: ``[T, N, *]``, or ``[N, *]`` for a network that repeats a still image itself.

    Raises:
        UnsupportedError: for what cannot be deployed, with its name and the reason.
    """
    leaves.check_precision(net)
    attention: set[str] = set()
    while True:
        try:
            return _trace_any(net, x_seq, attention)
        except _StaysInTorchError as found:  # noqa: PERF203 (once for each such module)
            attention.add(found.name)


class _StaysInTorchError(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _trace_any(net: nn.Module, x_seq: Tensor, attention: set[str]) -> Graph:
    """Try the input as a sequence and as a still image; the way that led further says why not."""
    problems = []
    for sequence in (True, False):
        try:
            return _watch(net, x_seq, sequence, attention)
        except UnsupportedError as error:  # noqa: PERF203 (two ways)
            problems.append(error)
        except (RuntimeError, ValueError, IndexError) as error:
            text = f"its forward fails: {str(error).splitlines()[0]}{leaves.single_step(net)}"
            problems.append(UnsupportedError(f"Expected a network that runs but {text}"))
            problems[-1].__cause__ = error
    raise max(problems, key=lambda problem: problem.nodes)


def _few(x: Tensor, dim: int) -> Tensor:
    return x.index_select(dim, torch.arange(_SAMPLES) % x.shape[dim])


def _watch(net: nn.Module, x: Tensor, sequence: bool, attention: set[str]) -> Graph:
    x = _few(x, 1 if sequence else 0).contiguous()
    tracer = _Tracer(net, x, sequence, attention)
    with _host.preserved_state(net), torch.no_grad(), _hooked(net, tracer):
        _host.reset_net(net.eval())
        try:
            with torch.compiler.set_stance("force_eager"), tracer:
                out = net(x)
        except UnsupportedError as problem:
            problem.nodes = len(tracer.nodes)
            raise
        _host.reset_net(net)
    label = tracer.label(out) if isinstance(out, Tensor) else None
    if label is None:
        raise UnsupportedError(
            "Expected the network to return one tensor that its layers made but got "
            f"{type(out).__name__}"
        )
    if label.lead not in (SEQUENCE, BATCH):
        raise UnsupportedError(
            f"Expected the network to return [T, N, *] or [N, *] but got {tuple(out.shape)}"
        )
    timed = label.lead == SEQUENCE
    if not sequence and not timed and not tracer.shown:
        raise UnsupportedError("Expected an input [T, N, *] or a network that repeats images")
    return Graph(tracer.values, tracer.nodes, label.value, timed, sequence, tracer.steps)


class _Tracer(TorchDispatchMode):
    """Labels of tensors, and the nodes so far.

    Attributes:
        values: of the graph.
        nodes: of the graph.
        steps: `T`; for a still image it is learned where the network repeats it.
        samples: `N`.
        shown: a still image was repeated.
    """

    def __init__(self, net: nn.Module, x: Tensor, sequence: bool, attention: set[str]) -> None:
        super().__init__()
        tail = tuple(x.shape[2:] if sequence else x.shape[1:])
        self.values = [Value(as_map(tail), tail, not sequence)]
        self.nodes: list[Node] = []
        self.steps, self.samples = (x.shape[0], x.shape[1]) if sequence else (0, x.shape[0])
        self.shown = False
        self.attention = attention
        self._labels: Any = WeakTensorKeyDictionary()
        self._labels[x] = Label(0, SEQUENCE if sequence else BATCH)
        self._names = {module: name or type(net).__name__ for name, module in net.named_modules()}
        self._stack: list[nn.Module] = []
        self._inside: nn.Module | None = None  # of a module that is taken as a whole
        self._seen: set[nn.Module] = set()

    def label(self, x: Any) -> Label | None:  # noqa: ANN401
        """Return what a tensor holds, or None."""
        return self._labels.get(x) if isinstance(x, Tensor) else None

    def node(
        self,
        op: str,
        inputs: tuple[int, ...],
        tail: tuple[int, ...],
        settings: dict[str, Any] | None = None,
        module: nn.Module | None = None,
    ) -> int:
        """Add a node; return the number of the value that it makes."""
        static = all(self.values[i].static for i in inputs) and op != "neuron"
        self.values.append(Value(as_map(tail), tail, static))
        name = self._names[module or self._stack[-1]] if module or self._stack else ""
        made = len(self.values) - 1
        self.nodes.append(Node(op, name, inputs, made, module, settings or {}))
        return made

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and label its result."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [x for x in tree_flatten((args, dict(kwargs)))[0] if self.label(x) is not None]
        out = func(*args, **kwargs)
        if self._inside is None and given:
            with _disable_current_modes():
                self._operation(name, args, kwargs, out, given[0])
        return out

    def _operation(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Any,  # noqa: ANN401
        given: Tensor,
    ) -> None:
        try:
            self._learn_steps(given, out)
            made = operations.apply(self, name, args, kwargs, out)
            self._labels[out[0] if isinstance(out, tuple) else out] = made
        except UnsupportedError as problem:
            where = self._stack[-1] if self._stack else None
            label = self._names.get(where, "the network") if where else "the network"
            kind = f" ({type(where).__name__})" if where else ""
            error = UnsupportedError(f"Expected a network to deploy but {label}{kind}: {problem}")
            if where is None or len(self._stack) == 1 or not _multiplies(where):
                raise error from None
            raise _StaysInTorchError(label) from None

    def _learn_steps(self, given: Tensor, out: Any) -> None:  # noqa: ANN401
        """A still image ``[1, N, *]`` that grows to ``[T, N, *]`` says what `T` is."""
        label = self.label(given)
        if self.steps == 0 and isinstance(out, Tensor) and label is not None:
            grown = out.shape[:2] != (1, self.samples) and out.shape[1:2] == (self.samples,)
            if label.lead == operations.ONE and grown and out.ndim == given.ndim:
                self.steps, self.shown = out.shape[0], True

    # ---- modules -------------------------------------------------------------------------------

    def enter(self, module: nn.Module) -> None:
        """A module starts."""
        self._stack.append(module)
        if self._inside is None and self._is_whole(module):
            self._inside = module

    def _is_whole(self, module: nn.Module) -> bool:
        return self._names[module] in self.attention or leaves.kind_of(module) is not None

    def leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:  # noqa: ANN401
        """A module ends: if it was taken as a whole, it becomes a node."""
        self._stack.pop()
        if self._inside is not module:
            return
        self._inside = None
        x = args[0] if args else None
        label = self.label(x)
        with _disable_current_modes():
            try:
                if label is None or not isinstance(out, Tensor) or len(args) != 1:
                    raise UnsupportedError("it reads something that comes from no layer")
                if self._names[module] in self.attention:
                    self._stays(module, label, out)
                else:
                    self._whole(module, x, label, out)
            except UnsupportedError as problem:
                raise UnsupportedError(
                    f"Expected a network to deploy but {self._names[module]} "
                    f"({type(module).__name__}): {problem}"
                ) from None

    def _stays(self, module: nn.Module, label: Label, out: Tensor) -> None:
        if label.lead != SEQUENCE or tuple(out.shape[:2]) != (self.steps, self.samples):
            raise UnsupportedError("it stays in torch but is not given, or makes, [T, N, *]")
        made = self.node("torch", (label.value,), tuple(out.shape[2:]), {}, module)
        self.values[made].static = False
        self._labels[out] = Label(made, SEQUENCE)

    def _whole(self, module: nn.Module, x: Any, label: Label, out: Tensor) -> None:  # noqa: ANN401
        kind = leaves.kind_of(module)
        assert kind is not None  # noqa: S101
        settings = leaves.settings_of(kind, module)
        value = self.values[label.value]
        self._check_step_mode(kind, module, label, value)
        if isinstance(module, nn.Linear) and len(value.tail) != 1:
            raise UnsupportedError(f"it reads the last dimension of a map {value.tail}")
        made = self.node(
            kind,
            (label.value,),
            operations.tail_of(label.lead, tuple(out.shape)),
            settings,
            module,
        )
        self._check(kind, module, settings, (x, label.value), (out, made))
        self._labels[out] = Label(made, label.lead)

    def _check_step_mode(self, kind: str, module: Any, label: Label, value: Value) -> None:  # noqa: ANN401
        timed = label.lead == SEQUENCE
        if kind == "neuron":
            leaves.equations(module)
            if not timed:
                raise UnsupportedError("it is not given a sequence [T, N, *]")
            if module in self._seen:
                raise UnsupportedError("it is called more than once in a forward")
            self._seen.add(module)
        elif getattr(module, "step_mode", None) == "m" and not timed:
            raise UnsupportedError("it is in multi-step mode but is not given [T, N, *]")

    def _check(
        self,
        kind: str,
        module: nn.Module,
        settings: dict[str, Any],
        given: tuple[Tensor, int],
        made: tuple[Tensor, int],
    ) -> None:
        """See that the graph's reading of a module gives what the module gave."""
        x, y = (t.reshape(-1, self.samples, *self.values[i].shape) for t, i in (given, made))
        if not leaves.agrees(kind, module, settings, x, y):
            raise UnsupportedError(
                "it does not compute what its class says (a hook, a changed forward, or a norm "
                "in train mode)"
            )


def _multiplies(module: nn.Module) -> bool:
    """Tell whether this looks like attention: spikes are multiplied with spikes."""
    name = type(module).__name__.lower()
    return "attention" in name or name.endswith(("ssa", "attn", "sdsa"))


@contextmanager
def _hooked(net: nn.Module, tracer: _Tracer) -> Iterator[None]:
    handles = []
    for module in net.modules():
        handles.append(module.register_forward_pre_hook(lambda m, args: tracer.enter(m)))
        handles.append(
            module.register_forward_hook(
                lambda m, args, kwargs, out: tracer.leave(m, (*args, *kwargs.values()), out),
                with_kwargs=True,
            )
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
