"""Networks awake, random masks, and what equality of a masked and a smaller network means."""

import copy
import importlib.metadata

import torch
from spikingjelly.activation_based import base, functional, neuron
from torch import nn

from sj_prune.compaction.slices import silence
from sj_prune.network.coupling import couple

T, N = 2, 2
#: in eval mode 0.0.0.0.14 runs TorchScript, which cuts the graph
DIFFERENTIABLE_EVAL = hasattr(functional, "invalidate_reset_cache")


def is_neuron(module):
    return isinstance(module, neuron.BaseNode)


def fill(tensor, low, high, generator):
    if tensor is not None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)


def unit_output(module, _, out):
    """Scale a layer so that its output has a standard deviation of 2 (a forward hook)."""
    scale = out.std() / 2
    if scale == 0:
        return None
    module.weight.data /= scale
    if module.bias is not None:
        module.bias.data /= scale
    return out / scale


def awake(net, x, seed=0):
    """Give a network random norms and filters of unit output, so that every neuron fires."""
    for attempt in range(8):  # attention and ReLU can put a layer to sleep all the same
        _shake(net, x, seed + 1000 * attempt)
        found = rates(net, x)
        if min(found.values(), default=1) > 0.01 and depends_on_input(net, x):
            break
    return net


def _shake(net, x, seed):
    generator = torch.Generator().manual_seed(seed)
    handles = []
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
                fill(module.weight, 0.7, 1.5, generator)
                fill(module.bias, 0.0, 0.8, generator)
                module.momentum = 0.5
            elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
                fill(module.bias, 0.0, 0.2, generator)
                if seed >= 1000:
                    fill(module.weight, -1.0, 1.0, generator)
                handles.append(module.register_forward_hook(unit_output))
        net.train()
        for _ in range(4):
            functional.reset_net(net)
            net(*as_tuple(x))
        for handle in handles:
            handle.remove()
    functional.reset_net(net.eval())


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def rates(net, x):
    """Return the firing rate of every neuron layer that runs."""
    found, handles = {}, []
    for name, module in net.named_modules():
        if is_neuron(module):
            handles.append(
                module.register_forward_hook(
                    lambda _m, _a, out, name=name: found.update({name: float(out.mean())})
                )
            )
    functional.reset_net(net)
    with torch.no_grad():
        net(*as_tuple(x))
    functional.reset_net(net)
    for handle in handles:
        handle.remove()
    return found


def assert_awake(net, x):
    """Every neuron layer fires and the output depends on the input: no wrong answer can pass."""
    found = rates(net, x)
    assert found
    assert {k: v for k, v in found.items() if v <= 0.01} == {}
    assert depends_on_input(net, x)


def depends_on_input(net, x):
    """Tell whether one of a few other inputs has another output; always the same few."""
    generator = torch.Generator().manual_seed(0)

    def output(inputs):
        functional.reset_net(net)
        with torch.no_grad():
            return first(net(*inputs))

    own = output(as_tuple(x))
    others = [
        tuple(
            torch.randn(a.shape, generator=generator) * 2 if a.is_floating_point() else a
            for a in as_tuple(x)
        )
        for _ in range(4)
    ]
    found = any(not torch.equal(own, output(other)) for other in others)
    functional.reset_net(net)
    return found


def first(out):
    return out if isinstance(out, torch.Tensor) else first(out[0])


def mask_at_random(net, x, seed, density, coupling=None):
    """Silence units of every group, each kept with probability `density`; return how many."""
    generator = torch.Generator().manual_seed(seed)
    coupling = coupling or couple(net, as_tuple(x))
    number = 0
    for group in coupling.groups:
        gone = torch.rand(group.units, generator=generator) >= density
        gone[torch.randint(group.units, (), generator=generator)] = False
        silence(net, group, gone)
        number += int(gone.sum())
    return number


def doubles(net, training):
    twin = copy.deepcopy(net).double().train(training)
    for module in twin.modules():
        if type(module).__name__.startswith("Dropout"):
            module.p = 0.0
    functional.reset_net(twin)
    return twin


def run(net, x, training):
    """Return the outputs and input gradients of a float64 copy."""
    twin = doubles(net, training)
    inputs = tuple(a.double().requires_grad_() if a.is_floating_point() else a for a in as_tuple(x))
    torch.manual_seed(0)
    out = twin(*inputs)
    outputs = [o for o in (out if isinstance(out, (tuple, list)) else [out])]
    leaves = [a for a in inputs if a.requires_grad]
    if not training and not DIFFERENTIABLE_EVAL:
        return outputs, []
    generator = torch.Generator().manual_seed(1)
    loss = sum((o * torch.randn(o.shape, generator=generator).double()).sum() for o in outputs)
    return outputs, list(torch.autograd.grad(loss, leaves))


def assert_equal(masked, small, x, alive=True):
    for training in (True, False):
        expected, gradients = run(masked, x, training)
        actual, small_gradients = run(small, x, training)
        for name, a, b in zip(
            ("output", "gradient"), (expected, gradients), (actual, small_gradients), strict=True
        ):
            for e, s in zip(a, b, strict=True):
                scale = float(e.detach().abs().max())
                torch.testing.assert_close(
                    s, e, rtol=1e-7, atol=1e-10 * scale, msg=lambda m, n=name: f"{n}: {m}"
                )
        if gradients and alive:
            assert any(bool(g.any()) for g in gradients), "a dead gradient proves nothing"


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def snapshot(net):
    """Return everything of a network that must come back."""
    return {
        "state": {k: v.clone() for k, v in net.state_dict().items()},
        "classes": {k: type(m) for k, m in net.named_modules()},
        "training": {k: m.training for k, m in net.named_modules()},
        "parameters": {k: (id(p), p.requires_grad) for k, p in net.named_parameters()},
        "hooks": {
            k: (len(m._forward_hooks), len(m._forward_pre_hooks)) for k, m in net.named_modules()
        },
        "memories": {
            k: dict(m._memories) for k, m in net.named_modules() if isinstance(m, base.MemoryModule)
        },
        "random": torch.get_rng_state(),
    }


def assert_same_snapshot(a, b):
    for part in ("classes", "training", "parameters", "hooks"):
        assert a[part] == b[part], part
    assert torch.equal(a["random"], b["random"])
    assert a["state"].keys() == b["state"].keys()
    for key, value in a["state"].items():
        assert torch.equal(value, b["state"][key]), key
    for key, memories in a["memories"].items():
        for name, value in memories.items():
            other = b["memories"][key][name]
            assert value is other or value == other, (key, name)


def release():
    return importlib.metadata.version("spikingjelly")
