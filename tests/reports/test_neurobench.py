"""SynOps are the effective accumulations of NeuroBench, on pruned networks of three kinds."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import cost
from tests.chips.test_fits import linear
from tests.export.networks import pruned


def convolutions():
    """Maximum pooling, groups, a stride: spikes everywhere but at the first layer."""
    net = nn.Sequential(
        *(layer.Conv2d(2, 8, 3, padding=1), layer.BatchNorm2d(8), neuron.IFNode()),
        *(layer.MaxPool2d(2), layer.Conv2d(8, 8, 3, padding=1, groups=2), neuron.LIFNode()),
        *(layer.Conv2d(8, 6, 3, stride=2, padding=1, groups=2), neuron.IFNode()),
        *(layer.Flatten(), layer.Linear(24, 5)),
    )
    functional.set_step_mode(net, "m")
    return net


class Residual(nn.Module):
    """Currents are added before the neurons, so spikes alone meet weights."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1, self.conv2 = (
            nn.Sequential(layer.Conv2d(c, 6, 3, padding=1, bias=False), layer.BatchNorm2d(6))
            for c in (2, 6, 6)
        )
        self.node0, self.node1, self.node2 = (neuron.IFNode() for _ in range(3))
        self.head = nn.Sequential(layer.Flatten(), layer.Linear(6 * 64, 5))
        functional.set_step_mode(self, "m")

    def forward(self, x):
        x = self.node0(self.stem(x))
        x = self.node2(self.conv2(self.node1(self.conv1(x))) + x)
        return self.head(x)


IMAGES = torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
EVENTS = (torch.rand(4, 3, 20, generator=torch.Generator().manual_seed(1)) < 0.4).float()
METHOD = sj_prune.methods.Magnitude(interval=1, end=1)
NETWORKS = {
    "convolutions": (convolutions, IMAGES, METHOD),
    "linear": (lambda: linear(20, 30, 20, 8), EVENTS, METHOD),
    "residual, channels": (Residual, IMAGES, sj_prune.methods.FilterNorm()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_synops_are_effective_acs(name):
    operations = pytest.importorskip("neurobench.metrics.workload.synaptic_operations")
    from neurobench.models import TorchModel

    make, x, method = NETWORKS[name]
    torch.manual_seed(0)
    model = sj_prune.PruningWrapper(pruned(make(), x, sparsity=0.0), method, example_input=x)
    model.update_masks(sparsity=0.5)
    net, x = model.finalize().double(), x.double()  # theirs adds up in the network's precision
    found = cost.measure(net, x).values()

    theirs = TorchModel(net)
    theirs.register_hooks()
    metric = operations.SynapticOperations()
    functional.reset_net(net)
    with torch.no_grad():
        theirs(x)
        counted = metric(theirs, None, (x.transpose(0, 1), None))
    theirs.cleanup_hooks()
    assert sum(each.synops for each in found) == counted["Effective_ACs"] > 0
    assert sum(each.synops for each in found) < sum(each.synops_dense for each in found)
