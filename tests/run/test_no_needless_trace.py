"""A method that needs no neurons and no norms runs the network's forward once a step, no more."""

import pytest
import torch
from torch import nn

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import OPTIMIZERS, batch, build

TIMING = {"interval": 2, "end": 9}
METHODS = {
    "Magnitude": methods.Magnitude(sparsity=0.8, **TIMING),
    "Random": methods.Random(sparsity=0.8, **TIMING),
    "SET": methods.SET(sparsity=0.7, **TIMING),
    "RigL": methods.RigL(sparsity=0.7, **TIMING),
    "GraNet": methods.GraNet(sparsity=0.8, **TIMING),
    "GradR": methods.GradR(sparsity=0.9, **TIMING),
}


class Counted(nn.Module):
    """Counts where nobody can put the count back."""

    def __init__(self):
        super().__init__()
        self.net, self.drop = build(), nn.Dropout(0.5)

    def forward(self, x):
        CALLS.append(1)
        return self.drop(self.net(x))


CALLS: list[int] = []


@pytest.mark.parametrize("name", METHODS)
def test_one_forward_a_step(name):
    CALLS.clear()
    model = PruningWrapper(Counted(), METHODS[name])
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    model.attach(optimizer)
    x, _ = batch(1)
    for step in range(1, 4):
        torch.manual_seed(step)
        y = model(x)
        state = torch.get_rng_state()
        torch.manual_seed(step)
        torch.nn.functional.dropout(torch.ones_like(y), 0.5)
        assert torch.equal(state, torch.get_rng_state()), "one mask of the dropout was drawn"
        y.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.net.net.apply(lambda m: m.reset() if hasattr(m, "reset") else None)
        assert len(CALLS) == step
    assert model.history


def test_explain_learns_what_was_not_needed():
    model = PruningWrapper(build(), METHODS["Magnitude"])
    assert "nothing is traced yet" in str(model.explain())
    model(batch(1)[0])
    text = str(model.explain())
    assert "nothing is traced yet" not in text
    assert "never fired" not in text, "no spikes were measured"
