"""What the networks share: building from a list of widths, and one rule for their input."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from spikingjelly.activation_based import functional, layer, surrogate
from torch import Tensor, nn

from sj_prune._checks import check_integer

MakeNeuron = Callable[[], nn.Module]


def neuron_maker(
    spiking_neuron: Callable[..., nn.Module] | None,
    kwargs: Mapping[str, Any],
    default: Callable[..., nn.Module],
    settings: Mapping[str, Any],
) -> MakeNeuron:
    """Return what makes one neuron layer.

    Args:
        spiking_neuron: the user's class, made with `kwargs` alone; None for the paper's.
        kwargs: the user's arguments; over the paper's `settings` where the class is the paper's.
        default: the paper's class.
        settings: the paper's arguments for it.
    """
    kind = default if spiking_neuron is None else spiking_neuron
    arguments = dict(kwargs) if spiking_neuron is not None else {**settings, **kwargs}
    return lambda: kind(**deepcopy(arguments))  # as the host does: a surrogate for each layer


def check_widths(widths: Sequence[int], number: int) -> tuple[int, ...]:
    """Return `widths` as a tuple.

    Raises:
        ValueError: unless there are `number` of them, each positive.
    """
    if len(widths) != number:
        raise ValueError(
            f"Expected {number} widths, one a convolution stage of this network, but got "
            f"{len(widths)}: {tuple(widths)}"
        )
    for i, width in enumerate(widths):
        check_integer(f"widths[{i}]", width, 1)
    return tuple(widths)


def conv_norm_neuron(
    before: int, width: int, make_neuron: MakeNeuron, stride: int = 1
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return a 3x3 convolution, its norm and its neuron layer.

    The convolution has no bias: the norm would subtract it.
    """
    conv = layer.Conv2d(before, width, kernel_size=3, stride=stride, padding=1, bias=False)
    return conv, layer.BatchNorm2d(width), make_neuron()


def convolutions(
    widths: Sequence[int],
    pool_after: Sequence[int],
    make_pool: Callable[[], nn.Module],
    make_neuron: MakeNeuron,
    in_channels: int,
) -> OrderedDict[str, nn.Module]:
    """Return ``conv1, norm1, neuron1, (pool1,) conv2, ...`` by name.

    Args:
        widths: output channels of each convolution.
        pool_after: numbers (from 1) of the convolutions with pooling behind their neurons.
        make_pool: makes one pooling layer.
        make_neuron: makes one neuron layer.
        in_channels: of the input.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = in_channels
    for i, width in enumerate(widths, start=1):
        trio = conv_norm_neuron(before, width, make_neuron)
        layers[f"conv{i}"], layers[f"norm{i}"], layers[f"neuron{i}"] = trio
        if i in pool_after:
            layers[f"pool{i}"] = make_pool()
        before = width
    return layers


def average_pool() -> nn.Module:
    """Return AP2."""
    return layer.AvgPool2d(2)


def max_pool() -> nn.Module:
    """Return MP2."""
    return layer.MaxPool2d(2)


def pooled(size: int, times: int) -> int:
    """Return what `times` poolings by two leave of `size`.

    Raises:
        ValueError: if nothing is left.
    """
    check_integer("size", size, 1)
    if size >> times == 0:
        raise ValueError(
            f"Expected size to be at least {1 << times}, for {times} poolings by two, but got "
            f"{size}"
        )
    return size >> times


def criticality_neuron() -> dict[str, Any]:
    """Return the neuron of arXiv 2311.16141: ``H = V / 4 + x``, hard reset to 0, ATan(2)."""
    return {
        "tau": 4 / 3,
        "decay_input": False,
        "surrogate_function": surrogate.ATan(),
        "detach_reset": True,
    }


def sca_neuron() -> dict[str, Any]:
    """Return the IF neuron of SCA's released code."""
    return {"surrogate_function": surrogate.Sigmoid(), "detach_reset": True}


class FeatureNorm(layer.BatchNorm1d):
    """Batch norm behind a linear layer, of ``[T, N, F]`` or, in single-step mode, ``[N, F]``.

    SpikingJelly 0.0.0.0.14's own takes ``[T, N, C, L]`` alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed features, in the shape of `x`."""
        return nn.BatchNorm1d.forward(self, x.flatten(0, -2)).view(x.shape)


def repeated(x: Tensor, steps: int) -> Tensor:
    """Return images ``[N, C, H, W]`` as a sequence ``[T, N, C, H, W]``, without a copy."""
    return x.unsqueeze(0).expand(steps, *x.shape)


class SpikingNetwork(nn.Module):
    """Base of the networks here: `features`, then `classifier`, in multi-step mode.

    One rule for the input. Multi-step mode takes a sequence ``[T, N, C, H, W]``; where `T` was
    given it also takes static images ``[N, C, H, W]``, each shown `T` times. Single-step mode takes
    one time step ``[N, C, H, W]``. The output is ``[T, N, classes]``, or ``[N, classes]``.

    Args:
        features: convolutions; its first one tells the step mode.
        classifier: from the features to the classes.
        in_channels: of the input.
        T: how often a static image is shown; None for networks that take sequences.
        size: height and width that the classifier's linear layer fits; None if any does.
        least: smallest height and width, where any does.
    """

    def __init__(
        self,
        features: nn.Sequential,
        classifier: nn.Sequential,
        *,
        in_channels: int,
        T: int | None,  # noqa: N803 (the field's name for it)
        size: int | None = None,
        least: int = 1,
    ) -> None:
        super().__init__()
        if T is not None:
            check_integer("T", T, 1)
        self.T, self.size, self.least, self.in_channels = T, size, least, in_channels
        self.features, self.classifier = features, classifier
        self._initialize()
        functional.set_step_mode(self, "m")

    def _initialize(self) -> None:
        """Draw the convolutions as He et al. (2015) do, by their fan-out."""
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes' outputs of each time step.

        Args:
            x: ``[T, N, C, H, W]``, or ``[N, C, H, W]`` (see the class).

        Returns:
            ``[T, N, classes]``; in single-step mode ``[N, classes]``.

        Raises:
            ValueError: for an input of another shape.
        """
        return self.classifier(self.features(self._as_input(x)))

    def _as_input(self, x: Tensor) -> Tensor:
        single = getattr(self.features[0], "step_mode", "m") == "s"
        self._check_dimensions(x, single)
        if x.shape[-3] != self.in_channels:
            raise ValueError(
                f"Expected {self.in_channels} input channels but got {x.shape[-3]}, in an input of "
                f"shape {tuple(x.shape)}: build the network with in_channels={x.shape[-3]}"
            )
        height, width = x.shape[-2:]
        if self.size is not None and (height, width) != (self.size, self.size):
            raise ValueError(
                f"Expected {self.size}x{self.size} pixels, which the first linear layer fits, but "
                f"got {height}x{width}: build the network with size=, or resize the input"
            )
        if min(height, width) < self.least:
            raise ValueError(
                f"Expected at least {self.least}x{self.least} pixels, which the poolings and "
                f"strides halve to one, but got {height}x{width}: enlarge the input"
            )
        return repeated(x, self.T) if x.ndim == 4 and not single and self.T is not None else x

    def _check_dimensions(self, x: Tensor, single: bool) -> None:
        shape = tuple(x.shape)
        if single and x.ndim != 4:
            raise ValueError(
                f"Expected one time step [N, C, H, W] in single-step mode but got shape {shape}: "
                'loop over the steps, or functional.set_step_mode(net, "m")'
            )
        if not single and x.ndim == 4 and self.T is None:
            raise ValueError(
                f"Expected a sequence [T, N, C, H, W] but got shape {shape}: build the network "
                "with T= to show static images T times"
            )
        if not single and x.ndim not in (4, 5):
            raise ValueError(f"Expected an input [T, N, C, H, W] but got shape {shape}")
