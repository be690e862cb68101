"""torch.compile around the wrapper: one graph, at most one recompilation, the masks of eager."""

import functools
import importlib.util
import itertools

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from sj_prune import PruningWrapper
from tests.support.pruning_cases import (
    batch,
    build,
    criticality,
    loss_of,
    magnitude,
    rigl,
    same,
    snapshot,
)
from tests.support.pruning_cases import train as train_loop

UPDATES = [4, 8, 12, 16, 20]
STEPS = UPDATES[-1]
METHODS = {
    "Criticality": lambda: criticality(interval=4, end=STEPS),
    "Magnitude": lambda: magnitude(interval=4, end=STEPS),
    "RigL": lambda: rigl(interval=4, end=STEPS),
}


class Plain(nn.Module):
    """Layers of torch itself over [T N, ...]: dynamo takes them on every release."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.sn1, self.fc1 = neuron.LIFNode(), nn.Linear(144, 8)
        self.sn2, self.fc2 = neuron.IFNode(v_threshold=0.3), nn.Linear(8, 5)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        t = x.shape[0]
        y = self.bn(self.conv(x.flatten(0, 1))).unflatten(0, (t, -1))
        y = self.sn2(self.fc1(self.sn1(2.0 * y).flatten(2)))
        return self.fc2(y)


# 0.0.0.0.14's own layers pass `super().forward` to a function, which dynamo cannot trace.
NETWORKS = {"torch layers": Plain}
if importlib.util.find_spec("spikingjelly.clock_driven") is None:
    NETWORKS["host layers"] = build


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(network, name, backend=None, example=False, steps=STEPS):
    example_input = batch(0)[0] if example else None
    model = PruningWrapper(network(), METHODS[name](), example_input=example_input)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    model.attach(optimizer)
    used = model if backend is None else torch.compile(model, fullgraph=True, backend=backend)
    train_loop(used, optimizer, steps)
    return model


@functools.cache
def eager(network, name):
    """Return masks and tensors at the end of a training that is not compiled."""
    model = run(NETWORKS[network], name)
    return model.masks.masks, snapshot(model.net)


PRODUCT = list(itertools.product(NETWORKS, METHODS, [True, False]))
# Every pair of two settings of the three; the others are slow.
FEW = [one for i, one in enumerate(PRODUCT) if i % 4 in (0, 3) or len(NETWORKS) == 1]


@pytest.mark.parametrize(
    ("network", "name", "example"),
    [pytest.param(*one, marks=[] if one in FEW else pytest.mark.slow) for one in PRODUCT],
)
def test_compiled_training(network, name, example):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = run(NETWORKS[network], name, counter, example)
    masks, tensors = eager(network, name)
    # One graph without recording and one with it; never a graph a step.
    assert counter.frame_count == (2 if name == "Criticality" else 1)
    assert [r.step for r in compiled.history if r.step] == UPDATES
    assert same(compiled.masks.masks, masks)
    torch.testing.assert_close(snapshot(compiled.net), tensors, rtol=1e-4, atol=1e-5)


def test_statistics_of_a_compiled_forward_are_those_of_eager(network):
    counts = []
    for backend in (None, "aot_eager"):
        model = PruningWrapper(network(), criticality(interval=4, end=8, batches=3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        model.attach(optimizer)
        used = model if backend is None else torch.compile(model, fullgraph=True, backend=backend)
        train_loop(used, optimizer, 3)
        counts.append([node.activity.state_dict() for node in model.nodes.values()])
    for eager, compiled in zip(*counts, strict=True):
        # Steps 2 and 3: the window of the update at step 4 opened after step 1.
        assert eager["samples"] == compiled["samples"] == 12
        torch.testing.assert_close(eager["sums"], compiled["sums"])


def test_recording_from_the_first_step_on(network):
    """The sums do not exist yet at the first compiled forward: one graph more, then no other."""
    counter = CompileCounterWithBackend("aot_eager")
    model = PruningWrapper(network(), criticality(interval=5, end=20, batches=5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    model.attach(optimizer)
    used = torch.compile(model, fullgraph=True, backend=counter)
    train_loop(used, optimizer, 19)
    assert counter.frame_count == 2
    assert [r.step for r in model.history] == [5, 10, 15]


def test_compiled_evaluation_and_training_alternate(network):
    """Evaluation has its own graph; going back and forth compiles no more."""
    counter = CompileCounterWithBackend("aot_eager")
    model = PruningWrapper(network(), METHODS["Criticality"]())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    model.attach(optimizer)
    used = torch.compile(model, fullgraph=True, backend=counter)
    seen = []
    for start in (1, 11, 21):
        model.train()
        train_loop(used, optimizer, 10, start=start)
        model.eval()
        with torch.no_grad():
            loss_of(used, 0)
        seen.append(counter.frame_count)
    assert seen[1] == seen[2]
    assert model.step == 30


@pytest.mark.slow
def test_inductor(network):
    compiled, eager = (run(network, "Criticality", backend) for backend in ("inductor", None))
    assert [sum(r.kept.values()) for r in compiled.history] == [
        sum(r.kept.values()) for r in eager.history
    ]
    agree = [compiled.masks[n].eq(eager.masks[n]).float().mean().item() for n in eager.masks]
    assert min(agree) > 0.9  # fused kernels round otherwise
