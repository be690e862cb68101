"""Statistics of one neuron of any class, from what it hands to its surrogate function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune.neurons import surrogates
from sj_prune.neurons.activity import Activity
from sj_prune.neurons.observe_node import absent, charge, obstacle, potential
from sj_prune.neurons.observe_pass import Pass, at_least_single, random_state, slope
from sj_prune.neurons.statistics import STATISTICS, TABLE, check_statistics

_COMPILED = "it runs inside torch.compile, where its surrogate function cannot be listened to"


@dataclass
class _Frame:
    """A call of the node that is under way."""

    shape: torch.Size | None
    mode: str | None
    resets_as_host: bool
    calls: int = 0


class Observer:
    """Keeps the statistics of one neuron of any class; made by `observe`; a `Listener`.

    A pass over time is one call in multi-step mode, and of a module that loops over time itself.
    In single-step mode it goes on until the neuron is reset, gets a batch of another shape, or
    `close_pass` is called, as is done at the optimizer's step; wherever the loop over time is.

    Attributes:
        node: the neuron.
        recording: keep statistics in train mode.
        record_in_eval: keep them in eval mode too.
        channel_dim: the dimension of a sequence ``[T, N, *]`` that counts channels, as that of a
            recording node, also where the neuron gets single steps ``[N, *]``.
        mode: what a neuron without a step mode gets, single steps "s" or sequences "m", where that
            is known.
        missing: statistics that this neuron does not have, each with the reason.
        runs: how often the neuron ran while it was recording.
        calls: how often it called its surrogate function then.
    """

    def __init__(self, node: nn.Module, function: Callable[..., Any] | None) -> None:
        self.node = node
        self.function = function
        self.recording = True
        self.record_in_eval = False
        self.channel_dim = 2
        self.mode: str | None = None
        self.runs = 0
        self.calls = 0
        self.missing = absent(node)
        self._why = obstacle(node)
        self._wanted = STATISTICS
        self._activity = Activity(STATISTICS)
        self._pass: Pass | None = None
        self._frame: _Frame | None = None
        self._potential: Tensor | None = None
        self._source: tuple[Tensor | None, int] = (None, 0)
        self._drawn: Tensor | None = None
        self._activity.drop(self.missing)

    def __repr__(self) -> str:
        """Say what is observed and how much of it."""
        return f"Observer({type(self.node).__name__}, how={self.how!r}, {self._activity!r})"

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a call that is under way, or still hangs on its graph, stays behind.
        return {**vars(self), "_frame": None, "_source": (None, 0), "_drawn": None}

    @property
    def obstacle(self) -> str:
        """Why nothing can be kept, as far as is known before a run; empty if something can."""
        return self._why

    @property
    def how(self) -> str:
        """``"observed"``, or ``"none"`` where nothing can be kept; `why` says the reason."""
        return "none" if self._why or (self.runs and not self.calls) else "observed"

    @property
    def why(self) -> str:
        """Why nothing is kept, or which statistics are not; empty if all are."""
        if self._why:
            return self._why
        if self.runs and not self.calls:
            return "it ran without a call of its surrogate function"
        return "; ".join(f"no {name}: {reason}" for name, reason in sorted(self.missing.items()))

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of the statistics that are kept; setting other ones forgets what was."""
        return self._activity.names

    @statistics.setter
    def statistics(self, names: Iterable[str]) -> None:
        wanted = check_statistics(names)
        if wanted != self._wanted:
            self._wanted = wanted
            self.activity = Activity(wanted)

    @property
    def activity(self) -> Activity:
        """The statistics so far; looking at them ends a pass of single steps."""
        if self._frame is None:
            self.close_pass()
        return self._activity

    @activity.setter
    def activity(self, activity: Activity) -> None:
        self.close_pass()
        activity.drop(self.missing)
        self._activity = activity

    @property
    def peak(self) -> float:
        """`g'(0)` of this neuron's surrogate: the scale of its criticality."""
        return surrogates.peak(self.function) if callable(self.function) else 0.0

    def close_pass(self) -> None:
        """End the pass over time, if one is under way, and add it to the statistics."""
        done, self._pass = self._pass, None
        self._flush(done)
        if done is None or not done.steps:
            return
        if done.seen["v"] != done.steps:
            held = "is not seen at every step" if hasattr(self.node, "v") else "is no attribute v"
            self._miss(done.names, "v", f"its potential after reset {held}")
        if done.seen["h"] != done.steps:
            self._miss(done.names, "h", "its threshold does not fit the potentials")
        if not set(self._activity.names) <= set(done.names):
            return
        try:
            done.add_to(self._activity, self.channel_dim)
        except ValueError:
            # The training goes on: only what is kept of this neuron ends.
            self._refuse("it is called with different numbers of channels")

    def listens(self) -> bool:
        """Tell whether a call of the surrogate function counts now."""
        if self._why or not self.recording or not (self.node.training or self.record_in_eval):
            return False
        # In a backward pass it is a recomputation (activation checkpointing).
        return torch._C._current_graph_task_id() == -1

    def before(self, u: Tensor) -> None:
        """Remember the random numbers that a function without a closed form may draw."""
        closed = self.function is not None and surrogates.lookup(self.function)
        self._drawn = None if closed else random_state(u)

    def after(self, u: Tensor, spikes: Tensor) -> None:
        """Add what one call of the surrogate function shows.

        Args:
            u: what the neuron handed over, ``H - V_th``: a step ``[N, *]``, a whole sequence
                ``[T, N, *]``, or either of them flattened.
            spikes: what the function returned, of the same shape.
        """
        self.calls += 1
        if self._frame is not None:
            self._frame.calls += 1
        drawn, self._drawn = self._drawn, None
        # Sums outlive inference mode; what is made from its tensors in here can be added to.
        with torch.inference_mode(False), torch.no_grad():
            for u_step, s_step in self._steps(at_least_single(u), at_least_single(spikes)):
                self._step(u_step, s_step, drawn)

    def compiled(self) -> None:
        """Note that the neuron is compiled."""
        self._why = _COMPILED

    def moved(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the device that `fn` moves the neuron to; never the type."""
        if (sums := self._activity.sums) is not None:
            self._activity.move_to(fn(torch.empty(0, device=sums.device)).device)

    def finished(self, v: Any) -> None:  # noqa: ANN401
        """Hear that a step is over, with the potential after reset, if the node has one.

        The last that is heard of before the next step counts.
        """
        now = self._pass
        if now is None or not now.wants("v") or not isinstance(v, Tensor):
            return
        if not self.listens():
            return
        source = (v, -1 if v.is_inference() else v._version)
        if source[1] >= 0 and source[0] is self._source[0] and source[1] == self._source[1]:
            return  # a method inside of another that is done has shown this very potential
        self._source = source
        with torch.inference_mode(False), torch.no_grad():
            self._potential = at_least_single(v).clone()

    def entered(self, node: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hear that the node is called: a forward pre-hook."""
        if torch.compiler.is_compiling():
            return
        self._frame = None
        if self._why == _COMPILED:
            self._why = ""  # not this time
        if not self.listens():
            return
        self.runs += 1
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        mode = _host.step_mode(node) or self.mode
        from_rest = hasattr(node, "v") and not isinstance(node.v, Tensor)
        if mode == "m" or from_rest:
            self.close_pass()
        as_host = mode == "m" and _host.runs_without_steps(node)
        self._frame = _Frame(None if x is None else x.shape, mode, as_host)

    def left(self, node: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        """Hear that a call of the node is over: a forward hook."""
        if torch.compiler.is_compiling():
            return
        frame, self._frame = self._frame, None
        if frame is None:
            return
        if frame.mode == "m" or (frame.mode is None and frame.calls > 1):
            self.close_pass()  # the loop over time was inside
        elif self._pass is not None:
            self.finished(getattr(node, "v", None))

    def _steps(self, u: Tensor, spikes: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the steps ``[N, *]`` that one call of the surrogate function is about."""
        frame = self._frame
        if frame is None or frame.shape is None:
            return [(u, spikes)]
        if frame.mode is None and u.ndim == len(frame.shape) - 1:
            # No step module of SpikingJelly, and it loops over time itself.
            self.close_pass()
            frame.mode = "m"
        sequence, step = frame.shape, frame.shape[1:]
        if frame.mode == "m":
            if u.shape != step and u.numel() == sequence.numel():
                return list(zip(u.reshape(sequence), spikes.reshape(sequence), strict=True))
            wanted = step
        else:
            wanted = sequence
        if u.numel() == wanted.numel():
            u, spikes = u.reshape(wanted), spikes.reshape(wanted)
        return [(u, spikes)]

    def _step(self, u: Tensor, spikes: Tensor, drawn: Tensor | None) -> None:
        self._flush(self._pass)
        if self._pass is not None and not self._pass.fits(u):
            self.close_pass()
        if self._pass is None:
            self._pass = Pass(self._activity.names)
        function = self.function
        assert function is not None  # noqa: S101 (for the type checker)
        h = charge(self.node, u) if self._pass.wants("h", "v") else None
        self._pass.step(u, spikes, h, lambda u: slope(function, u, drawn))
        if self._frame is not None and self._frame.resets_as_host:
            self.finished(potential(self.node, spikes, h))

    def _flush(self, now: Pass | None) -> None:
        v, self._potential, self._source = self._potential, None, (None, 0)
        if now is not None and v is not None:
            now.potential(v)

    def _miss(self, names: tuple[str, ...], of: str, reason: str) -> None:
        gone = [name for name in names if name in TABLE and TABLE[name].of == of]
        self.missing.update(dict.fromkeys(gone, reason))
        self._activity.drop(gone)

    def _refuse(self, why: str) -> None:
        self._why = why
        self._activity.clear()
