"""What a chip holds, against counts by hand and against every assignment of layers to cores."""

import dataclasses
import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import chips
from sj_prune.chips.limits import Core
from sj_prune.chips.mapping import mapped
from sj_prune.chips.speck import assigned, kernel_memory, neuron_memory

X = torch.rand(2, 1, 2, 32, 32)


def convolutions(
    widths, node=neuron.IFNode, size=32, before_pool=True, head=True, pool=True, **conv
):
    parts, last = [], 2
    for width in widths:
        steps = [layer.BatchNorm2d(width), node(), layer.AvgPool2d(2 if pool else 1)]
        if not before_pool:
            steps = [layer.BatchNorm2d(width), layer.AvgPool2d(2), node()]
        parts += [layer.Conv2d(last, width, 3, **{"padding": 1, "bias": False, **conv}), *steps]
        last, size = width, size // 2 if pool else size
    if head:
        parts += [layer.Flatten(), layer.Linear(last * size * size, 10)]
    net = nn.Sequential(*parts)
    functional.set_step_mode(net, "m")
    return net


def linear(*sizes, node=neuron.LIFNode):
    parts = []
    for before, after in itertools.pairwise(sizes):
        parts += [layer.Linear(before, after), node()]
    net = nn.Sequential(*parts)
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.parametrize(
    ("widths", "ok"),
    [
        ((32, 64, 128, 128), False),
        ((19, 38, 77, 77), False),  # 40 % of the channels pruned: powers of two stay
        ((16, 32, 64, 64), True),
        ((32, 64, 64, 64, 64), False),  # three layers of 64 Ki, two such cores
    ],
)
def test_speck_memory(widths, ok):
    fit = sj_prune.fits(convolutions(widths), X, chips.SPECK2F)
    assert fit.ok is ok
    assert bool(fit) is ok
    assert set(fit.cores) <= {"0", "4", "8", "12", "16", "17", "21"}
    if ok:
        assert str(fit).endswith("It fits.")
        assert len(set(fit.cores.values())) == 5
    else:
        assert "Ki" in fit.problems[0]
    assert sj_prune.fits(convolutions(widths), X, "speck2f").problems == fit.problems


def test_values_of_the_input_are_not_judged():
    net = convolutions((8, 8))
    expected = sj_prune.fits(net, X, "speck2f")
    for x in (torch.full_like(X, float("nan")), torch.zeros_like(X), 1e30 * X):
        assert str(sj_prune.fits(net, x, "speck2f")) == str(expected)


def test_words_of_memory():
    layers = mapped(convolutions((24, 40), stride=1), X)
    # c * pow2(3 * 3) * pow2(f); f * pow2(h) * pow2(w)
    assert [kernel_memory(m) for m in layers] == [2 * 16 * 32, 24 * 16 * 64, 40 * 64 * 16]
    assert [neuron_memory(m) for m in layers] == [24 * 32 * 32, 40 * 16 * 16, 10]
    assert [m.pool for m in layers] == [2, 2, 1]
    assert layers[2].kernel == (8, 8)  # flatten, then linear: a convolution over the map


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: convolutions((8, 8), node=neuron.LIFNode), "0: LIF neurons"),
        (lambda: convolutions((8, 8), before_pool=False), "0: .* pools its sums"),
        (lambda: convolutions((8, 8), stride=3, padding=2, head=False), "stride 3"),
        (lambda: convolutions((8,), padding=8, head=False), "padding 8 of at most 7, 1 over"),
        (
            lambda: convolutions((2048,), head=False),
            "output channels 2048 of at most 1024, 1024 over",
        ),
    ],
)
def test_what_a_core_does_not_do_is_named(make, said):
    fit = sj_prune.fits(make(), X, "speck2f")
    assert not fit.ok
    assert re.search(said, "\n".join(fit.problems))


def test_residual_network_needs_two_destinations():
    class Net(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.stem = nn.Sequential(layer.Conv2d(2, 4, 3, padding=1), neuron.IFNode())
            self.heads = nn.ModuleList(
                nn.Sequential(layer.Conv2d(4, 4, 3, padding=1), neuron.IFNode())
                for _ in range(times)
            )
            self.last = nn.Sequential(layer.Flatten(), layer.Linear(4 * 64, 3))
            functional.set_step_mode(self, "m")

        def forward(self, x):
            x = self.stem(x)
            added = self.heads[0](x)
            for head in self.heads[1:]:
                added = added + head(x)
            return self.last(added)

    x = torch.rand(2, 1, 2, 8, 8)
    assert sj_prune.fits(Net(2), x, "speck2f").ok
    fit = sj_prune.fits(Net(3), x, "speck2f")
    assert any("stem.0: destinations 3 of at most 2" in p for p in fit.problems)


needs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=60, deadline=None)
@given(st.lists(needs, min_size=1, max_size=4), st.lists(needs, min_size=1, max_size=5))
def test_assignment_is_found_if_there_is_one(asked, room):
    (base, *_) = mapped(linear(2, 2), torch.rand(1, 1, 2))
    layers = []
    for i, (kernel, neurons) in enumerate(asked):
        # words of kernel memory: kernel * pow2(1) * pow2(1); of neurons: 1 * 2**(neurons-1)
        part = dataclasses.replace(
            base, name=str(i), shape_in=(kernel, 1, 1), shape_out=(1, 1, 2 ** (neurons - 1))
        )
        layers.append(part)
    cores = [Core(k, 2 ** (n - 1)) for k, n in room]
    found, missing = assigned(layers, cores)
    possible = any(
        all(k <= cores[c].synapses and 2 ** (n - 1) <= cores[c].neurons
            for (k, n), c in zip(asked, order, strict=False))
        for order in itertools.permutations(range(len(cores)), len(asked))
    )  # fmt: skip
    assert possible == (not missing)
    assert len(set(found.values())) == len(found)
    for name, core in found.items():
        kernel, neurons = asked[int(name)]
        assert kernel <= room[core][0]
        assert neurons <= room[core][1]


@pytest.mark.parametrize(
    ("sizes", "chip", "said"),
    [
        ((16, 64, 8), chips.XYLO_A2, None),
        ((17, 64, 8), chips.XYLO_A2, "0: inputs 17 of at most 16, 1 over"),
        ((16, 50, 65, 8), chips.XYLO_A2, "0: fan-out 65 of at most 64, 1 over"),
        ((16, 60, 60, 9), chips.XYLO_A2, "4: outputs 9 of at most 8, 1 over"),
        ((16, 600, 401, 8), chips.XYLO_A2, "2: hidden neurons in all 1001 of at most 1000, 1 over"),
        ((16, 129, 8), chips.XYLO_A3, "0: hidden neurons that inputs reach 129 of at most 128"),
        ((16, 100, 200, 8), chips.XYLO_A3, "0: mean fan-out of the hidden neurons 72.0"),
        ((16, 60, 60, 16), chips.XYLO_IMU, None),
    ],
)
def test_xylo(sizes, chip, said):
    fit = sj_prune.fits(linear(*sizes), torch.rand(2, 1, sizes[0]), chip)
    if said is None:
        assert fit.ok, fit.problems
    else:
        assert any(p.startswith(said) for p in fit.problems), fit.problems


def test_pruning_makes_room_on_xylo():
    net = linear(16, 100, 200, 8)
    with torch.no_grad():
        for i, module in enumerate(m for m in net if isinstance(m, nn.Linear)):
            keep = torch.zeros_like(module.weight)
            keep[:, :: 2 if i < 2 else 1] = 1  # half of the neurons send nothing
            module.weight.mul_(keep)
    # 50 neurons send 200 synapses each, 200 send 8: (50 * 200 + 200 * 8) / 300 = 38.7
    fit = sj_prune.fits(net, torch.rand(2, 1, 16), chips.XYLO_A3)
    assert fit.ok, fit.problems


def test_own_chip():
    net = linear(10, 20, 5)
    x = torch.rand(2, 1, 10)

    def problems(**limits):
        return sj_prune.fits(net, x, chips.Chip(name="mine", **limits)).problems

    assert problems() == ()
    assert problems(fan_in=19) == ("2: fan-in 20 of at most 19, 5 % over",)
    assert problems(fan_out=19) == ("0: fan-out 20 of at most 19, 5 % over",)
    assert problems(mean_fan_in=10) == ("2: mean fan-in 20 of at most 10, 100 % over",)
    assert problems(cores=25, neurons_per_core=1) == ()
    assert problems(cores=24, neurons_per_core=1)[0].startswith("the network needs 25 cores of 24")
    # 20 neurons of 10 synapses, 4 a core of 45; 5 neurons of 20, 2 a core
    assert problems(cores=8, synapses_per_core=45) == ()
    assert (
        "9"
        not in sj_prune.fits(
            net, x, chips.Chip(name="mine", cores=7, synapses_per_core=45)
        ).cores.values()
    )
    assert problems(cores=7, synapses_per_core=45)[0].startswith("the network needs 8 cores of 7")
    assert "2: synapses of one neuron" in problems(synapses_per_core=19)[0]
    # Limits of numbers judge numbers: what lies between the layers is not their business.
    pooled = nn.Sequential(*convolutions((3,), size=8, head=False)[:3], layer.MaxPool2d(2))
    functional.set_step_mode(pooled, "m")
    images = torch.rand(2, 1, 2, 8, 8)
    assert sj_prune.fits(pooled, images, chips.Chip(name="mine", fan_in=18)).ok
    assert "maxpool follows" in sj_prune.fits(pooled, images, chips.SPECK2F).problems[0]
    with torch.no_grad():
        net[0].weight[:, 5:] = 0
    assert problems(cores=6, synapses_per_core=45) == ()  # 9 neurons a core now


def test_wrong_arguments():
    net, x = linear(4, 4), torch.rand(1, 1, 4)
    with pytest.raises(ValueError, match="one of .*speck2f.* but got 'loihi9'"):
        sj_prune.fits(net, x, "loihi9")
    with pytest.raises(TypeError, match="a Chip or its name but got int"):
        sj_prune.fits(net, x, 3)
    with pytest.raises(ValueError, match="fan_in to be positive"):
        chips.Chip(name="mine", fan_in=0)
    with pytest.raises(ValueError, match="cores=3 to come with"):
        chips.Chip(name="mine", cores=3)
