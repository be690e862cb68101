"""A method as a user writes it: two plain functions in a `Plan`; and a structure of one's own."""

from dataclasses import dataclass

import torch

from sj_prune.masks import Cubic, Unstructured
from sj_prune.methods import Growth, Plan, reads
from tests.support.pruning_cases import build, criticality
from tests.support.rank_cases import own_hash, ready, train


def size(layer):
    return layer.weight.abs()


@reads("firing_rate")
def busy(layer):
    if layer.activity is None:
        return None
    rate = layer.activity.mean("firing_rate")
    return rate.view(-1, *[1] * (layer.weight.ndim - 1))


def own_plan(*, interval=2, end=6, **parts):
    schedule = Cubic(final=0.7, interval=interval, begin=0, end=end)
    return Plan(**{"schedule": schedule, "drop": size, "grow": Growth(busy, 0.2), **parts})


def trained_in_ranks(folder):
    """Return a hash of masks and weights after every step, and what the updates did."""
    return _trained(own_plan())


def trained_by_criticality(folder):
    """Return the same of Criticality with its options."""
    options = {"keeps_value": True, "normalize": "layer", "grace": 1}
    return _trained(criticality(interval=2, end=6, **options))


def _trained(method):
    called, model, optimizer = ready(method, build())
    hashes = []
    train(called, optimizer, range(1, 8), after=lambda _: hashes.append(own_hash(model)))
    return {"hashes": hashes, "history": [record.to_dict() for record in model.history]}


@dataclass(frozen=True)
class NM(Unstructured):
    """Of every `m` consecutive input channels of an output `n` are kept, by the drop score.

    What is ranked is the place of a weight in its block; the score decides between equal places.
    So a sparsity of ``1 - n / m`` keeps exactly `n` of each, and one below it the best others too.
    """

    n: int = 2
    m: int = 4

    def units(self, scores, weight):
        scores = super().units(scores, weight)
        blocks = scores.unflatten(1, (-1, self.m))
        place = blocks.argsort(dim=2, descending=True, stable=True).argsort(dim=2).flatten(1, 2)
        return scores / (1 + scores.abs()) / 2 - place


def blocks_of(mask, m):
    """Return how many of every block are kept."""
    return torch.stack([part.sum(1) for part in mask.split(m, dim=1)], 1)
