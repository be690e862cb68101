"""A tiny spiking network, batches, a training loop, and what has to hold after every step."""

import copy

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from sj_prune import PruningWrapper, methods
from sj_prune.neurons import RecordingNode

T, N, CLASSES = 3, 6, 5

SIZES = {"0": 72, "3": 216, "8": 432, "10": 40}  # weights of the layers of `build()`
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.003, centered=True, momentum=0.9),
}


def lif(alpha=2.0):
    return neuron.LIFNode(
        tau=4 / 3, decay_input=False, surrogate_function=surrogate.ATan(alpha), detach_reset=True
    )


def vary_norms(net, weights, biases):
    """Draw the norms' parameters from two ranges: no channels alike, and current to spike."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(*weights)
                module.bias.uniform_(*biases)


def build(seed=0, node=lif, spiking=True):
    """Return two conv blocks and two linear layers: 72 + 216 + 432 + 40 = 760 weights."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),  # 0
        layer.BatchNorm2d(4),
        node() if spiking else nn.ReLU(),
        layer.Conv2d(4, 6, 3, padding=1, bias=False),  # 3
        layer.BatchNorm2d(6),
        node() if spiking else nn.ReLU(),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(54, 8),  # 8
        node() if spiking else nn.ReLU(),
        layer.Linear(8, CLASSES),  # 10
    )
    functional.set_step_mode(net, "m")
    vary_norms(net, (0.5, 1.5), (0.0, 0.6))
    with torch.no_grad():
        # Magnitudes alike in all layers, so that a global ranking empties none.
        for name, scale in (("0", 2.0), ("3", 3.0), ("8", 4.0), ("10", 1.5)):
            net.get_submodule(name).weight.mul_(scale)
        net[8].bias.uniform_(0.4, 1.0)
    return net


def batch(index, *, seed=7, n=N):
    """Return the `index`-th batch: input ``[T, N, 2, 6, 6]`` and labels."""
    generator = torch.Generator().manual_seed(1000 * seed + index)
    x_seq = 2.0 * torch.rand(T, n, 2, 6, 6, generator=generator)
    return x_seq, torch.randint(0, CLASSES, (n,), generator=generator)


def loss_of(model, index, dtype=torch.float32):
    x_seq, y = batch(index)
    functional.reset_net(model)
    return F.cross_entropy(model(x_seq.to(dtype)).mean(0), y)


def train(model, optimizers, steps, *, start=1, after=None, dtype=torch.float32):
    """Run step calls ``start .. start + steps - 1`` of a user's plain loop."""
    optimizers = optimizers if isinstance(optimizers, (list, tuple)) else [optimizers]
    for k in range(start, start + steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, k, dtype).backward()
        for optimizer in optimizers:
            optimizer.step()
        if after is not None:
            after(k)


def magnitude(**kwargs):
    return methods.Magnitude(**{"sparsity": 0.8, "interval": 2, "end": 9, **kwargs})


def criticality(**kwargs):
    return methods.Criticality(
        **{"sparsity": 0.8, "regrow": 0.25, "interval": 2, "end": 9, **kwargs}
    )


def rigl(**kwargs):
    return methods.RigL(**{"sparsity": 0.7, "regrow": 0.4, "interval": 2, "end": 9, **kwargs})


def wrapped(method, optimizer="sgd_momentum", *, seed=0, net=None, **kwargs):
    """Return an attached wrapper and its optimizer."""
    model = PruningWrapper(build() if net is None else net, method, seed=seed, **kwargs)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    return model.attach(optimizer), optimizer


def slots_of(optimizer, weight):
    """Return the optimizer's per-weight tensors of one parameter."""
    state = optimizer.state.get(weight, {})
    return {
        key: value
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.shape == weight.shape
    }


def assert_masked(model, *optimizers):
    """Pruned weights and their slots are exactly zero."""
    for name, mask in model.masks.items():
        weight = model.net.get_submodule(name).weight
        assert not weight[~mask].any(), f"{name}: a pruned weight is not 0"
        for optimizer in optimizers:
            for key, value in slots_of(optimizer, weight).items():
                assert not value[~mask].any(), f"{name}: {key} of a pruned weight is not 0"


def same(a, b):
    """Tell whether two dictionaries of tensors are bit-identical."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def snapshot(net):
    """Return copies of all parameters and buffers."""
    return {key: value.detach().clone() for key, value in net.state_dict().items()}


def frozen(optimizer):
    """Return a deep copy of an optimizer's state and settings, to compare with `same_state`."""
    return copy.deepcopy(optimizer.state_dict())


def resumed(make):
    """Return a run of seven steps of what `make` returns, and one resumed after three."""
    model, optimizer = wrapped(make())
    train(model, optimizer, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 4, start=4)
    other, again = wrapped(make(), seed=5, net=build(3))
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    train(other, again, 4, start=4)
    return model, other


def same_state(a, b):
    """Compare nested states bitwise."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same_state, a, b))
    return type(a) is type(b) and a == b


def is_stock(net):
    """Tell whether no node records and no parameter carries a hook."""
    nodes = [m for m in net.modules() if isinstance(m, RecordingNode)]
    hooks = [p for p in net.parameters() if p._backward_hooks]
    return not nodes and not hooks
