"""Groups that keep multiples of channels, in a wrapper, up to the small network."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_prune import PruningWrapper, compact, methods
from sj_prune.masks import Channels
from sj_prune.methods.plan import plan_of
from tests.support.channel_cases import CHANNEL_METHODS, TOTAL, UNITS, pruner
from tests.support.pruning_cases import batch, train

ALLOWED = {"1": {4, 8}, "4": {4, 8, 10}, "7": {4, 7}}  # of 8, 10 and 7 channels, multiples of 4


@pytest.mark.parametrize("settings", [{"regrow": 0.0}, {"regrow": 0.3}])
@pytest.mark.parametrize("name", CHANNEL_METHODS)
def test_every_method_keeps_multiples_after_every_update(name, settings):
    row = CHANNEL_METHODS[name]
    method = row.make(structure=Channels(linear=False, multiple=4), **settings)
    model, optimizer = pruner(method)
    train(model, optimizer, 9)
    assert model.history
    for record in model.history:
        assert all(record.kept[group] in ALLOWED[group] for group in UNITS), record.kept
        kept = sum(record.kept.values())
        assert plan_of(method).threshold is not None or (
            abs(kept - round((1 - record.target) * TOTAL)) <= 2
        )
    grown = sum(sum(record.grown.values()) for record in model.history)
    assert (grown > 0) == (settings["regrow"] > 0)
    assert model.history[-1].sparsity > 0.2


def test_update_by_hand_takes_the_nearest():
    model, _ = pruner(methods.FilterNorm(structure=Channels(multiple=4)))
    train_once(model)
    # Exact: 25; 7 + 9 + 6; 6 + 7 + 5; 5 + 6 + 4, where 10 and 7 may stay whole.
    for sparsity, kept in (
        (0.0, (8, 10, 7)),
        (0.1, (8, 10, 4)),
        (0.28, (4, 8, 7)),
        (0.4, (4, 8, 4)),
        (0.52, (4, 4, 4)),
    ):
        model.masks.install({n: torch.ones(u, dtype=torch.bool) for n, u in UNITS.items()})
        model.update_masks(sparsity)
        assert tuple(model.masks.kept_units().values()) == kept
        assert model.sparsity()["total"] == pytest.approx(1 - sum(kept) / TOTAL)


def test_the_same_sparsity_again_changes_nothing():
    model, _ = pruner(methods.FilterNorm(structure=Channels(multiple=4)))
    train_once(model)
    model.update_masks(0.1)
    model.update_masks(0.28)  # 18 of 25, rounded to 16
    assert sum(model.masks.kept_units().values()) == 16
    before = model.masks.state_dict()
    for sparsity in (0.28, 0.3):  # neither is a lower one
        model.update_masks(sparsity)
        assert all(mask.equal(before[name]) for name, mask in model.masks.state_dict().items())


def train_once(model):
    functional.reset_net(model)
    model(batch(1)[0])


def test_a_sparsity_below_one_multiple_each_is_refused():
    method = methods.FilterNorm(sparsity=0.6, structure=Channels(multiple=4))
    with pytest.raises(
        ValueError, match="^Expected a sparsity of at most 0.52, .* the 12 channels"
    ):
        PruningWrapper(pruner(methods.APoZ())[0].finalize(), method, example_input=batch(1)[0])


class Grouped(nn.Module):
    """Units of two channels: cut out of both halves of a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.a = layer.Conv2d(2, 24, 3, padding=1, bias=False)
        self.norm_a, self.b = layer.BatchNorm2d(24), layer.Conv2d(24, 16, 3, groups=2, bias=False)
        self.norm_b, self.fc = layer.BatchNorm2d(16), layer.Linear(16, 3)
        functional.set_step_mode(self, "m")

    def forward(self, x_seq):
        return self.fc(self.norm_b(self.b(self.norm_a(self.a(x_seq)))).mean((-2, -1)))


@pytest.mark.parametrize("sparsity", [0.2, 0.4, 0.6])
def test_multiples_are_of_channels_not_of_units(sparsity):
    torch.manual_seed(0)
    x_seq = torch.rand(2, 2, 2, 6, 6)
    method = methods.FilterNorm(sparsity=sparsity, structure=Channels(multiple=4))
    model = PruningWrapper(Grouped(), method, example_input=x_seq)
    assert list(model.masks.units().values()) == [12, 8]
    model.update_masks()
    small = compact(model.finalize(), x_seq)
    for conv in (small.a, small.b):
        assert conv.out_channels % 4 == 0
    assert small.a.out_channels < 24


def test_default_is_any_number():
    assert Channels().multiple == 1
    model, _ = pruner(methods.FilterNorm())
    train_once(model)
    assert [scope.multiple for scope in model.masks.scopes.values()] == [1, 1, 1]
