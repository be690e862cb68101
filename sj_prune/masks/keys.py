"""Where a parameter is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Place"]


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
