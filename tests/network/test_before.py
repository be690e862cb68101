"""Which neurons a layer's input comes from."""

from torch import nn

from sj_prune import PruningWrapper
from tests.support.pruning_cases import batch, build, lif, magnitude
from tests.support.trained_cases import Residual, batches


def before(net, x_seq, table="before"):
    model = PruningWrapper(net, magnitude())
    model(x_seq)
    model.explain()  # what the method has no need of is learnt when asked for
    return getattr(model.session.run.anatomy.topology, table)


def test_through_norms_pools_and_flatten():
    """Layer 0 reads the input, and no neuron follows layer 10."""
    assert before(build(), batch(1)[0]) == {"3": ("2",), "8": ("5",)}
    assert before(build(), batch(1)[0], "ends") == {"10": ("9",)}


def test_through_an_addition():
    found = before(Residual(), batches(1)[0][0])
    assert {name: set(nodes) for name, nodes in found.items()} == {
        "conv1": {"node0"},
        "conv2": {"node1"},
        "fc1": {"node2", "node0"},
    }


def test_behind_a_layer_without_neurons_of_its_own():
    """The one that comes later reads no neuron itself."""
    net = build()
    net[3] = nn.Sequential(net[3], lif(), nn.Identity())
    assert before(net, batch(1)[0])["3.0"] == ("2",)
