"""Residual networks: ResNet19 for small images, and the host's SEW-ResNet18 for ImageNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from sj_prune._checks import check_integer
from sj_prune.models.blocks import (
    MakeNeuron,
    SpikingNetwork,
    check_widths,
    conv_norm_neuron,
    criticality_neuron,
    neuron_maker,
    repeated,
)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; their sum drives the second neuron layer.

    Args:
        before: input channels.
        width: output channels.
        stride: of the first convolution and of the shortcut.
        make_neuron: makes one neuron layer.
    """

    def __init__(self, before: int, width: int, stride: int, make_neuron: MakeNeuron) -> None:
        super().__init__()
        self.conv1, self.norm1, self.neuron1 = conv_norm_neuron(before, width, make_neuron, stride)
        self.conv2, self.norm2, self.neuron2 = conv_norm_neuron(width, width, make_neuron)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != width:
            conv = layer.Conv2d(before, width, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(
                OrderedDict([("conv", conv), ("norm", layer.BatchNorm2d(width))])
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return spikes ``[T, N, width, H / stride, W / stride]``."""
        out = self.neuron1(self.norm1(self.conv1(x)))
        return self.neuron2(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet19(SpikingNetwork):
    """ResNet19 for 32x32 and 64x64 images, as in the criticality paper (arXiv 2311.16141).

    A 3x3 convolution that encodes the image, stages of 3, 3 and 2 residual blocks with strides 1, 2
    and 2, global average pooling, one linear layer: 12,558,720 weights for 10 classes, in 17
    convolutions of 3x3, 2 shortcuts and the linear layer. As in the code that the paper says it
    starts from (MPBN, Guo et al., 2023).

    Args:
        num_classes: number of classes.
        spiking_neuron: class of the neurons, made with `kwargs`; by default the paper's,
            ``LIFNode(tau=4/3, decay_input=False, surrogate_function=ATan(), detach_reset=True)``,
            with `kwargs` over these.
        T: how often an image is shown; the paper's 5. None to take sequences only.
        widths: channels of the three stages; the first convolution has those of the first.
        blocks: residual blocks of the three stages.
        in_channels: of the input.
        **kwargs: arguments of the neurons.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        spiking_neuron: Callable[..., nn.Module] | None = None,
        T: int | None = 5,  # noqa: N803
        widths: Sequence[int] = (128, 256, 512),
        blocks: Sequence[int] = (3, 3, 2),
        in_channels: int = 3,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        make = neuron_maker(spiking_neuron, kwargs, neuron.LIFNode, criticality_neuron())
        widths = check_widths(widths, 3)
        check_integer("num_classes", num_classes, 1)
        features: OrderedDict[str, nn.Module] = OrderedDict()
        stem = conv_norm_neuron(in_channels, widths[0], make)
        features["conv1"], features["norm1"], features["neuron1"] = stem
        before = widths[0]
        for i, (width, depth, stride) in enumerate(zip(widths, blocks, (1, 2, 2), strict=True), 1):
            features[f"stage{i}"] = _stage(before, width, depth, stride, make)
            before = width
        features["average"] = layer.AdaptiveAvgPool2d(1)
        features["flatten"] = layer.Flatten()
        super().__init__(
            nn.Sequential(features),
            nn.Sequential(OrderedDict(linear=layer.Linear(before, num_classes))),
            in_channels=in_channels,
            T=T,
            least=4,
        )


def _stage(before: int, width: int, depth: int, stride: int, make: MakeNeuron) -> nn.Sequential:
    check_integer("blocks", depth, 1)
    first = ResidualBlock(before, width, stride, make)
    return nn.Sequential(first, *(ResidualBlock(width, width, 1, make) for _ in range(depth - 1)))


def sew_resnet18(
    num_classes: int = 1000,
    *,
    spiking_neuron: Callable[..., nn.Module] | None = None,
    T: int | None = 4,  # noqa: N803
    connect: str = "ADD",
    **kwargs: Any,  # noqa: ANN401
) -> nn.Module:
    """Return SpikingJelly's own SEW-ResNet18 for ImageNet, in multi-step mode.

    Fang et al., NeurIPS 2021: 11,689,512 parameters for 1000 classes. Of the host's class, so that
    its published weights load. Imports torchvision, as the host's module does.

    Args:
        num_classes: number of classes.
        spiking_neuron: class of the neurons, made with `kwargs`; by default the paper's,
            ``IFNode(surrogate_function=ATan(), detach_reset=True)``, with `kwargs` over these.
        T: how often a static image ``[N, 3, H, W]`` is shown; the paper's 4. None to take sequences
            ``[T, N, 3, H, W]`` only.
        connect: "ADD", "AND" or "IAND".
        **kwargs: arguments of the neurons.

    Raises:
        ValueError: for another `connect`.
    """
    from spikingjelly.activation_based.model import sew_resnet

    if connect not in ("ADD", "AND", "IAND"):
        raise ValueError(f'Expected connect to be "ADD", "AND" or "IAND" but got {connect!r}')
    settings = {"surrogate_function": surrogate.ATan(), "detach_reset": True}
    make = neuron_maker(spiking_neuron, kwargs, neuron.IFNode, settings)
    net = sew_resnet.sew_resnet18(
        # The host passes a neuron's arguments on; ours are bound already.
        cnf=connect,
        spiking_neuron=make,
        num_classes=num_classes,
    )
    functional.set_step_mode(net, "m")
    if T is not None:
        check_integer("T", T, 1)
        net.register_forward_pre_hook(partial(_show, T))
    return net


def _show(steps: int, net: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Repeat static images; a hook of module level, so that the network can be pickled."""
    x = inputs[0]
    single = getattr(net.conv1, "step_mode", "m") == "s"
    return (repeated(x, steps), *inputs[1:]) if x.ndim == 4 and not single else None
