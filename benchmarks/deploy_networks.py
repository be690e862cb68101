"""Networks of the deploy benchmark: pruned at random, and firing at a given rate."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.model import sew_resnet
from torch import Tensor, nn

import sj_prune
from sj_prune import models

_NORMS = nn.modules.batchnorm._BatchNorm
_LAYERS = (nn.Conv2d, nn.Linear)


def _sew() -> nn.Module:
    net = sew_resnet.sew_resnet18(num_classes=10, cnf="ADD", spiking_neuron=neuron.LIFNode)
    functional.set_step_mode(net, "m")
    return net


#: name -> network in multi-step mode, and the height and width of its images
NETWORKS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "VGG16": lambda: (models.VGG16SCA(), 32),
    "VGG16 average": lambda: (models.VGG16(), 32),
    "ResNet19": lambda: (models.ResNet19(), 32),
    "SEW-ResNet18": lambda: (_sew(), 128),
    "SixConvTwoFC": lambda: (models.SixConvTwoFC(size=32), 32),
    "VGGSNN": lambda: (models.VGGSNN(in_channels=3, size=48), 48),
}


def prune(net: nn.Module, sparsity: float, kind: str) -> None:
    """Set weights to 0: at random in each layer, or the smallest of all layers.

    Args:
        net: with random weights.
        sparsity: fraction of all weights.
        kind: "uniform" or "global". A layer keeps the largest 0.5 % at least: training would not
            cut the network in two, as magnitudes of random weights do.
    """
    weights = [m.weight for m in net.modules() if isinstance(m, _LAYERS)]
    least = torch.cat([w.detach().abs().flatten() for w in weights]).sort().values
    bound = least[min(int(sparsity * len(least)), len(least) - 1)]
    for weight in weights:
        if kind == "uniform":
            kept = torch.rand_like(weight) >= sparsity
        else:
            kept = weight.abs() >= min(bound, weight.detach().abs().flatten().quantile(0.995))
        weight.data.mul_(kept)


def set_rate(net: nn.Module, x: Tensor, rate: float) -> list[float]:
    """Let every neuron layer behind a norm fire at `rate` on `x`; return all rates."""
    norms: list[nn.Module] = []
    rates: list[float] = []

    def norm(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0] if args[0].ndim == 2 else args[0].flatten(0, 1)
        flat = x.transpose(0, 1).flatten(1)
        module.running_mean.copy_(flat.mean(1))
        module.running_var.copy_(flat.var(1) + 1e-3)
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
        norms.append(module)

    def node(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        low, high = -8.0, 8.0
        twin = copy.deepcopy(module)
        for _ in range(14):
            middle = (low + high) / 2
            functional.reset_net(twin)
            fires = float(twin.multi_step_forward(args[0] + middle).mean())
            low, high = (low, middle) if fires > rate else (middle, high)
        if norms:
            norms[-1].bias.data += middle
        rates.append(fires)
        return (args[0] + (middle if norms else 0.0),)

    net.eval()
    hooks = [
        m.register_forward_pre_hook(norm if isinstance(m, _NORMS) else node)
        for m in net.modules()
        if isinstance(m, (_NORMS, neuron.BaseNode))
    ]
    with torch.no_grad():
        functional.reset_net(net)
        net(x)
        functional.reset_net(net)
    for hook in hooks:
        hook.remove()
    return rates


def folded(net: nn.Module) -> nn.Module:
    """Return a copy with its norms in the weights of the layers before them."""
    net = copy.deepcopy(net)
    last: nn.Module | None = None
    for name, module in list(net.named_modules()):
        if isinstance(module, _LAYERS):
            last = module
        elif isinstance(module, _NORMS):
            assert last is not None
            scale = (module.weight / (module.running_var + module.eps).sqrt()).detach()
            bias = module.bias.detach() - module.running_mean * scale
            last.weight.data *= scale.view(-1, *[1] * (last.weight.ndim - 1))
            if last.bias is not None:
                bias = bias + last.bias.data * scale
            last.bias = nn.Parameter(bias)
            parent, _, key = name.rpartition(".")
            setattr(net.get_submodule(parent), key, nn.Identity())
    if hasattr(functional, "invalidate_reset_cache"):
        functional.invalidate_reset_cache(net)
    return net


class Unrolled(nn.Module):
    """An IF or LIF layer in plain operations, one after the other, for what reads a graph."""

    def __init__(self, node: neuron.BaseNode) -> None:
        super().__init__()
        self.tau, self.decay_input = getattr(node, "tau", 1.0), getattr(node, "decay_input", False)
        self.leaks = hasattr(node, "tau")
        self.threshold, self.reset = node.v_threshold, node.v_reset

    def forward(self, x_seq: Tensor) -> Tensor:
        rest = self.reset or 0.0
        v, spikes = torch.full_like(x_seq[0], rest), []
        for x in x_seq.unbind(0):
            if not self.leaks:
                v = v + x
            elif self.decay_input:
                v = v + (x - (v - rest)) / self.tau
            else:
                v = v - (v - rest) / self.tau + x
            s = (v >= self.threshold).to(x)
            v = v - s * self.threshold if self.reset is None else s * rest + (1.0 - s) * v
            spikes.append(s)
        return torch.stack(spikes)


def unrolled(net: nn.Module) -> nn.Module:
    """Return a copy with neurons in plain operations over all steps."""
    net = copy.deepcopy(net)
    for name, module in list(net.named_modules()):
        if isinstance(module, neuron.BaseNode):
            parent, _, key = name.rpartition(".")
            setattr(net.get_submodule(parent), key, Unrolled(module))
    return net


def fuse(net: nn.Module) -> nn.Module:
    """Return a copy with sj_prune's neurons, recording off."""
    net = sj_prune.to_recording(copy.deepcopy(net))
    for module in net.modules():
        if hasattr(module, "recording"):
            module.recording = False
    return net
