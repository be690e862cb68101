"""The connection matrix against the layer itself: a unit impulse at every input."""

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune.export.folded import folded, layers
from sj_prune.export.synapses import fans

CASES = {
    "conv": (lambda: layer.Conv2d(3, 4, 3, padding=1), (3, 5, 6)),
    "strided": (lambda: layer.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1)), (3, 7, 5)),
    "dilated": (lambda: layer.Conv2d(2, 3, 3, dilation=2, bias=False), (2, 8, 7)),
    "groups": (lambda: layer.Conv2d(4, 6, 3, groups=2, padding=2), (4, 4, 4)),
    "depthwise": (lambda: layer.Conv2d(4, 4, 3, groups=4), (4, 5, 5)),
    "conv1d": (lambda: layer.Conv1d(3, 4, 3, stride=2, padding=1), (3, 9)),
    "linear": (lambda: layer.Linear(7, 5), (7,)),
}


@pytest.mark.parametrize("case", CASES)
def test_matrix_is_the_layer(case):
    make, tail = CASES[case]
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        module.weight.mul_(torch.rand_like(module.weight) < 0.5)
    net = nn.Sequential(module, neuron.IFNode())
    functional.set_step_mode(net, "m")
    x_seq = torch.rand(2, 1, *tail)
    (found,) = sj_prune.synapses(net, x_seq)

    size = int(np.prod(tail))
    impulses = torch.eye(size).view(size, *tail)
    with torch.no_grad():
        functional.set_step_mode(module, "s")
        responses = module(impulses) - module(torch.zeros(1, *tail))
        functional.set_step_mode(module, "m")
    expected = responses.flatten(1).T.numpy()
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-6)
    # A position of the padding is no synapse: count in integers, where nothing cancels.
    ones = make()
    with torch.no_grad():
        ones.weight.copy_(module.weight != 0)
        functional.set_step_mode(ones, "s")
        counts = ones(impulses) - ones(torch.zeros(1, *tail))
    counts = counts.flatten(1).T.round().numpy()
    assert found.nnz == int(counts.sum())
    made = folded(net, x_seq)
    into, out = fans(made, next(layers(made)))
    np.testing.assert_array_equal(into.ravel(), counts.sum(1))
    np.testing.assert_array_equal(out.ravel(), counts.sum(0))


def test_pruned_linear_network_has_as_many_synapses_as_its_masks_keep():
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(20, 30), neuron.LIFNode(), layer.Linear(30, 10))
    functional.set_step_mode(net, "m")
    method = sj_prune.methods.Magnitude(sparsity=0.8, interval=1, end=1)
    model = sj_prune.PruningWrapper(net, method)
    model.update_masks(sparsity=0.8)
    kept = [int(model.masks[name].sum()) for name in ("0", "2")]
    matrices = sj_prune.synapses(model.finalize(), torch.rand(2, 1, 20))
    assert [m.nnz for m in matrices] == kept
    assert sum(kept) == round(0.2 * (600 + 300))
