"""Small spiking networks, one of a kind each, their batches and their loss."""

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

T, N, CLASSES, SIZE = 2, 3, 4, 4


def lif(alpha=2.0):
    return neuron.LIFNode(
        tau=4 / 3, decay_input=False, surrogate_function=surrogate.ATan(alpha), detach_reset=True
    )


def block(inputs, outputs, *, norm=True, node=lif, kernel=3, groups=1):
    """Return convolution, norm and neuron; ``[T, N, C, H, W]`` in and out."""
    conv = layer.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not norm, groups=groups)
    norms = [layer.BatchNorm2d(outputs)] if norm else []
    return nn.Sequential(conv, *norms, node())


class Residual(nn.Module):
    """Two blocks that meet in an addition, a third, and two linear layers with a neuron between."""

    def __init__(self, wide=(6, 8, 10)):
        super().__init__()
        a, b, c = wide
        self.stem, self.inner, self.last = block(2, a), block(a, a), block(a, b)
        self.pool, self.flat = layer.AvgPool2d(2), layer.Flatten()
        self.fc1, self.node, self.fc2 = layer.Linear(4 * b, c), lif(), layer.Linear(c, CLASSES)

    def forward(self, x_seq):
        x = self.stem(x_seq)
        x = self.last(x + self.inner(x))
        return self.fc2(self.node(self.fc1(self.flat(self.pool(x)))))


class Joined(nn.Module):
    """Two convolutions whose channels one norm takes side by side."""

    def __init__(self):
        super().__init__()
        self.left = layer.Conv2d(2, 4, 3, padding=1, bias=False)
        self.right = layer.Conv2d(2, 5, 1, bias=False)
        self.norm, self.node, self.last = layer.BatchNorm2d(9), lif(), block(9, 6)
        self.flat, self.fc = layer.Flatten(), layer.Linear(6 * SIZE**2, CLASSES)

    def forward(self, x_seq):
        x = torch.cat((self.left(x_seq), self.right(x_seq)), 2)
        return self.fc(self.flat(self.last(self.node(self.norm(x)))))


def without_norms():
    """Biases in place of norms, three classes of neurons, and a soft reset."""
    return nn.Sequential(
        block(2, 6, norm=False),
        block(6, 8, norm=False, node=lambda: neuron.IFNode(v_reset=None, detach_reset=True)),
        layer.Flatten(),
        layer.Linear(8 * SIZE**2, 10),
        neuron.ParametricLIFNode(init_tau=1.5, surrogate_function=surrogate.Sigmoid(4.0)),
        layer.Linear(10, CLASSES),
    )


def depthwise():
    """A depthwise block between two pointwise ones."""
    return nn.Sequential(
        block(2, 6, kernel=1),
        block(6, 6, groups=6),
        block(6, 8, kernel=1),
        layer.Flatten(),
        layer.Linear(8 * SIZE**2, CLASSES),
    )


NETS = {
    "residual": Residual,
    "plain": without_norms,
    "depthwise": depthwise,
    "joined": Joined,
    "tiny": lambda: Residual((4, 4, 5)),
}


def build(kind, seed=0, dtype=torch.float32):
    """Return one of `NETS` in multi-step mode, with no channels alike and current to spike."""
    torch.manual_seed(seed)
    net = NETS[kind]()
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        for name, module in net.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(0.1, 0.7)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(2.0)
                if module.bias is not None:
                    module.bias.uniform_(*((0.6, 1.2) if name == "fc1" else (0.2, 0.8)))
    return net.to(dtype)


def batch(index):
    """Return the `index`-th batch: input ``[T, N, 2, H, W]`` and labels ``[N]``."""
    generator = torch.Generator().manual_seed(7000 + index)
    x_seq = 2.0 * torch.rand(T, N, 2, SIZE, SIZE, generator=generator)
    return x_seq, torch.randint(0, CLASSES, (N,), generator=generator)


def loss_of(model, index):
    x_seq, y = batch(index)
    functional.reset_net(model)
    return F.cross_entropy(model(x_seq.to(next(model.parameters()).dtype)).mean(0), y)
