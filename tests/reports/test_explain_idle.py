"""Layers that no forward runs are named; what runs, by whatever module, is not."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import methods
from tests.support.foreign_neurons import Mixing


class Net(nn.Module):
    def __init__(self, node):
        super().__init__()
        self.conv, self.node = layer.Conv2d(2, 4, 3), node
        self.twin = layer.Conv2d(2, 4, 3)  # runs in the place of the first, with its weight
        self.twin.weight = self.conv.weight
        self.head, self.other = layer.Conv2d(4, 2, 1), layer.Linear(4, 9)
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.head(self.node(self.twin(x)))


@pytest.mark.parametrize(
    ("node", "idle"), [(neuron.LIFNode, {"other"}), (Mixing, {"other", "node.fc"})]
)
def test_what_never_runs_is_named(node, idle):
    x = torch.rand(3, 2, 2, 5, 5)
    model = sj_prune.PruningWrapper(
        Net(node()), methods.Magnitude(sparsity=0.5, interval=1, end=1), example_input=x
    )
    found = model.explain()
    status = {row.name: row.status for row in found.rows}
    assert {name for name, text in status.items() if "did not run" in text} == idle
    (said,) = (text for text in found.warnings if "did not run as modules" in text)
    assert all(name in said for name in idle)
    assert "conv" not in said
    model = sj_prune.PruningWrapper(
        model.finalize(),
        methods.Magnitude(sparsity=0.5, interval=1, end=1),
        example_input=x,
        skip=sorted(idle),
    )
    assert not any("did not run as modules" in text for text in model.explain().warnings)
