"""Networks on which torch and the engine must agree to the last bit.

Integer weights and inputs, norms by powers of two: every sum is exact in float32, in any order.
"""

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

NORMS = nn.modules.batchnorm._BatchNorm


def make_twin(net, keep=0.3, seed=0):
    """Give `net` integer weights, of which the fraction `keep` is not 0; return it."""
    g = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            weight = torch.randint(-2, 4, module.weight.shape, generator=g).float()
            kept = torch.rand(module.weight.shape, generator=g) < keep
            module.weight.data.copy_(weight * kept)
            if module.bias is not None:
                module.bias.data.copy_(torch.randint(-2, 3, module.bias.shape, generator=g))
        elif isinstance(module, NORMS):
            n, module.eps = module.num_features, 1.0
            module.running_var.fill_(3.0)  # a deviation of 2
            module.running_mean.copy_(torch.randint(-2, 3, (n,), generator=g))
            module.weight.data.copy_(2.0 ** -torch.randint(0, 3, (n,), generator=g).float())
            module.bias.data.copy_(torch.randint(0, 4, (n,), generator=g) * 0.25)
    functional.set_step_mode(net, "m")
    return net.eval()


def integers(*shape, seed=0):
    return torch.randint(-1, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def output_of(net, x):
    functional.reset_net(net)
    with torch.no_grad():
        y = net(x)
    functional.reset_net(net)
    return y


def rates_of(net, x):
    """Return the firing rate of each neuron layer."""
    rates, handles = [], []
    for module in net.modules():
        if isinstance(module, neuron.BaseNode):
            handles.append(
                module.register_forward_hook(lambda m, a, out: rates.append(float(out.mean())))
            )
    output_of(net, x)
    for handle in handles:
        handle.remove()
    return rates


def stack(*modules):
    return nn.Sequential(*modules)


def spiking(channels, seed=0, **kwargs):
    """Return a convolution of an analog input, and its neurons."""
    return stack(layer.Conv2d(2, channels, 3, padding=1, bias=False), neuron.IFNode(**kwargs))
