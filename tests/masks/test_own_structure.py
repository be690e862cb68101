"""A structure of one's own: N:M in one class, without a change of the library."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn

from sj_prune import PruningWrapper
from sj_prune.masks import Global, Uniform
from tests.support.own_plan import NM, blocks_of, own_plan
from tests.support.pruning_cases import lif, same, snapshot


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(4, 8, 3, padding=1),
        lif(),
        layer.Conv2d(8, 8, 3, padding=1),
        lif(),
        layer.Flatten(),
        layer.Linear(128, 4),
    )
    functional.set_step_mode(net, "m")
    return net


def step(model, optimizer, seed):
    functional.reset_net(model)
    x_seq = 3 * torch.rand(3, 5, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x_seq).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("allocation", [Global(), Uniform()])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2)])
def test_exactly_n_of_m_survive(n, m, allocation):
    plan = own_plan(structure=NM(n, m), allocation=allocation, grow=None)
    model = PruningWrapper(network(), plan)
    before = snapshot(model.net)
    model.update_masks(1 - n / m)
    for name, mask in model.masks.items():
        assert (blocks_of(mask, m) == n).all()
        size = before[f"{name}.weight"].abs()
        for block, alive in zip(size.split(m, 1), mask.split(m, 1), strict=True):
            best = block.topk(n, dim=1).indices
            assert torch.equal(torch.zeros_like(alive).scatter(1, best, True), alive)


def test_trains_on_a_schedule_and_resumes():
    plan = own_plan(structure=NM(2, 4), grow=None)
    runs = []
    for cut in (None, 3):
        model = PruningWrapper(network(), plan)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model.attach(optimizer)
        for k in range(1, 8):
            step(model, optimizer, k)
            if k == cut:
                saved = model.state_dict(), optimizer.state_dict()
                model = PruningWrapper(network(), plan, seed=1)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
                model.attach(optimizer)
                model.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
        runs.append(snapshot(model.net))
        assert model.sparsity()["total"] == pytest.approx(0.7, abs=1e-3)
        assert all((blocks_of(mask, 4) <= 2).all() for mask in model.masks.values())
    assert same(*runs)
