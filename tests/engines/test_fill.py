"""Masks held in many tensors with one launch: on the host, compiled for every GPU, on a device."""

import ctypes
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sj_prune.engines import cupy_device, fill
from sj_prune.engines.fill import fused
from tests.support import nvrtc
from tests.support.fill_shim import on_host  # noqa: F401 (a fixture)

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NOT_FINITE = (torch.nan, torch.inf, -torch.inf, -0.0)


def placed(shape, dtype, offset, device, generator):
    """Return random values, some of them not finite, between margins that nobody may touch."""
    size = torch.Size(shape).numel()
    buffer = torch.randn(size + offset + 64, generator=generator, dtype=torch.float64).to(dtype)
    buffer[::7] = torch.tensor(NOT_FINITE, dtype=dtype).repeat(len(buffer))[: len(buffer[::7])]
    buffer = buffer.to(device)
    return buffer, buffer[offset : offset + size].view(shape)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).cpu()


def assert_written(cases, device, seed=0):
    """Write into all of `cases` (shape, dtype, offset, kind); compare with one after another."""
    generator = torch.Generator().manual_seed(seed)
    writes, expected, margins = [], [], []
    for shape, dtype, offset, kind in cases:
        buffer, values = placed(shape, dtype, offset, device, generator)
        source = None
        before, wanted = buffer.clone(), values.cpu().clone()
        if kind == "mask":
            where = (torch.rand(shape, generator=generator) < 0.4).to(device)
            wanted[~where.cpu()] = 0.0
        else:
            chosen = torch.rand(shape[0], generator=generator) < 0.5
            where = chosen.nonzero().flatten().to(device)
            if kind == "source":
                size = (len(where), *shape[1:])
                source = torch.randn(size, generator=generator).to(device, dtype)
            wanted[chosen] = 0.0 if source is None else source.cpu()
        writes.append((values, where, source))
        expected.append(wanted)
        margins.append((buffer, before, offset, values.numel()))
    assert fused(writes) == []
    for (values, _, _), wanted in zip(writes, expected, strict=True):
        assert torch.equal(bits(values), bits(wanted))
    for buffer, before, offset, size in margins:
        for part in (slice(offset), slice(offset + size, None)):
            assert torch.equal(bits(buffer[part]), bits(before[part]))


cases = st.tuples(
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
    | st.sampled_from([(5000,), (40, 33, 3, 3), (16, 8, 3, 3)]),
    st.sampled_from(TYPES),
    st.sampled_from([0, 0, 1, 2, 4]),
    st.sampled_from(["mask", "rows", "source"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(cases, min_size=1, max_size=6), st.integers(0, 2**31))
def test_any_tensors(on_host, chosen, seed):  # noqa: F811
    del on_host[:]
    assert_written(chosen, "cpu", seed)
    assert len(on_host) <= 2


def test_a_launch_serves_as_many_as_an_argument_holds(on_host):  # noqa: F811
    assert_written([((3, 5), torch.float32, 0, "mask")] * 130, "cpu")
    assert_written([((3, 5), torch.float32, 0, "source")] * 97, "cpu")
    kernels = [("sj_fill", 128), ("sj_fill", 2), ("sj_put_rows", 96), ("sj_put_rows", 1)]
    assert on_host == kernels


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (8, 6, 1, 1)])
def test_channels_last_is_served_where_it_lies(on_host, shape):  # noqa: F811
    def last(tensor):
        return tensor.to(memory_format=torch.channels_last)

    values, kept, index = last(torch.randn(shape)), torch.rand(shape) < 0.5, torch.tensor([1, 4])
    source = last(torch.randn(2, *shape[1:]))
    wanted = values.where(kept, 0)
    kept = kept if shape[-1] == 1 else last(kept)  # of one place: the strides tell no order
    assert fused([(values, kept, None)]) == []
    assert torch.equal(values, wanted)
    assert fused([(values, index, source)]) == []
    assert torch.equal(values, wanted.index_copy(0, index, source))
    assert fused([(values, index, None)]) == []
    assert torch.equal(values, wanted.index_fill(0, index, 0))


def test_other_layouts_are_left_to_others(on_host):  # noqa: F811
    values = torch.randn(8, 6, 3, 3)
    kept = torch.ones(8, 6, 3, 3, dtype=torch.bool)
    left = [
        (values, kept.to(memory_format=torch.channels_last), None),
        (values[:, :3], kept[:, :3], None),
        (values.transpose(0, 1), torch.tensor([1]), None),
        (values, torch.tensor([1]), torch.ones(1, 6, 3, 3, dtype=torch.float64)),
        (values, torch.tensor([1]), values[:1].to(memory_format=torch.channels_last)),
        (values.to(torch.float8_e4m3fn), kept, None),
        (values.to(torch.complex128), kept, None),
    ]
    assert fused(left) == left
    assert on_host == []


def test_a_table_fits_into_the_arguments_of_a_kernel():
    assert max(map(ctypes.sizeof, (fill.FillArguments, fill.RowsArguments))) <= 4096


def test_nothing_pruned_launches_nothing(on_host):  # noqa: F811
    assert fused([(torch.randn(3, 4), torch.empty(0, dtype=torch.long), None)]) == []
    assert on_host == []


@pytest.mark.parametrize("architecture", [75, 80, 90, 100, 120])
def test_compiles_without_spills(architecture):
    log, _ = nvrtc.compile_(cupy_device.code("fill.cu"), architecture, cupy_device.OPTIONS)
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", log)
    assert len(used) == 2
    assert set(used) == {("0", "0", "0")}, log


@pytest.mark.gpu
def test_on_a_device(monkeypatch):
    if reason := cupy_device.available():
        pytest.skip(reason)
    monkeypatch.setenv("SJ_PRUNE_ENGINE", "cupy")
    for seed in range(3):
        shapes = [((256, 128, 3, 3), "mask"), ((64, 3, 7, 7), "source"), ((512,), "rows")]
        chosen = [
            (shape, dtype, offset, kind)
            for shape, kind in shapes
            for dtype in TYPES
            for offset in (0, 1, 4)
        ]
        assert_written(chosen * 12, "cuda", seed)
