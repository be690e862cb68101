"""The same layers are coupled as in Torch-Pruning's dependency graph, found in another way.

Torch-Pruning follows the autograd graph. It reads the flattening of ``[T, N]`` wrongly and loses
the graph at neurons, so it is given single-step networks with identities for neurons.
"""

import copy

import pytest
from spikingjelly.activation_based import functional, neuron
from torch import nn

from sj_prune.network.coupling import couple
from tests.support import zoo

tp = pytest.importorskip("torch_pruning")


def without_neurons(net):
    twin = copy.deepcopy(net)
    functional.set_step_mode(twin, "s")
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, neuron.BaseNode):
                setattr(module, name, nn.Identity())
    return twin.eval()


def oracle(net, x):
    """Return (producers, norms, consumers) of every group of Torch-Pruning's."""
    names = {module: name for name, module in net.named_modules()}
    graph = tp.DependencyGraph().build_dependency(net, example_inputs=x)
    groups = set()
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        producers, norms, consumers = set(), set(), set()
        for item in group:
            module = item.dep.target.module
            if module not in names:
                continue
            if isinstance(module, nn.modules.batchnorm._NormBase):
                norms.add(names[module])
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                out = graph.is_out_channel_pruning_fn(item.dep.handler)
                (producers if out else consumers).add(names[module])
        groups.add((frozenset(producers), frozenset(norms), frozenset(consumers)))
    return groups


WHOLE = ["spiking_resnet18", *(f"sew_resnet18_{cnf}" for cnf in ("ADD", "AND", "IAND"))]


@pytest.mark.parametrize(
    "name",
    [
        "vgg11_bn",
        "vgg11",
        "spiking_resnet12",
        pytest.param("spiking_resnet50", marks=pytest.mark.slow),
        "sew_resnet12_ADD",
        "sew_resnet12_AND",
        "sew_resnet12_IAND",
        *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE),
        pytest.param("sew_resnet50_ADD", marks=pytest.mark.slow),
        "CIFAR10DVSNet",
    ],
)
def test_same_groups_as_torch_pruning(name):
    net, x = zoo.build(name)
    found = couple(net, (x,))
    mine = {
        (frozenset(g.producers), frozenset(g.norms), frozenset(g.consumers)) for g in found.groups
    }
    theirs = oracle(without_neurons(net), x[0])
    whole = {group for group in theirs if not group[0] & set(found.frozen)}
    assert mine == whole
    assert mine
