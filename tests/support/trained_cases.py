"""Networks that look trained, batches, and everything that `prune` measures computed by hand."""

import copy
import math

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import base, functional, layer, neuron, surrogate
from torch import nn

from sj_prune import methods

T, N, CLASSES = 3, 6, 5

WEIGHTS = {
    "Magnitude": lambda **k: methods.Magnitude(**{"sparsity": 0.8, **k}),
    "Random": lambda **k: methods.Random(**{"sparsity": 0.8, **k}),
    "Criticality": lambda **k: methods.Criticality(**{"sparsity": 0.8, "regrow": 0.2, **k}),
    "Criticality-mean": lambda **k: methods.Criticality(
        **{"sparsity": 0.8, "regrow": 0.2, "aggregate": "mean", **k}
    ),
    "LAMP": lambda **k: methods.LAMP(**{"sparsity": 0.8, **k}),
    "CQP": lambda **k: methods.CQP(**{"sparsity": 0.8, **k}),
    "ADMM": lambda **k: methods.ADMM(**{"sparsity": 0.8, "activity": 0.1, **k}),
    "RCMO": lambda **k: methods.RCMO(**{"sparsity": 0.8, **k}),
    "GraNet": lambda **k: methods.GraNet(**{"sparsity": 0.8, "interval": 1, **k}),
}
CHANNELS = {
    "SCA": lambda **k: methods.SCA(**{"sparsity": 0.4, "regrow": 0.2, **k}),
    "SCA-paper": lambda **k: methods.SCA(**{"sparsity": 0.4, "score": "paper", **k}),
    "SCA-charge": lambda **k: methods.SCA(**{"sparsity": 0.4, "score": "abs_charge", **k}),
    "SCA-criticality": lambda **k: methods.SCA(**{"sparsity": 0.4, "score": "criticality", **k}),
    "SCA-update": lambda **k: methods.SCA(**{"sparsity": 0.4, "enforce": "update", **k}),
    "CriticalityChannels": methods.CriticalityChannels,
    "CriticalityChannels-gradient": lambda **k: methods.CriticalityChannels(
        **{"growth": "gradient", "aggregate": "mean", **k}
    ),
    "NetworkSlimming": methods.NetworkSlimming,
    "GReg-1": methods.GReg,
    "GReg-2": lambda **k: methods.GReg(variant=2, **k),
    "APoZ": methods.APoZ,
    "FilterNorm-1": methods.FilterNorm,
    "FilterNorm-2": lambda **k: methods.FilterNorm(p=2, **k),
    "FilterNorm-regrow": lambda **k: methods.FilterNorm(**{"regrow": 0.2, **k}),
    "FilterNorm-random": lambda **k: methods.FilterNorm(regrow=0.2, growth="random", **k),
    "FPGM": methods.FPGM,
    "SVS": methods.SVS,
    "TaylorChannels": methods.TaylorChannels,
    "TaylorChannels-score": lambda **k: methods.TaylorChannels(regrow=0.2, growth="score", **k),
    "RandomChannels": methods.RandomChannels,
}
METHODS = {**WEIGHTS, **CHANNELS}


def lif(**kwargs):
    return neuron.LIFNode(
        tau=4 / 3, decay_input=False, surrogate_function=surrogate.ATan(2.0), **kwargs
    )


class Residual(nn.Module):
    """Two coupled layers around an addition, an inner one, a hidden linear layer."""

    def __init__(self, widths=(8, 10, 12), node=lif, drop=0.0):
        super().__init__()
        outer, inner, hidden = widths
        self.stem = layer.Conv2d(2, outer, 3, padding=1, bias=False)
        self.norm0, self.node0 = layer.BatchNorm2d(outer), node()
        self.conv1 = layer.Conv2d(outer, inner, 3, padding=1)
        self.norm1, self.node1 = layer.BatchNorm2d(inner), node()
        self.conv2 = layer.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.norm2, self.node2 = layer.BatchNorm2d(outer), node()
        self.pool, self.flat = layer.MaxPool2d(2), layer.Flatten()
        self.fc1, self.node3 = layer.Linear(outer * 9, hidden), node()
        self.drop = layer.Dropout(drop)
        self.fc2 = layer.Linear(hidden, CLASSES)
        functional.set_step_mode(self, "m")

    def forward(self, x_seq):
        out = self.node0(self.norm0(self.stem(x_seq)))
        inner = self.node1(self.norm1(self.conv1(out)))
        out = self.node2(self.norm2(self.conv2(inner))) + out
        return self.fc2(self.drop(self.node3(self.fc1(self.flat(self.pool(out))))))


def batches(number, n=N, dtype=torch.float32, seed=0):
    """Return batches ``x_seq [T, N, 2, 6, 6]`` and labels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            (2.0 * torch.rand(T, n, 2, 6, 6, generator=generator)).to(dtype),
            torch.randint(0, CLASSES, (n,), generator=generator),
        )
        for _ in range(number)
    ]


def trained_like(net=None, seed=0, dtype=torch.float32, **kwargs):
    """Return a network in eval mode with uneven norms and running statistics; all neurons fire."""
    torch.manual_seed(seed)
    net = (Residual(**kwargs) if net is None else net).to(dtype)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(0.1, 0.8)
            elif isinstance(module, nn.Linear):
                module.weight.mul_(3.0)
                module.bias.uniform_(0.1, 0.9)
        net.train()
        for x_seq, _ in batches(20, dtype=dtype, seed=99):
            functional.reset_net(net)
            net(x_seq)
    functional.reset_net(net)
    return net.eval()


def loss_of(output, target):
    return F.cross_entropy(output.mean(0), target)


# ---- by hand -------------------------------------------------------------------------------------


def differentiable_copy(net):
    """Return a stock copy in eval mode whose neurons let gradients through on every release."""
    functional.reset_net(net)
    twin = copy.deepcopy(net).eval()
    for module in twin.modules():
        if isinstance(module, neuron.BaseNode):
            module.train()
    return twin


def gradients_by_hand(net, found, loss=loss_of):
    """Return one list of gradients per batch, as autograd gives them for a stock copy."""
    twin = differentiable_copy(net)
    result = []
    for x_seq, y in found:
        functional.reset_net(twin)
        grads = torch.autograd.grad(loss(twin(x_seq), y), list(twin.parameters()))
        result.append(dict(zip(dict(twin.named_parameters()), grads, strict=True)))
    return result


def lif_by_hand(x_seq, tau=4 / 3):
    """Return H, V, S of a LIF layer with hard reset to 0, no input decay and threshold 1."""
    v = torch.zeros_like(x_seq[0])
    kept = {"h": [], "v": [], "s": []}
    for x in x_seq:
        h = v - v / tau + x
        s = (h >= 1.0).to(h)
        v = (1.0 - s) * h
        for key, value in zip("hvs", (h, v, s), strict=True):
            kept[key].append(value)
    return (torch.stack(kept[key]) for key in "hvs")


def statistics_by_hand(net, found):
    """Return node name -> statistic -> ``[C]`` over all batches, of what a stock copy receives."""
    twin = copy.deepcopy(net).eval()
    received, handles = {}, []
    for name, module in twin.named_modules():
        if isinstance(module, neuron.BaseNode):
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, inputs, name=name: received.setdefault(name, []).append(inputs[0])
                )
            )
    with torch.no_grad():
        for x_seq, _ in found:
            functional.reset_net(twin)
            twin(x_seq)
    result = {}
    for name, inputs in received.items():
        x_seq = torch.cat(inputs, 1).double().flatten(3) if inputs[0].ndim > 3 else None
        x_seq = torch.cat(inputs, 1).double()[..., None] if x_seq is None else x_seq
        h, v, s = lif_by_hand(x_seq)
        derivative = (1.0 / (1.0 + (math.pi * (h - 1.0)) ** 2)).mean(0)  # ATan(2): [N, C, L]
        result[name] = {
            "firing_rate": s.mean((0, 1, 3)),
            "abs_potential": v.abs().mean((0, 1, 3)),
            "abs_charge": h.abs().mean((0, 1, 3)),
            "criticality_mean": derivative.mean((0, 2)),
            "criticality_max": derivative.amax(2).mean(0),
        }
    return result


def multiplications(net, x):
    """Return multiply-accumulates per sample of all layers of a network, by their shapes."""
    total, handles = [0], []

    def count(module, inputs, output):
        weight = module.weight
        total[0] += output.numel() // weight.shape[0] * weight.numel()

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(count))
    evaluate(net, x)
    for handle in handles:
        handle.remove()
    return total[0] / x.shape[1]


def additions(net, x):
    """Return SynOps per sample: nonzero weights that meet a spike, one layer after another."""
    total, handles = [0.0], []

    def count(module, inputs, output):
        (spikes,) = inputs
        if not bool(((spikes == 0) | (spikes == 1)).all()):
            return
        nonzero = (module.weight != 0).double()
        if isinstance(module, nn.Linear):
            total[0] += float(F.linear(spikes.double(), nonzero).sum())
        else:
            flat = spikes.double().flatten(0, 1)
            total[0] += float(
                F.conv2d(
                    flat, nonzero, None, module.stride, module.padding, groups=module.groups
                ).sum()
            )

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(count))
    evaluate(net, x)
    for handle in handles:
        handle.remove()
    return total[0] / x.shape[1]


def evaluate(net, x):
    training = {m: m.training for m in net.modules()}
    functional.reset_net(net.eval())
    with torch.no_grad():
        out = net(x)
    functional.reset_net(net)
    for module, flag in training.items():
        module.training = flag
    return out


def parameters(net):
    return sum(p.numel() for p in net.parameters())


# ---- as it was -----------------------------------------------------------------------------------


def snapshot(net):
    """Return all that must be as before, to compare with `assert_untouched`."""
    memories = {}
    for name, module in net.named_modules():
        if isinstance(module, base.MemoryModule):
            for key, value in module._memories.items():
                memories[name, key] = value.clone() if isinstance(value, torch.Tensor) else value
    return {
        "values": {k: v.detach().clone() for k, v in net.state_dict().items()},
        "tensors": {k: id(v) for k, v in net.state_dict(keep_vars=True).items()},
        "grads": {
            k: None if p.grad is None else (id(p.grad), p.grad.clone())
            for k, p in net.named_parameters()
        },
        "requires_grad": {k: p.requires_grad for k, p in net.named_parameters()},
        "classes": {k: type(m) for k, m in net.named_modules()},
        "training": {k: m.training for k, m in net.named_modules()},
        "momentum": {k: getattr(m, "momentum", None) for k, m in net.named_modules()},
        "memories": memories,
        "hooks": sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in net.modules()
        ),
        "leaf hooks": [k for k, p in net.named_parameters() if p._backward_hooks],
        "attributes": {k: sorted(vars(m)) for k, m in net.named_modules()},
    }


def assert_untouched(net, before, but=()):
    after = snapshot(net)
    for part in before.keys() - set(but):
        assert_same(after[part], before[part], part)


def assert_same(a, b, where):
    if isinstance(b, torch.Tensor):
        assert isinstance(a, torch.Tensor), where
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(b, dict):
        assert a.keys() == b.keys(), where
        for key, value in b.items():
            assert_same(a[key], value, (where, key))
    elif isinstance(b, tuple):
        assert len(a) == len(b), where
        for x, y in zip(a, b, strict=True):
            assert_same(x, y, where)
    else:
        assert a == b, where
