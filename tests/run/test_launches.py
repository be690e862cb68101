"""What a step without an update asks of a device: few launches, nothing from the host, no waiting.

On the meta device a question to the device raises (`benchmarks/launches.py`); on a device torch
itself refuses to wait.
"""

from functools import partial

import pytest
import torch
from torch import optim

import sj_prune
from benchmarks import launches
from sj_prune import methods
from sj_prune.engines import cupy_device
from sj_prune.models import VGG16

T, WIDTHS = 2, (8,) * 13
SHAPE = (2, 3, 32, 32)
LAYERS, NORMS = 14, 13
MAKES = {
    "SGD": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "Adam": partial(optim.Adam, lr=0.01),
    "Adamax": partial(optim.Adamax, lr=0.01),  # whose slots are held after every step
}
LONG = {"interval": 100, "end": 200}


def pruned(method, device="cpu", order=torch.contiguous_format):
    """Return a wrapper that has pruned, with no update to come for long."""
    torch.manual_seed(0)
    net = VGG16(10, widths=WIDTHS, T=T).to(device, memory_format=order)
    x = torch.rand(SHAPE, device=device)
    model = sj_prune.PruningWrapper(net, method, example_input=x)
    launches.train_step(model, optim.SGD(model.parameters(), lr=0.01), x)
    model.update_masks()
    assert model.sparsity()["total"] > 0.4
    return model


def steady(method, optimizer):
    """Return launches and host copies of a step like any other."""
    return launches.counted(pruned(method), MAKES[optimizer], SHAPE)[-1]


@pytest.mark.parametrize("optimizer", MAKES)
def test_single_weights(optimizer):
    """Every gradient is masked where it arises; the rest is a launch for all layers together."""
    found, copies = steady(methods.Magnitude(sparsity=0.9, **LONG), optimizer)
    assert copies == []
    after = optimizer == "Adamax"
    assert found == {"sj_fill": 2 + after, "mul": LAYERS}


@pytest.mark.parametrize("optimizer", MAKES)
def test_channels(optimizer):
    """Norms are silent and filters asleep: held before, and after, every step."""
    found, copies = steady(methods.FPGM(sparsity=0.5, end=200), optimizer)
    assert copies == []
    # Three parameters a layer, and their slots: the table has 96 places.
    slots = {"SGD": 1, "Adam": 2, "Adamax": 2}[optimizer]
    assert found == {"sj_put_rows": 2 - (-3 * NORMS * (1 + slots) // 96), "mul": 2 * NORMS}


@pytest.mark.parametrize(
    ("method", "late"),
    [
        (methods.Magnitude(sparsity=0.9, **LONG), False),
        (methods.Magnitude(sparsity=0.9, **LONG), True),
        (methods.FPGM(sparsity=0.5, end=200), False),
    ],
)
def test_weights_with_channels_last(method, late):
    """As many launches, even if weights are put into that order when there are masks."""
    model = pruned(method, order=torch.contiguous_format if late else torch.channels_last)
    model.to(memory_format=torch.channels_last)
    assert launches.counted(model, MAKES["SGD"], SHAPE)[-1] == steady(method, "SGD")


def test_scores_of_every_step_stay_on_the_device():
    found, copies = steady(methods.TaylorChannels(sparsity=0.5, **LONG), "SGD")
    assert copies == []
    assert sum(found.values()) <= 11 * NORMS


def test_neurons_that_are_recorded():
    """Channels behind a flatten are looked up where the sums are."""
    _, copies = steady(methods.SVS(sparsity=0.5, **LONG), "SGD")
    assert copies == []


# ---- on a device ---------------------------------------------------------------------------------


def steps_on_device(method, optimizer):
    """Return a function that runs one step of training without an update."""
    model = pruned(method, "cuda")
    made = MAKES[optimizer](model.parameters())
    model.attach(made)
    x = torch.rand(SHAPE, device="cuda")
    step = partial(launches.train_step, model, made, x)
    for _ in range(3):
        step()
    return step


CASES = [
    (methods.Magnitude(sparsity=0.9, **LONG), "SGD"),
    (methods.Magnitude(sparsity=0.9, **LONG), "Adamax"),
    (methods.FPGM(sparsity=0.5, end=200), "Adam"),
    (methods.TaylorChannels(sparsity=0.5, **LONG), "SGD"),
    (methods.Criticality(sparsity=0.9, **LONG), "Adam"),
]


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize(("method", "optimizer"), CASES)
def test_no_step_waits_for_the_device(method, optimizer, engine, monkeypatch):
    monkeypatch.setenv("SJ_PRUNE_ENGINE", engine)
    step = steps_on_device(method, optimizer)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "optimizer"), CASES[:3])
def test_kernels_of_a_step_on_a_device(method, optimizer, monkeypatch):
    if reason := cupy_device.available():
        pytest.skip(reason)
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "auto")
    step = steps_on_device(method, optimizer)
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        step()
        torch.cuda.synchronize()
    kernels = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert 2 <= sum(name.startswith("sj_fill") or "sj_put_rows" in name for name in kernels) <= 4
    assert sum("bitwise_and" in name or "index_fill" in name for name in kernels) == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "method",
    [
        methods.Magnitude(sparsity=0.9, interval=2, end=6),
        methods.TaylorChannels(sparsity=0.5, interval=2, end=6),
    ],
    ids=lambda method: type(method).__name__,
)
def test_weights_and_slots_are_0_after_training(method, device, monkeypatch):
    if device == "cuda":
        monkeypatch.setenv("SJ_PRUNE_ENGINE", "auto")
    net = VGG16(10, widths=WIDTHS, T=T).to(device)
    x = torch.rand(SHAPE, device=device)
    model = sj_prune.PruningWrapper(net, method, example_input=x)
    optimizer = MAKES["Adam"](model.parameters())
    model.attach(optimizer)
    for _ in range(9):
        launches.train_step(model, optimizer, x)
    masks = model.session.run.masks
    assert masks.gated()
    for key, parameter in masks.gated().items():
        gone = ~masks[key if key in masks else key.rpartition(".")[0]]
        for tensor in (parameter, *optimizer.state[parameter].values()):
            assert tensor.shape != parameter.shape or not tensor[gone].any()
