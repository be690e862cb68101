"""Bits of everything that a run leaves behind, as short digests."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def _feed(found, value):
    """Add a nest of tensors and plain values to a hash; mappings whatever their order."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        found.update(f"tensor {data.dtype} {tuple(data.shape)}".encode())
        found.update(data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    elif isinstance(value, Mapping):
        found.update(f"mapping {len(value)}".encode())
        for key in sorted(value, key=repr):
            found.update(repr(key).encode())
            _feed(found, value[key])
    elif isinstance(value, list | tuple):
        found.update(f"list {len(value)}".encode())
        for item in value:
            _feed(found, item)
    else:
        found.update(f"{type(value).__name__} {value!r}".encode())


def digest(value):
    found = hashlib.blake2b(digest_size=6)
    _feed(found, value)
    return found.hexdigest()


def masks_of(model):
    return {name: model.masks[name] for name in model.masks}


def slots_of(model, optimizers):
    """Return what optimizers keep for each parameter, by its name."""
    return [
        {
            name: dict(optimizer.state[parameter])
            for name, parameter in model.named_parameters()
            if parameter in optimizer.state
        }
        for optimizer in optimizers
    ]


def error_of(error):
    """Return the public class of an error and its message, as parts of a record."""
    kinds = (kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    return {"error": next(kinds).__name__, "message": str(error)}


class Recorder:
    """Digests by moment of a run and by part.

    Attributes:
        events: moment -> part -> digest.
    """

    def __init__(self):
        self.events = {}

    def add(self, moment, **parts):
        """Record anything."""
        if moment in self.events:
            raise ValueError(f"Expected a new moment but got {moment!r} again: name it otherwise")
        self.events[moment] = {part: digest(value) for part, value in parts.items()}

    def run(self, moment, model, optimizers=(), **more):
        """Record a wrapped network in training."""
        self.add(
            moment,
            masks=masks_of(model),
            weights=model.net.state_dict(),
            gradients={name: p.grad for name, p in model.net.named_parameters()},
            slots=slots_of(model, optimizers),
            sparsity=model.sparsity(),
            history=[record.to_dict() for record in model.history],
            step=model.step,
            generator=torch.get_rng_state(),  # nobody but the test may draw from it
            **more,
        )

    def net(self, moment, net, **more):
        """Record a bare network."""
        kinds = [(name, type(module).__name__) for name, module in net.named_modules()]
        modes = [module.training for module in net.modules()]
        grads = {name: p.grad for name, p in net.named_parameters()}
        self.add(
            moment, weights=net.state_dict(), kinds=kinds, modes=modes, gradients=grads, **more
        )
