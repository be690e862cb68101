"""Neuron layers that record: drop-in subclasses of SpikingJelly's IF, LIF and PLIF nodes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sj_prune import _host
from sj_prune.neurons import surrogates
from sj_prune.neurons.activity import Activity
from sj_prune.neurons.layout import check_input, move_back, step_dim
from sj_prune.neurons.observe_pass import Pass, watched_step
from sj_prune.neurons.op import Outputs, multi_step
from sj_prune.neurons.reference import IF, LIF, PLIF, Equations, compute_dtype
from sj_prune.neurons.statistics import STATISTICS, check_statistics, completed, is_function

_COMPILED = "in single-step mode it keeps nothing inside torch.compile"


def in_backward_pass() -> bool:
    """Tell whether autograd is running: then this forward is a checkpoint's recomputation."""
    return torch._C._current_graph_task_id() != -1


class RecordingNode:
    """What the three recording nodes share; a mix-in before the host's class.

    In multi-step mode (``step_mode = "m"``) the layer computes what the host's computes and adds
    per-channel statistics to `activity`. In single-step mode it is the host's own, and watched: the
    steps between two resets are one pass over time; another batch shape or `close_pass`, as at the
    optimizer's step, ends it too. State and statistics are at least float32 whatever the input.

    Attributes:
        recording: keep statistics in train mode. A new node records.
        record_in_eval: keep them in eval mode too.
        statistics: which ones, names of `statistics.TABLE`; setting it forgets what was recorded.
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
        self._pass: Pass | None = None
        self._compiled = False
        self._activity = Activity(STATISTICS)

    def stop_recording(self) -> None:
        """Take the recording attributes away, before the stock class comes back."""
        for name in (
            "recording",
            "record_in_eval",
            "channel_dim",
            "trace",
            "h_seq",
            "g_seq",
            "_pass",
            "_compiled",
            "_activity",
        ):
            vars(self).pop(name, None)

    @property
    def how(self) -> str:
        """``"fused"``, ``"observed"`` in single-step mode, or ``"none"``: `why` says the reason."""
        if getattr(self, "step_mode", "m") == "m":
            return "fused"
        return "none" if self._compiled else "observed"

    @property
    def why(self) -> str:
        """Why nothing is kept; empty if something is."""
        return _COMPILED if self.how == "none" else ""

    @property
    def activity(self) -> Activity:
        """The statistics so far; looking at them ends a pass of single steps."""
        self.close_pass()
        return self._activity

    @activity.setter
    def activity(self, activity: Activity) -> None:
        self.close_pass()
        self._activity = activity

    def close_pass(self) -> None:
        """End a pass of single steps, if one is under way, and add it to the statistics."""
        done, self._pass = self._pass, None
        if done is not None and set(self._activity.names) <= set(done.names):
            done.add_to(self._activity, self.channel_dim)

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of the statistics that this node keeps."""
        return self._activity.names

    @statistics.setter
    def statistics(self, names: Iterable[str]) -> None:
        wanted = check_statistics(names)
        if wanted != self._activity.names:
            self.activity = Activity(wanted)

    @property
    def peak(self) -> float:
        """`g'(0)` of this layer's surrogate: the scale of its criticality."""
        return surrogates.peak(self.surrogate_function)

    def _is_recording(self) -> bool:
        if not self.recording or not (self.training or self.record_in_eval):
            return False
        return torch.compiler.is_compiling() or not in_backward_pass()

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
        check_input(x_seq, type(self).__name__)
        v_init = self._initial_v(x_seq)
        if x_seq.ndim < 3 or self.channel_dim in (2, 2 - x_seq.ndim):
            return self._keep(self._run(x_seq, v_init))
        # Features last: engines see [T, N, C, *] as a view, no copy is made.
        v_init = v_init.movedim(step_dim(self.channel_dim), 1)
        out = self._run(x_seq.movedim(self.channel_dim, 2), v_init)
        return self._keep(move_back(out, self.channel_dim))

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Return the host's spikes ``[N, *]`` of ``x [N, *]``, and add the step to the pass."""
        step = super().single_step_forward  # type: ignore[misc]
        if torch.compiler.is_compiling():
            self._compiled = True
            return step(x, *args, **kwargs)
        self._compiled = False
        if not self._is_recording() or not self._activity.names:
            return step(x, *args, **kwargs)
        if not isinstance(self._memories["v"], Tensor):
            self.close_pass()  # it was put back to rest
        spikes, self._pass = watched_step(
            self, self._equations(), lambda: step(x, *args, **kwargs), x, self._pass
        )
        return spikes

    def reset(self) -> None:
        """End the pass over time, and put the state back to rest."""
        self.close_pass()
        super().reset()  # type: ignore[misc]

    def _run(self, x_seq: Tensor, v_init: Tensor) -> Outputs:
        if self._pass is not None:
            self.close_pass()
        names = self._activity.names if self._is_recording() else ()
        fused = tuple(name for name in names if not is_function(name))
        out = multi_step(
            x_seq,
            v_init,
            self._w(x_seq),
            self._equations(),
            self.surrogate_function,
            surrogates.lookup(self.surrogate_function),
            fused,
            self.store_v_seq,
            self.trace,
            summed=fused == names,  # what a function says is of each sample
        )
        if names:
            samples, rows = x_seq.shape[1], out.partials.shape[0]
            count = samples if rows < samples else None
            self._activity.update(completed(names, out.partials, out.spikes), count)
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
        self.close_pass()
        if self._activity.sums is not None:
            # Where would fn put a tensor? Only the device is followed, never the type.
            probe = fn(torch.empty(0, device=self._activity.sums.device))
            self._activity.move_to(probe.device)
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
