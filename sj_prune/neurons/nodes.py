"""Neuron layers that record: drop-in subclasses of SpikingJelly's IF, LIF and PLIF nodes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sj_prune import _host
from sj_prune.neurons import surrogates
from sj_prune.neurons.activity import STATISTICS, Activity, check_statistics
from sj_prune.neurons.op import Outputs, multi_step
from sj_prune.neurons.reference import IF, LIF, PLIF, Equations, compute_dtype

__all__ = ["RecordingIFNode", "RecordingLIFNode", "RecordingNode", "RecordingParametricLIFNode"]


def _in_backward_pass() -> bool:
    """Tell whether autograd is running: then this forward is a checkpoint's recomputation."""
    return torch._C._current_graph_task_id() != -1


class RecordingNode:
    """What the three recording nodes share; a mix-in before the host's class.

    In multi-step mode (``step_mode = "m"``) the layer computes what the host's computes and adds
    per-channel statistics to `activity`. In single-step mode it is the host's own and records
    nothing. State and statistics are at least float32 whatever the input.

    Attributes:
        recording: keep statistics in train mode. A new node records.
        record_in_eval: keep them in eval mode too.
        statistics: which ones, a subset of `STATISTICS`; setting it forgets what was recorded.
        activity: the statistics so far, an `Activity`; they survive ``reset_net``.
        channel_dim: the dimension of ``x_seq`` that counts channels: 2 for ``[T, N, C, *]``; -1
            for features last, as after a linear layer over tokens.
        trace: keep the last ``x_seq``'s potentials `H` in ``h_seq`` and derivatives `g'` in
            ``g_seq``, each ``[T, N, *]`` in float32 (or float64): for ``T = 4``, batch 128 and 64
            maps of 32x32 that is 2 x 134 MB a layer.
        h_seq: the traced `H`, or None.
        g_seq: the traced `g'`, or None.
    """

    _kind: int

    # Declared here for the type checker; the host's class sets them.
    v_threshold: float
    v_reset: float | None
    detach_reset: bool
    store_v_seq: bool
    training: bool
    surrogate_function: Callable[[Tensor], Tensor]
    _memories: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init_subclass__(**kwargs)
        # The first __init__ that names its arguments: ours passes everything on.
        inits = (vars(c).get("__init__") for c in cls.__mro__ if c is not RecordingNode)
        signature = inspect.signature(next(init for init in inits if init is not None))
        parameters = [p for p in signature.parameters.values() if p.name != "self"]
        cls.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.start_recording()

    def start_recording(self) -> None:
        """Give the node its recording attributes, as new."""
        self.recording = True
        self.record_in_eval = False
        self.channel_dim = 2
        self.trace = False
        self.h_seq: Tensor | None = None
        self.g_seq: Tensor | None = None
        self.activity = Activity(STATISTICS)

    def stop_recording(self) -> None:
        """Take the recording attributes away, before the stock class comes back."""
        for name in (
            "recording",
            "record_in_eval",
            "channel_dim",
            "trace",
            "h_seq",
            "g_seq",
            "activity",
        ):
            vars(self).pop(name, None)

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of the statistics that this node keeps."""
        return self.activity.names

    @statistics.setter
    def statistics(self, names: Iterable[str]) -> None:
        wanted = check_statistics(names)
        if wanted != self.activity.names:
            self.activity = Activity(wanted)

    @property
    def peak(self) -> float:
        """`g'(0)` of this layer's surrogate: the scale of its criticality."""
        return surrogates.peak(self.surrogate_function)

    def _is_recording(self) -> bool:
        if not self.recording or not (self.training or self.record_in_eval):
            return False
        return torch.compiler.is_compiling() or not _in_backward_pass()

    def _equations(self) -> Equations:
        return Equations(
            self._kind,
            float(getattr(self, "tau", 1.0)),
            bool(getattr(self, "decay_input", False)),
            self.v_threshold,
            self.v_reset,
            self.detach_reset,
        )

    def _w(self, x_seq: Tensor) -> Tensor | None:
        """Return PLIF's parameter where the input is, else None."""
        w = getattr(self, "w", None)
        if w is None:
            return None
        if w.numel() != 1:
            raise ValueError(
                f"Expected w of {type(self).__name__} to be one number but got shape "
                f"{tuple(w.shape)}: keep the host's own node for a layer of several time constants"
            )
        return w.to(x_seq.device)

    def _initial_v(self, x_seq: Tensor) -> Tensor:
        """Return the carried-over potential in the computing type, or rest where none fits."""
        shape, dtype = x_seq.shape[1:], compute_dtype(x_seq.dtype)
        v = self._memories["v"]
        if isinstance(v, Tensor) and v.shape == shape:
            if not torch.compiler.is_compiling() and v.is_inference():
                v = v.clone()  # such a tensor could not be saved for a backward pass
            return v.to(dtype=dtype, device=x_seq.device)
        if isinstance(v, Tensor):  # another batch or map size without a reset: start at rest
            v = 0.0 if self.v_reset is None else self.v_reset
        return x_seq.new_full((), float(v), dtype=dtype).expand(shape)  # holds no memory

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Return spikes ``[T, N, *]`` of ``x_seq [T, N, *]`` in the type of the input.

        Raises:
            TypeError: if ``x_seq`` is not a floating-point tensor.
            ValueError: if it has no time or batch dimension, or is empty, or if PLIF's `w` is not
                one number.
        """
        _check_input(x_seq, type(self).__name__)
        v_init = self._initial_v(x_seq)
        if self.channel_dim == 2 or x_seq.ndim <= 3:
            return self._keep(self._run(x_seq, v_init))
        # Features last: engines see [T, N, C, *] as a view, no copy is made.
        v_init = v_init.movedim(_step_dim(self.channel_dim), 1)
        out = self._run(x_seq.movedim(self.channel_dim, 2), v_init)
        return self._keep(_move_back(out, self.channel_dim))

    def _run(self, x_seq: Tensor, v_init: Tensor) -> Outputs:
        names = self.activity.names if self._is_recording() else ()
        out = multi_step(
            x_seq,
            v_init,
            self._w(x_seq),
            self._equations(),
            self.surrogate_function,
            surrogates.lookup(self.surrogate_function),
            names,
            self.store_v_seq,
            self.trace,
        )
        if names:
            self.activity.update(out.partials)
        return out

    def _keep(self, out: Outputs) -> Tensor:
        self._memories["v"] = out.v
        if self.store_v_seq:
            self.v_seq = out.v_seq
        if self.trace:
            self.h_seq, self.g_seq = out.h_seq, out.g_seq
        return out.spikes

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        result = super()._apply(fn, *args, **kwargs)  # type: ignore[misc]
        if self.activity.sums is not None:
            # Where would fn put a tensor? Only the device is followed, never the type.
            probe = fn(torch.empty(0, device=self.activity.sums.device))
            self.activity.move_to(probe.device)
        return result

    def __getstate__(self) -> dict[str, Any]:
        # A potential still hangs on its graph after a forward; a copy must not.
        state = dict(vars(self))
        state["_memories"] = {name: _detached(value) for name, value in self._memories.items()}
        if "v_seq" in state:  # an attribute on 2.0.0, a memory before
            state["v_seq"] = _detached(state["v_seq"])
        return state

    def extra_repr(self) -> str:
        """Show that this layer was swapped in, and whether it records."""
        return f"{super().extra_repr()}, recording={self.recording}"  # type: ignore[misc]


def _detached(value: Any) -> Any:  # noqa: ANN401
    return value.detach() if isinstance(value, Tensor) else value


def _check_input(x_seq: Tensor, name: str) -> None:
    if not x_seq.is_floating_point():
        raise TypeError(f"Expected x_seq of {name} to be floating point but got {x_seq.dtype}")
    if x_seq.ndim < 2:
        raise ValueError(
            f"Expected x_seq of {name} as [T, N, *] but got shape {tuple(x_seq.shape)}: in "
            'multi-step mode (step_mode = "m") the first dimension is time'
        )
    if x_seq.numel() == 0:
        raise ValueError(f"Expected a non-empty x_seq for {name} but got {tuple(x_seq.shape)}")


def _step_dim(channel_dim: int) -> int:
    """Return the dimension of one step ``[N, *]`` for a dimension of the sequence."""
    return channel_dim if channel_dim < 0 else channel_dim - 1


def _move_back(out: Outputs, channel_dim: int) -> Outputs:
    def move(seq: Tensor | None) -> Tensor | None:
        return None if seq is None else seq.movedim(2, channel_dim)

    v_seq = move(out.v_seq)
    # `v` and `v_seq` are cloned: the host detaches its memories in place, which no view allows.
    return Outputs(
        out.spikes.movedim(2, channel_dim),
        out.v.movedim(1, _step_dim(channel_dim)).clone(),
        out.partials,
        None if v_seq is None else v_seq.clone(),
        move(out.h_seq),
        move(out.g_seq),
    )


class RecordingIFNode(RecordingNode, _host.IFNode):  # type: ignore[misc, valid-type]
    """`IFNode` that records; takes exactly its arguments."""

    _kind = IF


class RecordingLIFNode(RecordingNode, _host.LIFNode):  # type: ignore[misc, valid-type]
    """`LIFNode` that records; takes exactly its arguments.

    Without input decay this computes ``V - (V - V_reset) / tau + x`` (METHODS: neuron equations)
    on every release. SpikingJelly 0.0.0.0.14 computes ``V (1 - 1/tau) + x`` there when `v_reset`
    is None or 0, which differs in the last bits.
    """

    _kind = LIF


class RecordingParametricLIFNode(RecordingNode, _host.ParametricLIFNode):  # type: ignore[misc, valid-type]
    """`ParametricLIFNode` that records; takes exactly its arguments."""

    _kind = PLIF
