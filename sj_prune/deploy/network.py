"""`deploy` and the network that it returns."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from copy import deepcopy
from os import PathLike, fspath

import torch
from torch import Tensor, nn

from sj_prune import _host
from sj_prune._files import described, load, save
from sj_prune.deploy.graph import UnsupportedError, check_input
from sj_prune.deploy.plan import Layer, Plan, Step, plan
from sj_prune.deploy.program import Program, Shape
from sj_prune.deploy.proof import Finding, prove
from sj_prune.deploy.report import DeployReport, rows_of
from sj_prune.deploy.storage import Parts, from_plain, to_plain
from sj_prune.deploy.trace import trace
from sj_prune.deploy.tuner import Timing, prepare, tune
from sj_prune.deploy.weights import Weights
from sj_prune.engines import deploy_engine as engine

_WRITER = "SparseNetwork.save"


class SparseNetwork:
    """A network on packed spikes and weights that are not 0; of `deploy`. Inference only.

    Calls may come from several threads at once; `step` and `reset` are for one stream.
    """

    def __init__(
        self,
        made: Plan,
        weights: Mapping[int, Weights],
        kernels: Mapping[int, str],
        timings: Mapping[int, Timing],
        findings: Mapping[int, Finding],
        threads: int | None,
        difference: float | None = None,
    ) -> None:
        self._plan, self._weights = made, dict(weights)
        self._kernels, self._timings = dict(kernels), dict(timings)
        self._findings, self._difference = dict(findings), difference
        self._threads = threads
        self._free: dict[tuple[Shape, int], list[Program]] = {}
        self._lock = threading.Lock()
        # Modules that stay in torch keep state: one call at a time.
        stays = any(isinstance(s, Step) and s.module is not None for s in made.steps)
        self._turn = threading.Lock() if stays else None
        self._stream: Program | None = None

    @property
    def threads(self) -> int:
        """How many threads a call uses: what was asked for, else torch's own number."""
        return self._threads or torch.get_num_threads()

    def __call__(self, x_seq: Tensor) -> Tensor:
        """Return what the network computes in eval mode from neurons at rest.

        Args:
            x_seq: ``[T, N, *]``, or ``[N, *]`` where the network repeats still images itself;
                any `T` and `N`, the map as it was deployed with.

        Raises:
            ValueError: for an input of another shape.
        """
        x = self._checked(x_seq)
        shape = self._shape(x)
        program = self._take(shape)
        try:
            if self._turn is None:
                return self._run(program, x)
            with self._turn:
                return self._run(program, x)
        finally:
            with self._lock:
                self._free.setdefault((shape, self.threads), []).append(program)

    def step(self, x: Tensor) -> Tensor:
        """Return what the network makes of one more time step of a stream.

        Neurons go on from the last `step`; `reset` puts them to rest.

        Args:
            x: ``[N, *]``.

        Returns:
            The output of this step, ``[N, *]``.

        Raises:
            ValueError: for an input of another shape, or another `N` than before the last reset.
        """
        sequence = self._plan.graph.sequence
        given = self._checked(x.unsqueeze(0) if sequence else x)
        samples = x.shape[0]
        if self._stream is None:
            shape = (1, samples, False)
            self._stream = Program(
                self._plan, self._weights, self._kernels, shape, self.threads, carry=True
            )
            self._stream.reset()
        if samples != self._stream.samples:
            raise ValueError(
                f"Expected {self._stream.samples} samples, as in the steps before, but got "
                f"{samples}: reset() first"
            )
        out = self._run(self._stream, given)
        return out[0] if self._plan.graph.timed else out

    def reset(self) -> None:
        """Forget the stream of `step`: its neurons are at rest again."""
        self._stream = None

    def report(self) -> DeployReport:
        """Return a table of the layers: density, rate, kernel, time, bytes, what is open."""
        rows = rows_of(self._plan, self._weights, self._kernels, self._timings, self._findings)
        return DeployReport(rows, bool(self._findings), self._difference)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the network to a file of tensors and plain values, for `load_deployed`.

        A file that is there stays whole until the new one is, as with `sj_prune.save`.

        Raises:
            OSError: if the file cannot be written.
            ValueError: if a part of it stayed in torch.
        """
        save(path, to_plain(self._parts()))

    def _parts(self) -> Parts:
        return Parts(
            self._plan,
            self._weights,
            self._kernels,
            self._timings,
            self._findings,
            self._difference,
        )

    def __repr__(self) -> str:
        layers = len(self._weights)
        kept = sum(w.number for w in self._weights.values())
        size = sum(w.bytes() for w in self._weights.values())
        return f"SparseNetwork({layers} layers, {kept} weights, {size} bytes)"

    def _run(self, program: Program, x: Tensor) -> Tensor:
        with torch.inference_mode():
            out = program(x)
        return out.clone()  # no tensor of inference mode, and the caller's own

    def _checked(self, x: Tensor) -> Tensor:
        graph = self._plan.graph
        tail = graph.values[0].tail
        front = 2 if graph.sequence else 1
        if not isinstance(x, Tensor) or x.ndim != front + len(tail) or x.shape[front:] != tail:
            form = f"[{'T, ' if graph.sequence else ''}N, {', '.join(map(str, tail))}]"
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"Expected an input {form}, as it was deployed with, but got {got}")
        if 0 in x.shape or x.device.type != "cpu":
            raise ValueError(
                f"Expected an input with elements on the CPU but got {tuple(x.shape)} on {x.device}"
            )
        return x.detach()

    def _shape(self, x: Tensor) -> Shape:
        if not self._plan.graph.sequence:
            return self._plan.graph.steps, x.shape[0], True
        still = x.shape[0] > 1 and (x.stride(0) == 0 or all(torch.equal(x[0], y) for y in x[1:]))
        return x.shape[0], x.shape[1], still

    def _take(self, shape: Shape) -> Program:
        with self._lock:
            kept = self._free.get((shape, self.threads))
            if kept:
                return kept.pop()
        return Program(self._plan, self._weights, self._kernels, shape, self.threads)


def deploy(
    net: nn.Module, x_seq: Tensor, *, check: bool = True, threads: int | None = None
) -> SparseNetwork:
    """Return a network that computes what `net` does in eval mode, fast on a CPU.

    Args:
        net: a stock network in multi-step mode, as `finalize` or `compact` leaves it; it is not
            changed and not needed afterwards.
        x_seq: a typical input ``[T, N, *]`` (``[N, *]`` where the network repeats still images):
            kernels are chosen by what is fastest on it. Later inputs may have other `T` and `N`.
        check: prove every layer on this input against float64.
        threads: of every call; None: ``torch.get_num_threads()`` at the call.

    Raises:
        UnsupportedError: a ValueError that names what cannot be deployed, and why.
        RuntimeError: without a working C++ compiler, and (`ProofError`) if a layer is not proved.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"Expected net to be a torch.nn.Module but got {type(net).__name__}")
    if problem := engine.problem():
        raise RuntimeError(f"Expected a machine that can build the engine but {problem}")
    _check_tensors(net, x_seq)
    x_seq = x_seq.detach().float()
    graph = trace(net, x_seq)
    made = plan(graph)
    weights = prepare(made)
    _own_modules(made)
    draft = SparseNetwork(made, weights, {}, {}, {}, threads)
    shape = draft._shape(x_seq)
    with torch.inference_mode():
        kernels, timings = tune(made, weights, shape, x_seq)
        findings = prove(made, weights, kernels, shape, x_seq) if check else {}
    _forget(made, weights, kernels)
    fast = SparseNetwork(made, weights, kernels, timings, findings, threads)
    if check:
        fast._difference = _difference(net, x_seq, fast)
    return fast


def load_deployed(path: str | PathLike[str], *, threads: int | None = None) -> SparseNetwork:
    """Return the network that `SparseNetwork.save` wrote; nothing in the file is run.

    Args:
        path: of the file.
        threads: of every call; None: ``torch.get_num_threads()`` at the call.

    Raises:
        OSError: if it cannot be opened.
        ValueError: for another file, or a damaged one.
    """
    plain = load(path, _WRITER)
    try:
        made, weights, kernels, timings, findings, difference = from_plain(plain)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"Expected a whole file of {_WRITER} but {fspath(path)!r} holds {described(plain)} and "
            f"is damaged: {type(error).__name__}: {error}"
        ) from error
    return SparseNetwork(made, weights, kernels, timings, findings, threads, difference)


def _difference(net: nn.Module, x: Tensor, fast: SparseNetwork) -> float:
    """Return how far the outputs lie from the network's own in float32."""
    with _host.preserved_state(net), torch.inference_mode():
        _host.reset_net(net.eval())
        y = net(x)
        _host.reset_net(net)
    return float((y - fast(x)).abs().max())


def _check_tensors(net: nn.Module, x_seq: object) -> None:
    check_input(x_seq)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.device.type != "cpu":
            raise UnsupportedError(
                f"Expected a network on the CPU but {name} is on {tensor.device}: net.cpu()"
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UnsupportedError(
                f"Expected a network in float32 but {name} is {tensor.dtype}: net.float()"
            )


def _own_modules(made: Plan) -> None:
    """Copy what stays in torch: the network is the user's."""
    for step in made.steps:
        if isinstance(step, Step) and step.module is not None:
            with _host.preserved_state(step.module):
                _host.reset_net(step.module)  # potentials of a training step cannot be copied
                copied = deepcopy(step.module)
            step.module = copied.eval().requires_grad_(False)


def _forget(made: Plan, weights: Mapping[int, Weights], kernels: Mapping[int, str]) -> None:
    """Keep of the weights only what the chosen kernels read."""
    for step in made.steps:
        if isinstance(step, Layer):
            step.weight, step.parts = None, []
    for node in made.graph.nodes:
        node.module = None
    for value, kept in weights.items():
        kernel = kernels[value]
        kept.dense = kept.dense if kernel == "dense" else None
        kept.by_input = kept.by_input if kernel == "events" else None
        kept.by_output = kept.by_output if kernel in ("bits", "reals") else None
