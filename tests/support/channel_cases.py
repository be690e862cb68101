"""Channel methods as rows of a table, and layers made by hand to score."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from sj_prune import methods
from sj_prune.masks import Global, Uniform
from sj_prune.methods import LayerActivity, LayerView
from sj_prune.neurons.statistics import STATISTICS
from tests.support.pruning_cases import batch, vary_norms, wrapped
from tests.support.views import sums


@dataclass(frozen=True)
class Row:
    """One channel method.

    Attributes:
        make: builds it; keywords change its arguments.
        once: one update at `end`; else several, every `interval` steps.
        constant: the final sparsity at every update.
        reads: statistics that its drop score reads.
        allocation: its default.
        of_all: `regrow` is a fraction of all channels.
        needs_norm: channels without a norm have no score.
        random: scores differ from seed to seed.
        penalizes: it changes gradients.
        emergent: its own score says how many go.
    """

    make: Callable
    once: bool = True
    constant: bool = False
    reads: tuple[str, ...] = ()
    allocation: object = Uniform()
    of_all: bool = False
    needs_norm: bool = False
    random: bool = False
    penalizes: bool = False
    emergent: bool = False


def maker(kind, **settings):
    return lambda **changed: kind(**{"sparsity": 0.5, "end": 8, **settings, **changed})


def sca(**changed):
    return methods.SCA(**{"sparsity": 0.4, "regrow": 0.2, "interval": 2, "end": 8, **changed})


def sca_row(*reads, **settings):
    return Row(
        lambda **changed: sca(**{**settings, **changed}),
        once=False,
        constant=True,
        reads=reads,
        allocation=Global(),
        of_all=True,
        penalizes=True,
    )


def greg(**changed):
    """Raised by 0.1 every step from step 1 on, up to 0.4, removed at step 8."""
    settings = {"every": 1, "delta": 0.1, "ceiling": 0.4, "pick_delta": 0.05, "pick_ceiling": 0.1}
    return methods.GReg(**{"sparsity": 0.5, "end": 8, **settings, **changed})


def dpap(**changed):
    """Patience for one update with the smallest gain."""
    settings = {"sparsity": 0.4, "patience": 0.5, "interval": 2, "end": 8}
    return methods.DPAP(**{**settings, **changed})


GAMMA = {"allocation": Global(), "needs_norm": True, "penalizes": True}

CHANNEL_METHODS = {
    "SCA": sca_row("abs_potential", "firing_rate"),
    "SCA-paper": sca_row("abs_potential", score="paper"),
    "SCA-abs_charge": sca_row("abs_charge", score="abs_charge"),
    "SCA-firing_rate": sca_row("firing_rate", score="firing_rate"),
    "SCA-criticality": sca_row("criticality_max", score="criticality"),
    "SCA-update": sca_row("abs_potential", "firing_rate", enforce="update"),
    "CriticalityChannels": Row(maker(methods.CriticalityChannels), **GAMMA),
    "CriticalityChannels-mean": Row(
        maker(methods.CriticalityChannels, aggregate="mean", batches=2), **GAMMA
    ),
    "NetworkSlimming": Row(maker(methods.NetworkSlimming), **GAMMA),
    "NetworkSlimming-Uniform": Row(
        maker(methods.NetworkSlimming, allocation=Uniform()), **{**GAMMA, "allocation": Uniform()}
    ),
    "GReg-1": Row(greg, penalizes=True),
    "GReg-2": Row(lambda **changed: greg(**{"variant": 2, **changed}), penalizes=True),
    "APoZ": Row(maker(methods.APoZ), reads=("firing_rate",)),
    "FilterNorm-1": Row(maker(methods.FilterNorm)),
    "FilterNorm-2": Row(maker(methods.FilterNorm, p=2)),
    "DPAP": Row(
        dpap,
        once=False,
        constant=True,
        reads=("sj_prune.methods.dpap:trace",),
        allocation=Global(),
        emergent=True,
    ),
    "SVS": Row(maker(methods.SVS), reads=("sj_prune.methods.svs:of_steps",)),
    "SVS-rates": Row(maker(methods.SVS, of="mean"), reads=("sj_prune.methods.svs:of_mean",)),
    "FPGM": Row(maker(methods.FPGM)),
    "FPGM-cubic": Row(maker(methods.FPGM, interval=2), once=False),
    "TaylorChannels": Row(maker(methods.TaylorChannels)),
    "TaylorChannels-cubic": Row(maker(methods.TaylorChannels, interval=2, batches=2), once=False),
    "RandomChannels": Row(maker(methods.RandomChannels), random=True),
    "RandomChannels-cubic": Row(maker(methods.RandomChannels, interval=2), once=False, random=True),
}


# ---- layers by hand ------------------------------------------------------------------------------


FUNCTIONS = tuple(f"sj_prune.methods.{f}" for f in ("svs:of_steps", "svs:of_mean", "dpap:trace"))


class FakeMeans:
    """Means of a neuron layer, as given."""

    def __init__(self, means):
        self.means = means
        self.asked = []

    def mean(self, name):
        self.asked.append(name)
        return self.means[name]


class FakeNode:
    """What a view reads of a recording neuron layer."""

    def __init__(self, means, peak=1.0):
        self.activity, self.peak = FakeMeans(means), peak


def node(channels=6, seed=0, peak=1.0):
    """Return a neuron layer with random means of all statistics, ``[C]``."""
    generator = torch.Generator().manual_seed(seed)
    return FakeNode(
        {
            name: torch.rand(channels, dtype=torch.float64, generator=generator) + 0.1
            for name in (*STATISTICS, *FUNCTIONS)
        },
        peak,
    )


def view(
    *,
    channels=6,
    kernel=(3, 3),
    norm=True,
    nodes=None,
    seed=0,
    step=1,
    bias=False,
    dtype=torch.float64,
    **more,
):
    """Return a layer of ``[channels, 4, *kernel]`` with gradients everywhere."""
    generator = torch.Generator().manual_seed(100 + seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    shape = (channels, 4, *kernel)
    made = None
    if norm:
        made = nn.BatchNorm2d(channels).to(dtype)
        for parameter in made.parameters():
            parameter.data.copy_(noise(channels))
            parameter.grad = noise(channels)
    nodes = [node(channels, seed)] if nodes is None else nodes
    return LayerView(
        name="conv",
        weight=noise(*shape),
        grad=noise(*shape),
        mask=more.pop("mask", torch.ones(channels, dtype=torch.bool)),
        activity=LayerActivity(nodes, more.pop("node_channels", None)) if nodes else None,
        norm=made,
        step=step,
        seed=seed,
        bias=noise(channels) if bias else None,
        bias_grad=noise(channels) if bias else None,
        **more,
    )


def ready(method, seen):
    """Return the view with the method's own state and a last score awake in it."""
    seen.state.update(sums(method, seen))
    seen.state["awake"] = torch.rand(len(seen.weight), dtype=torch.float64)
    return seen


# ---- a network -----------------------------------------------------------------------------------

T, N, CLASSES = 3, 6, 5
UNITS = {"1": 8, "4": 10, "7": 7}
TOTAL = sum(UNITS.values())
CONVS, NORMS, NODES = ("0", "3", "6"), ("1", "4", "7"), ("2", "5", "8")


def lif(v_reset=0.0, function=None):
    return neuron.LIFNode(
        tau=4 / 3,
        decay_input=False,
        v_reset=v_reset,
        surrogate_function=surrogate.ATan(2.0) if function is None else function,
        detach_reset=True,
    )


def channel_net(seed=0, node=lif):
    """Return three conv-norm-neuron blocks, 8 + 10 + 7 channels, and a classifier."""
    torch.manual_seed(seed)
    blocks = []
    for inputs, outputs in ((2, 8), (8, 10), (10, 7)):
        blocks += [
            layer.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            layer.BatchNorm2d(outputs),
            node(),
        ]
    net = nn.Sequential(*blocks, layer.AvgPool2d(2), layer.Flatten(), layer.Linear(63, CLASSES))
    functional.set_step_mode(net, "m")
    vary_norms(net, (0.5, 1.5), (0.2, 0.8))
    return net


def pruner(method, optimizer="sgd_momentum", *, net=None, **kwargs):
    return wrapped(method, optimizer, net=channel_net() if net is None else net, **kwargs)


def units_kept(model):
    """Return which units are kept, over all groups in a fixed order."""
    return torch.cat([model.masks[name] for name in NORMS])


def rates(model, index, *, reset=True):
    """Return the firing rate of every channel by norm, without a trace in the recordings."""
    spikes = {}
    handles = [
        model.net.get_submodule(node).register_forward_hook(
            lambda _, inputs, output, norm=norm: spikes.update({norm: output.detach()})
        )
        for norm, node in zip(NORMS, NODES, strict=True)
    ]
    if reset:
        functional.reset_net(model)
    with torch.no_grad():
        model(batch(index)[0])
    for handle in handles:
        handle.remove()
    return {norm: s.mean((0, 1, 3, 4)) for norm, s in spikes.items()}


def flat(masks):
    return torch.cat([masks[name] for name in NORMS])
