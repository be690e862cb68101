"""Names of different things are different types: a type checker tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

from torch import Tensor, nn

__all__ = ["LayerName", "MaskName", "ParameterKey", "Place", "ScopeName"]

#: module name of a convolution or linear layer
LayerName = NewType("LayerName", str)
#: what a mask is asked for by: the layer's name, or that of the norm for whole channels
MaskName = NewType("MaskName", str)
#: what is ranked: a layer's weights, or a group of coupled channels
ScopeName = NewType("ScopeName", str)
#: a held parameter: the layer's name for single weights, ``module.attribute`` for channels
ParameterKey = NewType("ParameterKey", str)


@dataclass(frozen=True)
class Place:
    """Where a parameter is: found anew at each look, for modules of a network are replaced.

    Attributes:
        net: the network.
        module: name of the module in it.
        attribute: name of the parameter there.
    """

    net: nn.Module
    module: str
    attribute: str = "weight"

    @property
    def owner(self) -> nn.Module:
        """The module."""
        return self.net.get_submodule(self.module)

    @property
    def parameter(self) -> Tensor:
        """The parameter itself."""
        found = self.owner._parameters.get(self.attribute)
        if found is None:
            raise RuntimeError(
                f"Expected a parameter {self.attribute!r} of {self.module!r} but it has none any "
                "more: register parametrizations and replace parameters before wrapping"
            )
        return found
