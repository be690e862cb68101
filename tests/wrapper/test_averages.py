"""Averages of the weights: over the network or the wrapper, with the masks put on."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sj_prune import methods
from tests.support.pruning_cases import build, train, wrapped

TIMING = {"interval": 2, "end": 8}
METHODS = {
    "Magnitude": methods.Magnitude(sparsity=0.8, **TIMING),
    "Criticality": methods.Criticality(sparsity=0.8, **TIMING),
    "GradR": methods.GradR(sparsity=0.9, **TIMING),
}


def zeros(net):
    layers = (m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    return [int((m.weight == 0).sum()) for m in layers]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("of", ["net", "wrapper"])
def test_an_averaged_model_is_the_average_with_the_masks_on(name, of):
    model, optimizer = wrapped(METHODS[name])
    source = model.net if of == "net" else model
    ema = AveragedModel(source, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    expected = None

    def update(_):
        nonlocal expected
        ema.update_parameters(source)
        now = [p.detach().double() for p in model.net.parameters()]
        before = now if expected is None else expected
        expected = [0.5 * a + 0.5 * b for a, b in zip(before, now, strict=True)]

    train(model, optimizer, 8, after=update)
    unpruned = [a for a, b in zip(zeros(ema), zeros(model.net), strict=True) if a < b]
    assert unpruned or name == "GradR", "it remembers what has been pruned since"
    model.masks.apply_(ema)
    masks = {f"{key}.weight": mask for key, mask in model.masks.items()}
    inner = ema.module if of == "net" else ema.module.net
    for (key, found), wanted in zip(inner.named_parameters(), expected, strict=True):
        wanted = wanted * masks.get(key, torch.ones(()))
        assert torch.allclose(found.double(), wanted, atol=1e-6), key
    stock = build(seed=9)
    stock.load_state_dict(inner.state_dict(), strict=True)
