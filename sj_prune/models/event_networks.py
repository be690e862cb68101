"""Networks for event frames: VGGSNN of TET, and SCA's network for DVS-CIFAR10."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

from sj_prune._checks import check_integer
from sj_prune.models.blocks import (
    MakeNeuron,
    SpikingNetwork,
    average_pool,
    check_widths,
    convolutions,
    max_pool,
    neuron_maker,
    pooled,
    sca_neuron,
)

Neuron = Callable[..., nn.Module] | None
POOLS = {"average": average_pool, "max": max_pool}


class VGGSNN(SpikingNetwork):
    """VGGSNN for event frames of 48x48, as in TET (Deng et al., ICLR 2022).

    64C3-128C3-AP2-256C3-256C3-AP2-512C3-512C3-AP2-512C3-512C3-AP2-FC, batch norm behind every
    convolution: 9.27 million parameters for 10 classes.

    Args:
        num_classes: number of classes.
        spiking_neuron: class of the neurons, made with `kwargs`; by default the paper's,
            ``LIFNode(tau=2, decay_input=False, surrogate_function=PiecewiseQuadratic(1),
            detach_reset=False)``, with `kwargs` over these. That surrogate is exactly 0 at rest:
            take ATan or Sigmoid where sleeping neurons shall be found again.
        T: how often a static image is shown; None, the default, to take sequences only.
        widths: output channels of the 8 convolutions.
        size: height and width of the frames.
        in_channels: of the input; 2 polarities.
        **kwargs: arguments of the neurons.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        spiking_neuron: Neuron = None,
        T: int | None = None,  # noqa: N803
        widths: Sequence[int] = (64, 128, 256, 256, 512, 512, 512, 512),
        size: int = 48,
        in_channels: int = 2,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        settings = {
            "tau": 2.0,
            "decay_input": False,
            "surrogate_function": surrogate.PiecewiseQuadratic(1.0),
        }
        make = neuron_maker(spiking_neuron, kwargs, neuron.LIFNode, settings)
        widths, pools = check_widths(widths, 8), (2, 4, 6, 8)
        features, classifier = _pooled_stack(widths, pools, make, num_classes, size, in_channels)
        super().__init__(features, classifier, in_channels=in_channels, T=T, size=size)


class DVSNet(SpikingNetwork):
    """SCA's network for DVS-CIFAR10 (arXiv 2406.01072).

    64C3-AP2-128C3-AP2-128C3-AP2-256C3-AP2-256C3-AP2-10FC, batch norm and IF neurons behind every
    convolution; 1,148,032 weights for 10 classes and frames of 128x128. The mean of spikes is no
    spike: behind average pooling a convolution multiplies. ``pool="max"`` keeps spikes.

    Args:
        num_classes: number of classes.
        spiking_neuron: class of the neurons, made with `kwargs`; by default
            ``IFNode(surrogate_function=Sigmoid(), detach_reset=True)``, with `kwargs` over these.
        T: how often a static image is shown; None, the default, to take sequences only.
        widths: output channels of the 5 convolutions.
        size: height and width of the frames.
        in_channels: of the input; 2 polarities.
        pool: "average", as published, or "max".
        **kwargs: arguments of the neurons.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        spiking_neuron: Neuron = None,
        T: int | None = None,  # noqa: N803
        widths: Sequence[int] = (64, 128, 128, 256, 256),
        size: int = 128,
        in_channels: int = 2,
        pool: str = "average",
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        make = neuron_maker(spiking_neuron, kwargs, neuron.IFNode, sca_neuron())
        widths, pools = check_widths(widths, 5), (1, 2, 3, 4, 5)
        if pool not in POOLS:
            raise ValueError(f"Expected pool to be one of {tuple(POOLS)} but got {pool!r}")
        features, classifier = _pooled_stack(
            widths, pools, make, num_classes, size, in_channels, POOLS[pool]
        )
        super().__init__(features, classifier, in_channels=in_channels, T=T, size=size)


def _pooled_stack(
    widths: Sequence[int],
    pools: Sequence[int],
    make_neuron: MakeNeuron,
    num_classes: int,
    size: int,
    in_channels: int,
    make_pool: Callable[[], nn.Module] = average_pool,
) -> tuple[nn.Sequential, nn.Sequential]:
    """Return convolutions with pooling, and one linear layer over what is left."""
    check_integer("num_classes", num_classes, 1)
    left = pooled(size, len(pools))
    features = convolutions(widths, pools, make_pool, make_neuron, in_channels)
    features["flatten"] = layer.Flatten()
    linear = layer.Linear(widths[-1] * left * left, num_classes)
    return nn.Sequential(features), nn.Sequential(OrderedDict(linear=linear))
