"""Samples of a pass joined to the statistics by one kernel, run on the host."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sj_prune.engines import collect, cupy_device, cupy_engine
from sj_prune.neurons import Activity, RecordingLIFNode, activity, op
from tests.support import nvrtc
from tests.support.cuda_shim import host  # noqa: F401 (a fixture)

NAMES = ("firing_rate", "abs_charge", "criticality_max")


@pytest.fixture
def collecting(host, monkeypatch):  # noqa: F811
    """Let activities of the CPU add through the kernel; yield the host."""
    monkeypatch.setattr(activity, "serves", lambda partials: True)
    return host


class Operations(TorchDispatchMode):
    """Lists the operations of torch."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def filled(batches, counts):
    one = Activity(NAMES)
    for partials, count in zip(batches, counts, strict=True):
        one.update(partials, count)
    return one


SIZES = [(1, 1), (2, 3), (65, 11), (7, 100), (150, 33)]


@pytest.mark.parametrize("rows, channels", SIZES)  # noqa: PT006
@pytest.mark.parametrize("bad", [None, torch.nan, -torch.inf])
def test_equals_torch(collecting, monkeypatch, rows, channels, bad):
    """Sums of what is finite, in double precision, and the counts; again after an overflow."""
    batches = [torch.randn(rows, channels, len(NAMES)) for _ in range(3)]
    if bad is not None:
        batches[1][rows // 2, channels // 2, 1] = bad
        batches[1][-1, 0, 0] = bad
    counts = [None, 3 * rows - 1 if rows > 1 else 3, None]
    found = filled(batches, counts)
    assert found._ticket == 0
    assert [one.kernel for one in collecting.launches] == ["sj_collect"]
    monkeypatch.setattr(Activity, "_add_at_once", lambda *_: False)  # torch's operations
    expected = filled(batches, counts)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-12, atol=1e-12)
    assert (found.count, found.lost) == (expected.count, expected.lost)
    assert (found.lost > 0) == (bad is not None)


def test_order_of_threads_does_not_matter(collecting):
    batches = [torch.randn(70, 40, len(NAMES)) for _ in range(2)]
    batches[1][3, 4, 0] = torch.inf
    sums = []
    for collecting.descending in (False, True):
        sums.append(filled(batches, (None, None)).sums)
    assert torch.equal(*sums)


def test_one_launch_a_layer(collecting, monkeypatch):
    """A training forward on a device launches the neurons and one kernel more, nothing of torch."""
    launched = []
    run = collect.run

    def counting(device, source, *launches):
        launched.extend(one.kernel for one in launches)
        run(device, source, *launches)

    monkeypatch.setattr(cupy_engine, "run", counting)
    monkeypatch.setattr(collect, "run", counting)
    monkeypatch.setattr(op, "choose", lambda device, dtype: cupy_engine)
    node = RecordingLIFNode(step_mode="m")
    x = torch.rand(4, 40, 8, 6, 6)
    node(x)
    assert launched == ["sj_groups", "sj_collect"]
    partials = torch.rand(8, 8, 5)
    with Operations() as operations:
        node.activity.update(partials)
    assert operations.names == ["aten.new_empty.default"]
    monkeypatch.setattr(Activity, "_add_at_once", lambda *_: False)
    with Operations() as operations:
        node.activity.update(partials)
    assert len(operations.names) > 12  # what it replaces


def test_what_the_kernel_serves(monkeypatch):
    """Single precision on CUDA, where the CUDA engine runs."""

    def partials(device="cuda", dtype=torch.float32):
        return SimpleNamespace(device=torch.device(device), dtype=dtype)

    monkeypatch.setattr(collect, "available", lambda: None)
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "auto")
    assert collect.serves(partials())
    assert not collect.serves(partials(dtype=torch.float64))
    assert not collect.serves(partials("cpu"))
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "torch")
    assert not collect.serves(partials())


@pytest.mark.parametrize("architecture", [75, 80, 90, 100, 120])
def test_compiles_without_spills(architecture):
    log, _ = nvrtc.compile_(cupy_device.code("collect.cu"), architecture, cupy_device.OPTIONS)
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", log)
    assert set(used) == {("0", "0", "0")}, log


ONE_ELEMENT = [(4, 40, 64), (3, 70, 10), (4, 9, 33, 1, 1), (2, 300), (5, 65, 200), (4, 1, 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", ONE_ELEMENT)
def test_maps_of_one_element_are_summed_over_samples(collecting, monkeypatch, shape, dtype):
    """The same statistics as of single samples, through an eighth of the numbers or less."""
    x = torch.rand(shape) * 3 - 0.5
    x = x.to(dtype)
    expected = RecordingLIFNode(tau=1.7, step_mode="m")
    spikes = expected(x)
    monkeypatch.setattr(op, "choose", lambda device, dtype: cupy_engine)
    written = []

    def watching(partials, *rest):
        written.append(partials.shape)
        collect.collect(partials, *rest)

    monkeypatch.setattr(activity, "collect", watching)
    found = RecordingLIFNode(tau=1.7, step_mode="m")
    assert torch.equal(found(x), spikes)
    assert found.activity.count == shape[1]
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.activity.sums, expected.activity.sums, **close)
    channels = shape[2] if len(shape) > 2 else 1
    assert written == [(-(-shape[1] // (256 // min(32, lanes(channels, dtype)))), channels, 5)]
    assert written[0][0] <= -(-shape[1] // 8)


def lanes(channels, dtype):
    """Return the threads that all channels of one sample take."""
    return 1 << (-(-channels // (16 // dtype.itemsize)) - 1).bit_length()


def test_a_function_of_spikes_sees_every_sample(collecting, monkeypatch):
    monkeypatch.setattr(op, "choose", lambda device, dtype: cupy_engine)
    node = RecordingLIFNode(step_mode="m")
    node.statistics = ["firing_rate", f"{__name__}:first_spikes"]
    node(torch.rand(4, 40, 64) * 3)
    assert node.activity.latest.shape == (40, 64, 2)
    assert node.activity.count == 40


def first_spikes(spikes):
    return spikes[0].flatten(2).mean(-1) if spikes.ndim > 3 else spikes[0].squeeze(-1)


def test_samples_summed_overflow_together(collecting, monkeypatch):
    monkeypatch.setattr(op, "choose", lambda device, dtype: cupy_engine)
    node = RecordingLIFNode(step_mode="m")
    x = torch.rand(4, 40, 128) * 3
    x[1, 39, 3] = torch.nan
    node(x)
    assert (node.activity.count, node.activity.lost) == (32, 8)
    assert node.activity.sums.isfinite().all()
