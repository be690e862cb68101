"""Inputs remembered by shape: what comes back from a checkpoint runs the same forward."""

import io
from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import methods
from sj_prune.masks import Channels
from sj_prune.network.inputs import TensorShape, from_plain, shapes_of, to_plain, zeros_of

CPU = torch.device("cpu")
Pair = namedtuple("Pair", "a b")
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64]
WHOLE = [torch.int64, torch.int32, torch.uint8, torch.bool]

SHAPES = st.lists(st.integers(0, 3), max_size=3)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), SHAPES, st.sampled_from(FLOATS)),
    st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), SHAPES, st.sampled_from(WHOLE)),
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


def saved(plain):
    """Save plain values and load them as a checkpoint is loaded."""
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def check(found, given):
    """Compare what came back with what was given, leaf by leaf."""
    assert type(found) is type(given)
    if isinstance(given, dict):
        assert found.keys() == given.keys()
        for key, value in given.items():
            check(found[key], value)
    elif isinstance(given, (list, tuple)):
        assert len(found) == len(given)
        for a, b in zip(found, given, strict=True):
            check(a, b)
    elif isinstance(given, torch.Tensor):
        kept = given.dtype in WHOLE
        expected = given if kept else torch.zeros_like(given)
        assert found.dtype == given.dtype
        assert torch.equal(found, expected)
        assert found is not given
    else:
        assert found == given


@given(inputs=NESTED)
def test_inputs_come_back_with_zeros_for_what_is_not_whole(inputs):
    shapes = shapes_of(inputs)
    check(zeros_of(shapes), inputs)
    check(zeros_of(from_plain(saved(to_plain(shapes)), CPU)), inputs)


def test_no_memory_is_held_of_large_integer_tensors():
    shapes = shapes_of([torch.ones(4096, dtype=torch.int64), torch.ones(4097, dtype=torch.int64)])
    assert shapes[0].tolist() == [1] * 4096
    assert shapes[1] == TensorShape((4097,), torch.int64, CPU)


def test_values_written_later_do_not_reach_what_is_remembered():
    lengths = torch.tensor([3, 2])
    shapes = shapes_of(lengths)
    lengths.zero_()
    zeros_of(shapes).zero_()
    assert shapes.tolist() == [3, 2]


def test_a_named_tuple_stays_one():
    found = zeros_of(shapes_of(Pair(torch.ones(2), [1])))
    assert isinstance(found, Pair)
    assert found.a.tolist() == [0, 0]


def test_lengths_on_the_cpu_stay_there_beside_inputs_on_a_device():
    shapes = shapes_of((torch.ones(2, device="meta"), torch.tensor([2, 1])))
    x, lengths = from_plain(to_plain(shapes), torch.device("meta"))
    assert (x.device.type, lengths.device.type) == ("meta", "cpu")
    shapes = shapes_of((torch.ones(2), torch.tensor([2, 1])))  # tokens of a network on a CPU
    x, tokens = from_plain(to_plain(shapes), torch.device("meta"))
    assert (x.device.type, tokens.device.type) == ("meta", "meta")


def test_checkpoints_of_the_first_release_are_read():
    plain = {
        "tuple": [
            {"tuple": [{"shape": [2, 3], "dtype": "float16"}, {"value": 4}, {"value": None}]},
            {"dict": {"mask": {"shape": [3], "dtype": "bool"}}},
        ]
    }
    expected = (
        (TensorShape((2, 3), torch.float16, CPU), 4, None),
        {"mask": TensorShape((3,), torch.bool, CPU)},
    )
    assert from_plain(plain, CPU) == expected


class Lengths(nn.Module):
    """Takes a list of sequences and their lengths, of which none may be 0."""

    def __init__(self):
        super().__init__()
        self.conv = layer.Conv2d(2, 8, 3, padding=1)
        self.norm = layer.BatchNorm2d(8)
        self.node = neuron.LIFNode()
        self.head = layer.Linear(8, 3)
        functional.set_step_mode(self, "m")

    def forward(self, parts, lengths, *, scale=None):
        if bool((lengths < 1).any()):
            raise ValueError("a sequence of length 0")
        x_seq = torch.cat(parts, 1) * scale["gain"]
        x = self.node(self.norm(self.conv(x_seq))).mean((-2, -1))
        return self.head(x).sum(0) / lengths[:, None]


@pytest.mark.parametrize("structure", [None, Channels(linear=False)])
def test_a_run_on_lists_and_lengths_resumes(structure):
    def wrapped():
        torch.manual_seed(0)
        settings = {} if structure is None else {"structure": structure}
        method = methods.CriticalityChannels if structure is not None else methods.Criticality
        arguments = {"sparsity": 0.5, "interval": 1, "end": 4, **settings}
        model = sj_prune.PruningWrapper(Lengths(), method(**arguments))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.attach(optimizer)
        return model, optimizer

    def train(model, optimizer, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            parts = [torch.rand(3, 2, 2, 5, 5, generator=generator) for _ in range(2)]
            optimizer.zero_grad()
            functional.reset_net(model.net)
            lengths = torch.tensor([3, 2, 1, 3])
            model(parts, lengths, scale={"gain": 2}).square().sum().backward()
            optimizer.step()

    whole, optimizer = wrapped()
    train(whole, optimizer, range(4))
    half, optimizer = wrapped()
    train(half, optimizer, range(2))
    state = saved({"model": half.state_dict(), "optimizer": optimizer.state_dict()})
    resumed, optimizer = wrapped()
    resumed.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    train(resumed, optimizer, range(2, 4))
    assert resumed.sparsity() == whole.sparsity()
    assert resumed.sparsity()["total"] > 0.4
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name])
