"""An exponential moving average of the weights, as sparse as the network that trains."""

from __future__ import annotations

import torch


class Average:
    """A second network that follows the first one.

    Args:
        net: a network of the same layers; it becomes the average.
        decay: of the average after many steps; it starts smaller, so that chance is forgotten.
    """

    def __init__(self, net, decay):
        self.net, self.decay = net.requires_grad_(False), decay

    def start(self, source):
        """Copy the state of `source`."""
        self.net.load_state_dict(source.state_dict())

    @torch.no_grad()
    def update(self, source, step, masks=None):
        """Move towards `source` after optimizer step `step`, and keep pruned weights at 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self.net.state_dict().values(), source.state_dict().values(), strict=True)
        for mine, other in pairs:
            if mine.is_floating_point():
                mine.lerp_(other, 1 - decay)
            else:  # how many batches a norm has seen
                mine.copy_(other)
        if masks is not None:
            masks.apply_(self.net)
