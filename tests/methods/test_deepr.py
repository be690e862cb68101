"""Deep R against its rule, written again on a bare network in float64."""

import pytest
import torch

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import build, slots_of, train, wrapped
from tests.support.reference import Bare, follows

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
