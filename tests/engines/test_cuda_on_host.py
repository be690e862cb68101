"""The CUDA engine, executed on the host with the launches of `cupy_engine`: no GPU needed.

Every test checks spikes and potentials to the last bit against the reference, statistics and
gradients against double precision, that every output is written and nothing outside of them, that
accesses are aligned and barriers reached by all; see `cuda_shim.cpp` and `engine_cases.py`.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sj_prune.neurons.reference import IF, LIF, PLIF
from tests.support.cuda_shim import host  # noqa: F401 (a fixture)
from tests.support.engine_cases import (
    LAYOUTS,
    NOT_FINITE,
    SHAPES,
    Call,
    Case,
    assert_backward,
    assert_forward,
    assert_overflow,
    of_every_surrogate,
    settings,
)

pytestmark = pytest.mark.usefixtures("host")
SETTINGS = settings()


def assert_call(case):
    call = Call(case)
    assert_forward(call)
    assert_backward(call)


@pytest.mark.parametrize("case", SETTINGS[::5])
def test_settings(case):
    assert_call(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SETTINGS)
def test_all_settings(case):
    assert_call(case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, layout):
    assert_call(Case(shape=shape, layout=layout))


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_in_half(shape, layout):
    assert_call(Case(shape=shape, layout=layout, dtype=torch.float16, kind=PLIF))


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("shape", [(4, 2, 3, 8, 8), (100, 2, 8, 4, 4), (4, 2, 64)])
@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_misaligned_pointers(dtype, offset, shape, layout):
    assert_call(Case(shape=shape, layout=layout, dtype=dtype, offset=offset))


@pytest.mark.parametrize("shape", [(4, 2, 3, 16, 16), (3, 2, 3, 5), (4, 33)])
def test_without_statistics(shape):
    assert_call(Case(shape=shape, statistics=0))


@pytest.mark.parametrize("processors", [1, 132])
@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("shape", [(4, 1, 2, 40, 33), (4, 2, 8, 64, 64), (4, 40, 8, 8, 8)])
def test_number_of_multiprocessors(host, shape, layout, processors):  # noqa: F811
    """Small devices get no splits of the map, large ones many; results stay right."""
    host.processors = processors
    assert_call(Case(shape=shape, layout=layout))
    assert (host.launches[0].kernel, len(host.launches)) == ("sj_backward", 1)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("kind", [IF, LIF, PLIF])
def test_order_of_threads_does_not_matter(host, kind, layout):  # noqa: F811
    """A missing barrier would show: the threads run in the opposite order."""
    for shape in ((4, 1, 2, 40, 36), (4, 3, 8, 8, 8), (4, 3, 64, 3, 3)):
        call = Call(Case(shape=shape, layout=layout, kind=kind))
        results = []
        for host.descending in (False, True):
            results.append((*call.forward(), *call.backward()))
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)


def test_double_input_is_refused():
    """Its state would be double: the torch engine serves it."""
    with pytest.raises(TypeError, match=r"Expected x_seq .* but got torch\.float64"):
        Call(Case(dtype=torch.float64)).forward()


@pytest.mark.parametrize("tau", [4 / 3, 1.1, 3.0, 100.3])
@pytest.mark.slow
def test_quotient_of_every_mantissa(tau):
    """With ``V = 0`` and no reset in reach, ``V[1] = x / tau`` for all x in [1, 2)."""
    case = Case(tau=tau, v_reset=None, statistics=0, shape=(1, 1 << 10, 1 << 13))
    call = Call(case)
    call.x.copy_((torch.arange(1 << 23) + (127 << 23)).int().view(torch.float32).view(case.shape))
    call.v.zero_()
    call.x[0, ::2] *= -1.0
    spikes, v, *_ = call.forward()
    expected = torch.where(spikes[0] > 0, call.x[0] / tau - 1.0, call.x[0] / tau)
    assert torch.equal(v, expected)


def test_quotient_of_extremes():
    """The division of `step.h` holds for all but the smallest numbers."""
    x = torch.tensor([0.0, 1e-30, 1.1e-30, 1e-10, 3e38, 1.7, math.pi, 65504.0])
    call = Call(Case(v_reset=None, statistics=0, shape=(1, 1, 16)))
    call.x.copy_(torch.cat([x, -x]))
    call.v.zero_()
    spikes, v, *_ = call.forward()
    assert torch.equal(v, call.x[0] / 1.7 - spikes[0])


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("case", of_every_surrogate())
def test_an_overflow_shows_in_every_result_as_in_the_reference(case, bad):
    """Statistics above all: a sample that is not finite in them is not counted."""
    assert_overflow(case, bad)


@st.composite
def cases(draw, types=(torch.float32, torch.float16), statistics=(31,)):
    sizes = st.integers(1, 9) | st.sampled_from([16, 32])
    ndim = draw(st.integers(0, 3))
    steps = draw(st.integers(1, 4) | st.sampled_from([40, 64]))
    return Case(
        shape=(steps, *(draw(sizes) for _ in range(ndim + 1))),
        dtype=draw(st.sampled_from(types)),
        layout=draw(st.sampled_from(LAYOUTS)),
        offset=draw(st.sampled_from([0, 0, 0, 1, 2, 4])),
        one_v=draw(st.booleans()),
        wants_v=draw(st.booleans()),
        statistics=draw(st.sampled_from(statistics)),
        seed=draw(st.integers(0, 2**31)),
    )


def assert_any(host, case, processors):  # noqa: F811
    host.processors = processors
    call = Call(case)
    assert_forward(call)
    assert_backward(call)


_PROCESSORS = st.sampled_from([1, 4, 132])
_unhurried = hypothesis_settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@hypothesis_settings(_unhurried, max_examples=20)
@given(case=cases(), processors=_PROCESSORS)
def test_any_shape(host, case, processors):  # noqa: F811
    assert_any(host, case, processors)


@pytest.mark.slow
@hypothesis_settings(_unhurried, max_examples=150)
@given(
    case=cases((torch.float32, torch.float16, torch.bfloat16), (31, 0, 12)),
    processors=_PROCESSORS,
)
def test_any_shape_at_length(host, case, processors):  # noqa: F811
    assert_any(host, case, processors)
