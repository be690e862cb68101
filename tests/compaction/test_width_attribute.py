"""Widths that modules keep as plain ints: they follow, or the layer stays dense; never wrong."""

import json

import pytest
import torch
from torch import nn

import sj_prune
from sj_prune import methods
from sj_prune.compaction import architecture, compact, couple_checked, load_compact, save_compact
from sj_prune.network.coupling import couple
from tests.support.compaction_cases import (
    assert_awake,
    assert_equal,
    awake,
    mask_at_random,
    parameters,
    run,
)
from tests.support.width_cases import DIM, HIDDEN, MLPS, Spikformer, Transformer, build


def hidden_groups(coupling):
    return [group for group in coupling.groups if group.units == HIDDEN]


@pytest.mark.parametrize("kind", MLPS, ids=lambda kind: kind.__name__)
def test_mlps_shrink_and_compute_the_same(kind, tmp_path):
    net, x = build(kind(), kind())
    assert_awake(awake(net, x), x)
    coupling = couple_checked(net, (x,))
    assert len(hidden_groups(coupling)) == 2, coupling.frozen
    mask_at_random(net, x, 1, 0.5, coupling)
    small = compact(net, x)
    for block in small.blocks:
        assert block.c_hidden == block.fc1.weight.shape[0] < HIDDEN
    assert small.blocks[0].c_hidden != small.blocks[1].c_hidden
    assert net.blocks[0].c_hidden == HIDDEN
    assert_equal(net, small, x)
    save_compact(tmp_path / "small.pt", small)
    loaded = load_compact(tmp_path / "small.pt", build(kind(), kind())[0])
    assert torch.equal(run(small, x, False)[0][0], run(loaded, x, False)[0][0])
    assert json.loads(json.dumps(architecture(loaded))) == architecture(small)


def test_an_int_that_is_equal_by_accident_stays():
    net, x = build(MLPS[5]())
    awake(net, x)
    mask_at_random(net, x, 0, 0.5, couple_checked(net, (x,)))
    block = compact(net, x).blocks[0]
    assert block.chance == HIDDEN > block.c_hidden == block.again
    assert architecture(block)[""] == {"again": block.again, "c_hidden": block.c_hidden}


def test_ints_equal_to_two_widths_follow_their_own():
    """Input and hidden width are the same number, and both are reshaped with."""

    class Square(Spikformer):
        def forward(self, x):
            t, b, _, n = x.shape
            y = self.lif1(self.bn1(self.fc1(x.flatten(0, 1))).reshape(t, b, self.c_hidden, n))
            return self.lif2(self.bn2(self.fc2(y.flatten(0, 1))).reshape(t, b, self.c_output, n))

    net, x = build(Square(DIM, DIM), Square(DIM, DIM))
    awake(net, x)
    coupling = couple_checked(net, (x,))
    assert len(coupling.groups) == 3, coupling.frozen
    mask_at_random(net, x, 2, 0.5, coupling)
    small = compact(net, x)
    assert_equal(net, small, x)
    blocks = small.blocks
    assert {block.c_output for block in blocks} == {small.stem.out_channels}
    assert [block.c_hidden for block in blocks] == [block.fc1.out_channels for block in blocks]


def test_one_int_for_two_widths_that_are_cut_apart_follows_neither():
    class Sharing(Transformer):
        def __init__(self, mlps):
            super().__init__(mlps)
            self.hidden = HIDDEN

        def forward(self, x):
            for block in self.blocks:
                block.width = lambda: self.hidden
            return super().forward(x)

    class Asking(Spikformer):
        def remember(self, dim, hidden):
            self.width = None

        @property
        def c_hidden(self):
            return self.width()

    _, x = build()
    net = awake(Sharing([Asking(), Asking()]), x)
    traced, found = couple(net, (x,)), couple_checked(net, (x,))
    assert len(hidden_groups(traced)) == 2
    assert [group.name for group in found.groups] == ["bn"]
    assert found.widths == {}
    mask_at_random(net, x, 0, 0.5, traced)
    small = compact(net, x)
    assert small.hidden == HIDDEN
    assert small.stem.out_channels < DIM
    assert_equal(net, small, x)


def test_a_width_that_no_int_says_stays():
    class Written(Spikformer):
        kept = {}

        def forward(self, x):
            t, b, c, n = x.shape
            y = self.lif1(self.bn1(self.fc1(x.flatten(0, 1))).reshape(t, b, HIDDEN, n))
            return self.lif2(self.bn2(self.fc2(y.flatten(0, 1))).reshape(t, b, c, n))

    net, x = build(Written(), Spikformer())
    found = couple_checked(net, (x,))
    assert found.frozen["blocks.0.fc1"].startswith("its width is written into the forward")
    assert [set(g.producers) for g in hidden_groups(found)] == [{"blocks.1.fc1"}]
    assert net.blocks[0].c_hidden == HIDDEN


@pytest.mark.parametrize(("value", "message"), [(99, "at most .* 24"), (0, "a positive integer")])
def test_a_record_with_an_int_that_does_not_fit_is_refused(value, message):
    net, x = build(Spikformer())
    awake(net, x)
    mask_at_random(net, x, 0, 0.5, couple_checked(net, (x,)))
    record = architecture(compact(net, x))
    record["blocks.0"]["c_hidden"] = value
    with pytest.raises(ValueError, match=f"c_hidden of 'blocks.0' to be {message}"):
        sj_prune.rebuild(net, record)
    with pytest.raises(ValueError, match="the record has .'other'.*full width|has .'other'"):
        sj_prune.rebuild(net, {**record, "blocks.0": {"other": 3}})


@pytest.mark.parametrize("kind", MLPS[:3], ids=lambda kind: kind.__name__)
def test_half_of_the_macs_takes_much_of_the_parameters(kind):
    net, x = build(kind(), kind())
    nn.init.constant_(net.bn.weight, 2.0)
    loader = [(torch.randn_like(x) * 2, torch.randint(0, 5, (2,))) for _ in range(2)]
    dense = parameters(net)
    net, _ = sj_prune.prune(net, loader, methods.FilterNorm(sparsity=0.5), budget={"macs": 0.5})
    small = compact(net, x)
    assert parameters(small) <= 0.6 * dense
    assert_equal(net, small, x, alive=False)


def test_trial_and_compaction_take_few_forwards():
    """One of them traces; then groups are tried together, and ints of one class together."""
    calls = []

    class Counted(Transformer):
        def forward(self, x):
            calls.append(x.dtype)
            return super().forward(x)

    _, x = build()
    net = Counted([Spikformer() for _ in range(6)])
    coupling = couple_checked(net, (x,))
    assert len(hidden_groups(coupling)) == 6
    assert len(calls) <= 5
    mask_at_random(net, x, 0, 0.5, coupling)
    calls.clear()
    compact(net, x)
    assert len(calls) <= 9
