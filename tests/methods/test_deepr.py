"""Deep R against its rule, written again on a bare network in float64."""

import pytest
import torch

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import build, slots_of, train, wrapped
from tests.support.reference import Bare, follows
from tests.support.views import layer_view

L1, LR = 3.0, {"sgd": 0.1, "adam": 0.01}


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_deepr(optimizer, interval):
    """Signs and who wakes are the library's own chance; everything else is written again."""
    beta1 = 0.9 if optimizer == "adam" else 0.0
    end = 12
    method = methods.DeepR(sparsity=0.7, interval=interval, end=end, l1=L1 / 10, beta1=beta1)
    woken, signs, known, young = [], {}, {}, {}

    def start(bare, model):
        bare.masks = model.masks.masks
        bare.hold()
        known.update(model=model)

    def advance(bare: Bare, k):
        model, update = known["model"], k % interval == 0 and k <= end
        bare.backward(k)
        for n, w in bare.weights.items():
            if k == 1:
                signs[n] = model.session.run.memory[n]["sign"].clone()
                first = w.detach() != 0
                assert signs[n][first].equal(w.detach()[first].sign())
                share = (signs[n][~first] > 0).double().mean()
                assert 0.3 < share < 0.7
            old = bare.masks[n]
            if update:
                survivors = old & ((w.detach() != 0) | young.get(n, False))
                now = model.masks[n]
                assert not (survivors & ~now).any()  # nothing else is dropped
                assert int(now.sum()) == int(old.sum())  # as many wake as fell asleep
                grown = now & ~survivors
                woken.append(int(grown.sum()))
                w.grad[grown] = 0.0  # what wakes moves from the next step on
                young[n] = grown & (interval == 1)  # it has had no gradient yet
                bare.masks[n] = now
                for value in slots_of(bare.optimizer, w).values():
                    value[grown] = 0.0
        bare.step()
        rate = LR[optimizer] / (1 - beta1**k)
        with torch.no_grad():
            for n, w in bare.weights.items():
                crossed = signs[n] * (w - rate * L1 / 10 * signs[n]) < 0
                w.copy_(torch.where(crossed, 0.0, w - rate * L1 / 10 * signs[n]))
        bare.hold()

    model, _ = follows(method, optimizer, 14, advance, start=start)
    assert sum(woken) > 10
    assert model.sparsity()["total"] == pytest.approx(0.7)


def test_noise_is_that_of_its_temperature():
    """A step without gradient or pull moves active weights by T sqrt(lr) N(0, 1)."""
    method = methods.DeepR(sparsity=0.5, end=9, l1=0.0, temperature=0.02, beta1=0.0)
    model = PruningWrapper(build().double(), method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    model.attach(optimizer)
    with torch.no_grad():
        for n, mask in model.masks.items():
            model.masks.weight(n).copy_(5.0 * mask)  # far from 0
    before = {n: model.masks.weight(n).clone() for n in model.masks}
    draws = []
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        moved = [(model.masks.weight(n) - before[n])[m] for n, m in model.masks.items()]
        before = {n: model.masks.weight(n).clone() for n in model.masks}
        draws.append(torch.cat(moved) / (0.02 * 0.25**0.5))
    for drawn in draws:
        assert abs(drawn.mean()) < 0.2
        assert 0.85 < drawn.std() < 1.15
    assert not torch.allclose(*draws)


def test_no_weight_changes_its_sign():
    model, optimizer = wrapped(methods.DeepR(sparsity=0.5, end=20, l1=0.3, beta1=0.0))
    signs = {}

    def after(k):
        for n in model.masks:
            weight = model.masks.weight(n).detach()
            known = signs.setdefault(n, weight.sign().clone())
            assert not (weight.sign() * known < 0).any()
            signs[n] = torch.where(known == 0, weight.sign(), known)

    train(model, optimizer, 12, after=after)


# ---- soft ----------------------------------------------------------------------------------------

HEAT = 0.3


def soft(**settings):
    return methods.DeepR(
        **{"soft": True, "l1": 0.3, "temperature": HEAT, "interval": 2, "end": 10, **settings}
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_soft_deepr(optimizer):
    """Theta is kept apart and moved by what the optimizer does to active weights; 8 start at 0."""
    beta1 = 0.9 if optimizer == "adam" else 0.0
    least = -(HEAT**2) / 2 * 0.6 / 0.4 / 0.3
    theta, signs, known, woken, floors = {}, {}, {}, [], []

    def start(bare, model):
        known.update(model=model)
        with torch.no_grad():
            for weight in (bare.weights["10"], model.masks.weight("10")):
                weight[1] = 0.0

    def advance(bare: Bare, k):
        memory = known["model"].session.run.memory
        bare.backward(k, hidden=False)
        for n, w in bare.weights.items():
            if k == 1:
                theta[n] = w.detach().abs()
                signs[n] = memory[n]["sign"].clone()
                own = w.detach() != 0
                assert signs[n][own].equal(w.detach()[own].sign())
                assert signs[n].abs().eq(1).all()
            w.grad[theta[n] <= 0] = 0.0
        bare.optimizer.step()
        rate = LR[optimizer] / (1 - beta1**k)
        for n, w in bare.weights.items():
            seed = layer_view(known["model"], n).seed + k
            nu = torch.randn(
                w.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            active = theta[n] > 0
            walked = signs[n] * w.detach() - rate * 0.3 - HEAT * rate**0.5 * nu
            resting = (theta[n] - HEAT * rate**0.5 * nu).clamp(min=least)
            now = torch.where(active, walked.clamp(min=least), resting)
            woken.append(int((~active & (now > 0)).sum()))
            floors.append(int((now == least).sum()))
            theta[n] = now
            with torch.no_grad():
                w.copy_(signs[n] * now.clamp(min=0))
            bare.masks[n] = now > 0

    method = soft(sparsity=0.6, beta1=beta1)
    model, _ = follows(method, optimizer, 12, advance, start=start)
    assert sum(woken) > 10
    assert sum(floors) > 0
    assert 0.1 < model.sparsity()["total"] < 0.9
    assert [record.step for record in model.history] == [2, 4, 6, 8, 10]


def test_soft_sparsity_is_that_of_the_walk_without_gradients():
    """Its stationary distribution: exp(-2 l1 theta / T^2) above 0, flat below."""
    model = PruningWrapper(build().double(), soft(sparsity=0.7, beta1=0.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    model.attach(optimizer)
    found = []
    for k in range(900):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        if k >= 500 and k % 20 == 0:
            found.append(model.sparsity()["total"])
    assert sum(found) / len(found) == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"l1": 0.0}])
def test_soft_needs_noise_and_a_pull(wrong):
    with pytest.raises(ValueError, match="Expected l1 and temperature above 0 with soft=True"):
        soft(**wrong)
