"""Plain convolutional networks for images: VGG16 in two versions and SixConvTwoFC."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from spikingjelly.activation_based import layer, neuron
from torch import nn

from sj_prune._checks import check_integer
from sj_prune.models.blocks import (
    FeatureNorm,
    MakeNeuron,
    SpikingNetwork,
    average_pool,
    check_widths,
    convolutions,
    criticality_neuron,
    max_pool,
    neuron_maker,
    pooled,
    sca_neuron,
)

VGG16_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG16_POOLS = (2, 4, 7, 10, 13)

Neuron = Callable[..., nn.Module] | None


class VGG16(SpikingNetwork):
    """VGG16 for 32x32 and 64x64 images, as in the criticality paper (arXiv 2311.16141).

    Thirteen 3x3 convolutions, each with batch norm and LIF neurons, the first of which encodes the
    image; average pooling, global average pooling, one linear layer. 14,715,584 weights in
    convolutions and linear layer for 10 classes. Widths and pooling as in the code that the paper
    says it starts from (MPBN, Guo et al., 2023), less the biases before norms.

    Args:
        num_classes: number of classes.
        spiking_neuron: class of the neurons, made with `kwargs`; by default the paper's,
            ``LIFNode(tau=4/3, decay_input=False, surrogate_function=ATan(), detach_reset=True)``,
            with `kwargs` over these.
        T: how often an image is shown; the paper's 5. None to take sequences only.
        widths: output channels of the 13 convolutions.
        in_channels: of the input.
        **kwargs: arguments of the neurons.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        spiking_neuron: Neuron = None,
        T: int | None = 5,  # noqa: N803
        widths: Sequence[int] = VGG16_WIDTHS,
        in_channels: int = 3,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        make = neuron_maker(spiking_neuron, kwargs, neuron.LIFNode, criticality_neuron())
        widths = check_widths(widths, len(VGG16_WIDTHS))
        check_integer("num_classes", num_classes, 1)
        features = convolutions(widths, VGG16_POOLS, average_pool, make, in_channels)
        features["average"] = layer.AdaptiveAvgPool2d(1)
        features["flatten"] = layer.Flatten()
        classifier = nn.Sequential(OrderedDict(linear=layer.Linear(widths[-1], num_classes)))
        super().__init__(
            nn.Sequential(features), classifier, in_channels=in_channels, T=T, least=32
        )


class VGG16SCA(SpikingNetwork):
    """VGG16 as in SCA (Li et al., ICML 2024, arXiv 2406.01072): IF neurons, T=4.

    Thirteen 3x3 convolutions and two hidden linear layers of 512, each with batch norm and IF
    neurons with the Sigmoid surrogate; max pooling. 15,239,872 weights in convolutions and linear
    layers for 10 classes. As in the released code, but that code averages over time before the last
    linear layer and this one leaves it to the loss: the same mean, for that layer is linear.

    Args:
        num_classes: number of classes.
        spiking_neuron: class of the neurons, made with `kwargs`; by default the paper's,
            ``IFNode(surrogate_function=Sigmoid(), detach_reset=True)``, with `kwargs` over these.
        T: how often an image is shown; the paper's 4. None to take sequences only.
        widths: output channels of the 13 convolutions.
        hidden: width of the two hidden linear layers.
        size: height and width of the images.
        in_channels: of the input.
        **kwargs: arguments of the neurons.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        spiking_neuron: Neuron = None,
        T: int | None = 4,  # noqa: N803
        widths: Sequence[int] = VGG16_WIDTHS,
        hidden: int = 512,
        size: int = 32,
        in_channels: int = 3,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        make = neuron_maker(spiking_neuron, kwargs, neuron.IFNode, sca_neuron())
        widths = check_widths(widths, len(VGG16_WIDTHS))
        check_integer("num_classes", num_classes, 1)
        check_integer("hidden", hidden, 1)
        left = pooled(size, len(VGG16_POOLS))
        features = convolutions(widths, VGG16_POOLS, max_pool, make, in_channels)
        features["flatten"] = layer.Flatten()
        classifier: OrderedDict[str, nn.Module] = OrderedDict()
        before = widths[-1] * left * left
        for i in (1, 2):
            classifier[f"linear{i}"] = layer.Linear(before, hidden, bias=False)
            classifier[f"norm{i}"] = FeatureNorm(hidden)
            classifier[f"neuron{i}"] = make()
            before = hidden
        classifier["linear3"] = layer.Linear(hidden, num_classes)
        super().__init__(
            nn.Sequential(features),
            nn.Sequential(classifier),
            in_channels=in_channels,
            T=T,
            size=size,
        )


class SixConvTwoFC(SpikingNetwork):
    """Six convolutions and two linear layers, for CIFAR-10: the network of Grad R and after it.

    Three 3x3 convolutions, max pooling, three more, max pooling; a hidden linear layer and one with
    `voters` spiking neurons a class, whose firing rate is the output. As published (Chen et al.,
    IJCAI 2021; STDS, 2022; the 6Conv2FC of arXiv 2311.16141): all convolutions 256 wide, 36,715,264
    weights. The smaller common version is ``widths=(64, 64, 128, 128, 256, 256)``.

    Args:
        num_classes: number of classes.
        spiking_neuron: class of the neurons, made with `kwargs`; by default
            ``LIFNode(tau=4/3, decay_input=False, surrogate_function=ATan(), detach_reset=True)``
            as in the criticality paper, with `kwargs` over these.
        T: how often an image is shown; 5 as in the criticality paper (Grad R: 8). None to take
            sequences only.
        widths: output channels of the 6 convolutions.
        hidden: width of the hidden linear layer.
        voters: output neurons a class.
        dropout: probability before the linear layers; one draw for all time steps.
        size: height and width of the images.
        in_channels: of the input.
        **kwargs: arguments of the neurons.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        spiking_neuron: Neuron = None,
        T: int | None = 5,  # noqa: N803
        widths: Sequence[int] = (256,) * 6,
        hidden: int = 2048,
        voters: int = 10,
        dropout: float = 0.5,
        size: int = 32,
        in_channels: int = 3,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        make = neuron_maker(spiking_neuron, kwargs, neuron.LIFNode, criticality_neuron())
        widths = check_widths(widths, 6)
        for name, value in (("num_classes", num_classes), ("hidden", hidden), ("voters", voters)):
            check_integer(name, value, 1)
        left = pooled(size, 2)
        features = convolutions(widths, (3, 6), max_pool, make, in_channels)
        features["flatten"] = layer.Flatten()
        features["dropout"] = layer.Dropout(dropout)
        inputs = widths[-1] * left * left
        super().__init__(
            nn.Sequential(features),
            _voting_classifier(inputs, hidden, num_classes, voters, make),
            in_channels=in_channels,
            T=T,
            size=size,
        )


def _voting_classifier(
    inputs: int, hidden: int, num_classes: int, voters: int, make_neuron: MakeNeuron
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (before, after) in enumerate([(inputs, hidden), (hidden, num_classes * voters)], 1):
        linear = layer.Linear(before, after, bias=False)
        # No norm follows, and with torch's own draw these neurons would hardly ever fire.
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers[f"linear{i}"], layers[f"neuron{i}"] = linear, make_neuron()
    layers["vote"] = layer.VotingLayer(voters)
    return nn.Sequential(layers)
