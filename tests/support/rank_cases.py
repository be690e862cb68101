"""Networks and loops that run with any number of processes, and see the same data with each."""

import hashlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sj_prune import PruningWrapper, methods
from sj_prune.masks import NM
from tests.support.channel_cases import channel_net
from tests.support.pruning_cases import CLASSES, T, build, lif

GLOBAL = 12  # samples of a step, over all ranks

METHODS = {
    "Criticality": lambda **k: methods.Criticality(
        **{"sparsity": 0.7, "regrow": 0.25, "interval": 2, "end": 6, "batches": 2, **k}
    ),
    "Magnitude": lambda **k: methods.Magnitude(**{"sparsity": 0.7, "interval": 2, "end": 6, **k}),
    "RigL": lambda **k: methods.RigL(
        **{"sparsity": 0.6, "regrow": 0.4, "interval": 2, "end": 6, **k}
    ),
    "SET": lambda **k: methods.SET(**{"sparsity": 0.6, "interval": 2, "end": 6, **k}),
    "GraNet": lambda **k: methods.GraNet(**{"sparsity": 0.6, "interval": 2, "end": 6, **k}),
    "SCA": lambda **k: methods.SCA(
        **{"sparsity": 0.4, "regrow": 0.2, "interval": 2, "end": 6, **k}
    ),
    "TaylorChannels": lambda **k: methods.TaylorChannels(
        **{"sparsity": 0.5, "regrow": 0.25, "interval": 2, "end": 6, **k}
    ),
    "GReg": lambda **k: methods.GReg(
        **{"sparsity": 0.5, "every": 1, "delta": 0.1, "ceiling": 0.4, "end": 6, **k}
    ),
    "STDS": lambda **k: methods.STDS(**{"ceiling": 0.3, "interval": 2, "end": 6, **k}),
    "DeepR": lambda **k: methods.DeepR(
        **{"sparsity": 0.6, "l1": 4.0, "temperature": 0.05, "interval": 2, "end": 6, **k}
    ),
    "DeepR-soft": lambda **k: methods.DeepR(
        **{"soft": True, "l1": 0.3, "temperature": 0.3, "interval": 2, "end": 6, **k}
    ),
    "UPR": lambda **k: methods.UPR(
        **{
            "strength": 1e-3,
            "initial": 0.05,
            "neurons": 0.05,
            "gate_lr": 0.02,
            "interval": 2,
            "end": 6,
            **k,
        }
    ),
    "ADMM": lambda **k: methods.ADMM(**{"sparsity": 0.7, "rho": 0.5, "interval": 2, "end": 6, **k}),
    "RCMO": lambda **k: methods.RCMO(**{"sparsity": 0.7, "lr_y": 10.0, "lr_z": 1e5, "end": 6, **k}),
    "Criticality-NM": lambda **k: methods.Criticality(
        **{"sparsity": 0.5, "regrow": 0.2, "structure": NM(1, 2), "interval": 2, "end": 6, **k}
    ),
    "LAMP": lambda **k: methods.LAMP(**{"sparsity": 0.7, "interval": 2, "end": 6, **k}),
    "CQP": lambda **k: methods.CQP(**{"sparsity": 0.7, "interval": 2, "end": 6, "batches": 2, **k}),
    "NDSNN": lambda **k: methods.NDSNN(
        **{"sparsity": 0.7, "initial": 0.5, "interval": 2, "end": 6, **k}
    ),
    "DPAP": lambda **k: methods.DPAP(
        **{"sparsity": 0.5, "patience": 0.5, "interval": 2, "end": 6, **k}
    ),
    "DPAPSynapses": lambda **k: methods.DPAPSynapses(
        **{"patience": 1.0, "interval": 2, "end": 6, **k}
    ),
    "SVS": lambda **k: methods.SVS(
        **{"sparsity": 0.5, "regrow": 0.25, "interval": 2, "end": 6, **k}
    ),
    "FPGM": lambda **k: methods.FPGM(
        **{"sparsity": 0.5, "regrow": 0.25, "interval": 2, "end": 6, **k}
    ),
    "GradR": lambda **k: methods.GradR(
        **{"sparsity": 0.7, "alpha": 0.05, "interval": 2, "end": 6, **k}
    ),
}
CHANNELS = ("SCA", "TaylorChannels", "GReg", "FPGM", "SVS", "DPAP")


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def bounds():
    """Return which samples of the global batch are this rank's: shares of unequal size."""
    weights = torch.arange(2, world() + 2).double()
    ends = (weights.cumsum(0) / weights.sum() * GLOBAL).round().int().tolist()
    return [0, *ends][rank()], ends[rank()]


def samples(step, dtype=torch.float32, part=None):
    """Return this rank's part of the global batch ``[T, n, 2, 6, 6]``, and its labels."""
    generator = torch.Generator().manual_seed(7000 + step)
    x = 2.0 * torch.rand(T, GLOBAL, 2, 6, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (GLOBAL,), generator=generator)
    start, end = bounds() if part is None else part
    return x[:, start:end].to(dtype), y[start:end]


def loss_of(model, x, y):
    """The mean over ranks of these losses is that of the global batch."""
    functional.reset_net(model)
    return F.cross_entropy(model(x).mean(0), y, reduction="sum") * world() / GLOBAL


def norm_free():
    """Return a network in float64 whose samples do not see each other."""
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1),
        lif(),
        layer.Conv2d(6, 8, 3, padding=1),
        lif(),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(72, 10),
        lif(),
        layer.Linear(10, CLASSES),
    ).double()
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        for index, scale in ((0, 2.0), (2, 4.0), (6, 6.0), (8, 1.5)):
            net[index].weight.mul_(scale)
            net[index].bias.uniform_(0.2, 0.6)
    return net


def network(name):
    return channel_net() if name in CHANNELS else build()


def ready(method, net, *, ddp=None, seed=0, momentum=0.9):
    """Return what a training loop calls, the wrapper, and the optimizer."""
    model = PruningWrapper(net, method, seed=seed)
    called = DistributedDataParallel(model) if (world() > 1 if ddp is None else ddp) else model
    optimizer = torch.optim.SGD(called.parameters(), lr=0.05, momentum=momentum)
    model.attach(optimizer)
    return called, model, optimizer


def train(called, optimizer, steps, *, dtype=torch.float32, after=None):
    for step in steps:
        optimizer.zero_grad()
        loss_of(called, *samples(step, dtype)).backward()
        optimizer.step()
        if after is not None:
            after(step)


def masks_of(model):
    return {name: mask.clone() for name, mask in model.masks.masks.items()}


def own_hash(model):
    """Hash masks, weights, and tensors of the whole network, independently of the library."""
    found = hashlib.sha256()
    for name, mask in sorted(model.masks.masks.items()):
        found.update(name.encode() + mask.numpy().tobytes())
    for name, parameter in sorted(model.net.named_parameters()):
        found.update(name.encode() + parameter.detach().numpy().tobytes())
    for name, value in sorted(model.session.run.network_memory.items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


def message_of(kind, function, *args, **kwargs):
    """Return what an error says."""
    try:
        function(*args, **kwargs)
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__} was raised")
