"""Methods written again on a bare network in float64: masks, gradients and slots by hand."""

import math

import torch

from tests.support.pruning_cases import OPTIMIZERS, build, loss_of, slots_of, train, wrapped

LAYERS = ("0", "3", "8", "10")


def top(scores, k, among=None):
    """Return the mask of the k highest, by sorting indices."""
    flat = scores.flatten().tolist()
    places = range(len(flat)) if among is None else among.flatten().nonzero().flatten().tolist()
    found = torch.zeros(len(flat), dtype=torch.bool)
    found[sorted(places, key=lambda i: -flat[i])[:k]] = True
    return found.view_as(scores)


def top_of_all(scores, k):
    """Return the masks of the k highest over all layers together, by name."""
    joined = top(torch.cat([s.flatten() for s in scores.values()]), k)
    parts = joined.split([s.numel() for s in scores.values()])
    return {n: p.view_as(s) for (n, s), p in zip(scores.items(), parts, strict=True)}


class Bare:
    """The network of `build`, which knows nothing of the library, and masks of the test's own."""

    def __init__(self, optimizer, layers=LAYERS):
        self.net = build().double()
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        self.weights = {n: self.net.get_submodule(n).weight for n in layers}
        self.masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in self.weights.items()}

    def backward(self, k, hidden=True):
        """Run the batch; gradients of pruned weights are 0 if `hidden`."""
        self.optimizer.zero_grad()
        loss_of(self.net, k, torch.float64).backward()
        if hidden:
            self.hide()

    def hide(self):
        for n, w in self.weights.items():
            w.grad[~self.masks[n]] = 0.0

    def size(self):
        return {n: w.detach().abs() for n, w in self.weights.items()}

    @torch.no_grad()
    def hold(self):
        """Zero pruned weights and their slots."""
        for n, w in self.weights.items():
            w[~self.masks[n]] = 0.0
            for value in slots_of(self.optimizer, w).values():
                value[~self.masks[n]] = 0.0

    def step(self):
        self.hide()
        self.optimizer.step()
        self.hold()


def follows(method, optimizer, steps, advance, *, net=None, start=None):
    """Train a wrapped network beside a bare one; masks have to be equal, weights to 1e-12.

    Args:
        method: of the library.
        optimizer: name of it.
        steps: how many.
        advance: called as ``advance(bare, k)``, it trains the bare network by step k.
        net: of the library's side; the same as the bare one by default.
        start: called as ``start(bare, model)`` before the first step.
    """
    model, mine = wrapped(method, optimizer, net=build().double() if net is None else net)
    bare = Bare(optimizer)
    if start is not None:
        start(bare, model)
    for k in range(1, steps + 1):
        train(model, mine, 1, start=k, dtype=torch.float64)
        advance(bare, k)
        for n, mask in bare.masks.items():
            assert model.masks[n].equal(mask), (k, n)
        theirs = dict(bare.net.named_parameters())
        for name, value in model.net.named_parameters():
            torch.testing.assert_close(value, theirs[name], rtol=1e-12, atol=1e-12)
    return model, bare


def cubic(final, t, n, initial=0.0):
    return final + (initial - final) * (1 - t / n) ** 3


def cosine(final, first, t, n):
    return final + (first - final) / 2 * (1 + math.cos(math.pi * t / n))


def potentials(net, k):
    """Return H and spikes of every LIF layer of `build` in batch k, by the name before it."""
    inputs = {}
    nodes = {name: m for name, m in net.named_modules() if type(m).__name__.endswith("LIFNode")}
    handles = [
        m.register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0].detach()}))
        for name, m in nodes.items()
    ]
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    with torch.no_grad():
        loss_of(net, k, torch.float64)
        for name, b in net.named_buffers():
            b.copy_(buffers[name])
    for handle in handles:
        handle.remove()
    found = {}
    for name, x in inputs.items():
        v, charges, spikes = torch.zeros_like(x[0]), [], []
        for current in x:
            h = 0.25 * v + current  # tau = 4/3 without decay of the input
            s = (h >= 1).double()
            v = (1 - s) * h
            charges.append(h)
            spikes.append(s)
        found[name] = torch.stack(charges), torch.stack(spikes)
    return found
