"""Each layer's kernel is the fastest on the user's own input.

Kernels are timed in turns, by the processor time of one thread, so that what else the machine does
falls on all of them alike; the median counts. Of a large batch a few samples are enough: which
kernel is the fastest depends on density and rate, hardly on how many samples there are.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sj_prune.deploy.plan import Form, Layer, Plan
from sj_prune.deploy.program import Program, Shape
from sj_prune.deploy.weights import Weights, by_input, entries, matrix

_ROUNDS = 5
_SAMPLES = 16  # more are not run
_AMONG_OTHERS = 3e-5  # seconds that torch takes longer than in a row with itself
_HOPELESS = 2.0  # times the fastest: not timed again
_MOST_LISTED = 1 << 16  # channels that the event kernel can tell apart


@dataclass
class Timing:
    """What the tuner found for one layer.

    Attributes:
        rate: fraction of input elements that are not 0 at a step.
        samples: on so many samples.
        seconds: median processor time by kernel.
    """

    rate: float
    samples: int
    seconds: dict[str, float] = field(default_factory=dict)


def prepare(made: Plan) -> dict[int, Weights]:
    """Return the weights of all layers; `tune` adds what the event kernel reads."""
    found = {}
    for layer in made.steps:
        if isinstance(layer, Layer) and layer.weight is not None:
            found[layer.output] = _weights(made, layer)
    return found


def _weights(made: Plan, layer: Layer) -> Weights:
    assert layer.weight is not None  # noqa: S101
    form = made.forms[layer.input]
    channels = made.values[layer.input].shape[0]
    outputs, rows, values = entries(layer, form, layer.geometry["groups"], channels)
    dense = layer.weight.float().contiguous()
    number = int(np.count_nonzero(dense.numpy()))
    return Weights(
        None if layer.bias is None else layer.bias.float(),
        number / max(dense.numel(), 1),
        number,
        dense,
        matrix(outputs, rows, values, layer.weight.shape[0]),
    )


def default_kernels(made: Plan) -> dict[int, str]:
    """Return the kernels that need no measurement to be right."""
    kernels = {}
    for layer in made.steps:
        if isinstance(layer, Layer):
            packed = made.forms[layer.input].planes
            kernels[layer.output] = "bits" if packed else "reals"
            if layer.weight is None:
                kernels[layer.output] = "neurons"
    return kernels


def tune(
    made: Plan, weights: Mapping[int, Weights], shape: Shape, x: Tensor
) -> tuple[dict[int, str], dict[int, Timing]]:
    """Return the fastest kernel of each layer and all timings.

    Args:
        made: what is run.
        weights: of `prepare`.
        shape: of the input.
        x: the input.
    """
    kernels = default_kernels(made)
    steps, samples, static = shape
    samples = min(samples, _SAMPLES)
    x = x.narrow(1 if made.graph.sequence else 0, 0, samples)
    program = Program(made, weights, kernels, (steps, samples, static), 1)
    timings: dict[int, Timing] = {}
    with _one_thread():
        program(x)  # every layer's input now holds what the user's input makes of it
        for layer in made.steps:
            if isinstance(layer, Layer) and layer.weight is not None:
                rate = _rate(program, layer)
                timing = timings[layer.output] = Timing(rate, samples)
                names = _candidates(made, layer, weights[layer.output], rate)
                if "events" in names:
                    weights[layer.output].by_input = by_input(layer, made.forms[layer.input])
                timing.seconds = _measure(program, layer, names, made.forms[layer.input])
                kernels[layer.output] = _fastest(timing.seconds)
    return kernels, timings


def _fastest(seconds: Mapping[str, float]) -> str:
    """Return the fastest kernel."""
    return min(seconds, key=lambda name: seconds[name] + _AMONG_OTHERS * (name == "dense"))


def _rate(program: Program, layer: Layer) -> float:
    x = program.real(layer.input)
    if program.calls[-1][0] is None:
        program.calls.pop()[1]()  # unpacked only to look at it
    return float((x != 0).float().mean())


def _candidates(made: Plan, layer: Layer, weights: Weights, rate: float) -> list[str]:
    """Return the kernels that may be the fastest."""
    form = made.forms[layer.input]
    if not form.planes:
        return ["dense", "reals"]
    names = ["dense", "bits"]
    channels = form.planes * made.values[layer.input].shape[0]
    # The work of one grows with the rate, of the other with the density.
    sparser = layer.geometry["groups"] == 1 and rate < 2 * weights.density
    return [*names, "events"] if sparser and channels < _MOST_LISTED else names


def _measure(program: Program, layer: Layer, names: list[str], form: Form) -> dict[str, float]:
    calls: dict[str, Callable[[], object]] = {}
    for name in names:
        call = program.layer_call(layer, name)
        unpack = None
        if name == "dense" and form.planes:
            given, out = program.packed(layer.input), program.real(layer.input)
            unpack = lambda g=given, o=out: program._unpack(g, o, form)  # noqa: E731
        calls[name] = _both(unpack, call)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_ROUNDS):
        fastest = min((min(found) for found in times.values() if found), default=math.inf)
        for name, call in calls.items():
            if min(times[name], default=0.0) <= _HOPELESS * fastest:
                times[name].append(_seconds(call))
    return {name: statistics.median(found) for name, found in times.items()}


def _both(first: Callable[[], object] | None, then: Callable[[], object]) -> Callable[[], object]:
    if first is None:
        return then
    before = first

    def call() -> None:
        before()
        then()

    return call


def _seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
