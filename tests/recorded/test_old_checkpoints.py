"""Checkpoints of the tree before its inside was rewritten load, and train on as they did there.

Three rules have been corrected since. Where a checkpoint needs them the old ones stand in, so that
all else is compared: growth by the gate gradient without the bias, Grad R's prior as a gradient,
new units that move in the step of the update itself where they have a gradient.
"""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from sj_prune.masks import Hidden, MaskManager
from sj_prune.methods import Penalty, Plan, channels, gradr, reads
from tests.recorded.methods import CHANNELS, METHODS
from tests.recorded.saved_states import LAST, SAVED, expected, load, names, saved, state_of, trained

#: a setting of each method's own, besides its sparsity
OWN = {
    "Criticality": {"growth": "random"},
    "Magnitude": {"begin": 1},
    "Random": {"begin": 1},
    "SET": {"regrow": 0.2},
    "RigL": {"regrow": 0.3},
    "GraNet": {"regrow_final": 0.1},
    "GradR": {"alpha": 0.02},
    "SCA": {"score": "paper"},
    "CriticalityChannels": {"aggregate": "mean"},
    "NetworkSlimming": {"l1": 0.1},
    "GReg": {"every": 2, "ceiling": 0.3},
    "APoZ": {"wake": "zero"},
    "FilterNorm": {"p": 2},
    "TaylorChannels": {"batches": 2},
    "RandomChannels": {"growth": "score"},
}


def test_every_method_has_one():
    assert names() == sorted(METHODS) == sorted(OWN)


@reads("gradient", "gamma gradient", over="sum")
def gate_without_bias(layer):
    if layer.norm is None:
        return (layer.dense_grad() * layer.weight).flatten(1).sum(1).abs()
    return layer.gamma_grad.abs()


@dataclass(frozen=True)
class PriorAsGradient:
    mu: float
    alpha: float

    def __call__(self, layer):
        theta, sign = layer.state["theta"], layer.state["sign"]
        layer.grad.add_(sign * torch.sign(theta - self.mu), alpha=self.alpha)


def plan_before(method):
    """Return the plan of Grad R as it was."""
    return Plan(
        schedule=method.constant(),
        binding=Hidden(gradr.Rewired()),
        penalties=(Penalty(gradient=PriorAsGradient(method.mu, method.alpha)),),
        name="GradR",
    )


@pytest.fixture
def rules_before(monkeypatch):
    monkeypatch.setitem(channels._GROWTHS, "gradient", gate_without_bias)
    monkeypatch.setattr(gradr.GradR, "plan", plan_before)
    monkeypatch.setattr(MaskManager, "keep_still", lambda masks, new: None)


@pytest.mark.usefixtures("rules_before")
@pytest.mark.parametrize("name", METHODS)
def test_training_goes_on(name):
    model, optimizer = load(name)
    assert model.step == SAVED
    assert [record.step for record in model.history] == (
        [0, 2, 4] if name in ("SET", "RigL") else [2, 4]
    )
    before = state_of(model, optimizer)
    trained(model, optimizer, SAVED + 1, LAST)
    found, wanted = state_of(model, optimizer), expected(name)
    assert found["masks"].equal(wanted["masks"])
    for kind in ("weights", "slots"):
        assert_close(found[kind], wanted[kind], rtol=1e-6, atol=1e-7)
    # Or the comparison would say nothing.
    assert not before["masks"].equal(wanted["masks"])
    assert not wanted["masks"].all()


@pytest.mark.parametrize("name", METHODS)
def test_what_is_loaded_is_what_was_saved(name):
    model, optimizer = load(name)
    state = saved(name)
    for key, value in model.net.state_dict().items():
        assert value.equal(state["model"][f"net.{key}"]), key
    slots = [optimizer.state[p]["momentum_buffer"] for p in model.net.parameters()]
    for i, slot in enumerate(slots):
        assert slot.equal(state["optimizer"]["state"][i]["momentum_buffer"]), i


@pytest.mark.parametrize("name", CHANNELS)
def test_some_channels_sleep_in_it(name):
    model, _ = load(name)
    assert 0 < model.sparsity()["total"] < 1


@pytest.mark.parametrize("name", METHODS)
def test_other_settings_are_refused(name):
    for changed in ({"sparsity": 0.55}, {"interval": 1}, OWN[name]):
        setting = next(iter(changed))
        with pytest.raises(ValueError, match=rf"method\.{setting} = .* but it has"):
            load(name, **changed)
