"""Where a parameter is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


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
        """The module.

        Raises:
            RuntimeError: if the network has none of this name any more.
        """
        owner: Any = self.net
        try:  # `get_submodule` takes five times as long, and every step asks for every layer
            for name in self.module.split(".") if self.module else ():
                owner = owner._modules[name]
        except (KeyError, AttributeError) as error:
            raise RuntimeError(
                f"Expected a module {self.module!r}, whose {self.attribute} is masked, but it was "
                "removed or renamed after wrapping: change the network first, then wrap it"
            ) from error
        return owner

    @property
    def parameter(self) -> Tensor:
        """The parameter itself.

        Raises:
            RuntimeError: if it is none any more, naming what took its place.
        """
        owner = self.owner
        found = owner._parameters.get(self.attribute)
        if found is None:
            raise RuntimeError(
                f"Expected a parameter {self.attribute!r} of layer {self.module!r} but it was "
                f"replaced after wrapping ({instead(owner, self.attribute)}): masks cannot hold "
                "what is computed anew at every forward; remove it and finalize() before you "
                "parametrize the network, or parametrize before wrapping, which leaves the layer "
                "dense"
            )
        return found


def instead(owner: nn.Module, attribute: str) -> str:
    """Return what stands where a parameter was, by name."""
    known = getattr(owner, "parametrizations", None)
    if known is not None and attribute in known:
        kinds = [type(part).__name__.lstrip("_") for part in known[attribute]]
        return f"parametrized by {', '.join(kinds)}"
    # torch.nn.utils.weight_norm, spectral_norm and prune compute it in a hook.
    hooks = owner._forward_pre_hooks.values()
    kinds = [type(h).__name__ for h in hooks if hasattr(h, "apply") or hasattr(h, "compute_weight")]
    if kinds:
        return f"parametrized by a forward pre-hook, {', '.join(kinds)}"
    return f"it is {type(getattr(owner, attribute, None)).__name__} there now"
