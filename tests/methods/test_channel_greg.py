"""GReg step by step: when filters are chosen, how the factor grows, what is removed."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from sj_prune import methods
from sj_prune.methods.greg import nothing_chosen
from tests.support.channel_cases import greg, view
from tests.support.views import choose, drop_score, penalize


def chooses(method, step):
    """Tell whether filters are chosen in a step."""
    seen = view(step=step)
    choose(method, seen, torch.ones(6, dtype=torch.bool), step)
    return bool(seen.state["chosen"].any())


def factors_by_hand(method, chosen, last):
    """Return the factor of every filter in steps 1..last, by counting raises."""
    factor, found, rounds = [0.0] * len(chosen), [], 0
    picked = method.variant == 1
    for step in range(1, last + 1):
        if method.begin < step and (step - method.begin - 1) % method.every == 0:
            if not picked and factor[0] >= method.pick_ceiling - 1e-12:
                picked = True
            rounds += 1
            for c, mine in enumerate(chosen):
                if not picked:
                    factor[c] = min(method.pick_ceiling, factor[c] + method.pick_delta)
                elif mine:
                    factor[c] = min(method.ceiling, factor[c] + method.delta)
                else:
                    factor[c] = method.kept_factor
        found.append(list(factor) if step < method.end else [0.0] * len(chosen))
    return found


CASES = {
    "every step": greg(),
    "every third": greg(every=3, end=20),
    "begin": greg(begin=5, every=2, end=20),
    "uneven": greg(delta=0.07, ceiling=0.4, end=12),
    "variant 2": greg(variant=2),
    "variant 2, every third": greg(variant=2, every=3, begin=2, end=40),
    "variant 2, uneven": greg(variant=2, pick_delta=0.03, pick_ceiling=0.1, end=30),
    "kept": greg(every=2, end=20, kept_factor=-1e-4),
    "variant 2, kept": greg(variant=2, kept_factor=0.3),
    "variant 2, at once": greg(variant=2, pick_delta=0.4, pick_ceiling=0.4, end=9),
}


@pytest.mark.parametrize("case", CASES)
def test_factor_follows_the_steps(case):
    method = CASES[case]
    chosen = torch.tensor([True, False, False, True, False, True])
    state = nothing_chosen(view())
    expected = factors_by_hand(method, chosen.tolist(), method.end + 2)
    steps = [step for step in range(1, method.end + 3) if chooses(method, step)]
    assert len(steps) == 1
    for step, factors in enumerate(expected, start=1):
        seen = view(step=step)
        seen = dataclasses.replace(seen, state=state)
        choose(method, seen, chosen, step)
        before = seen.grad.clone()
        penalize(method, seen)
        for c, factor in enumerate(factors):
            torch.testing.assert_close(
                seen.grad[c], before[c] + factor * seen.weight[c], rtol=1e-12, atol=1e-12
            )
    assert expected[method.end - 2][0] == pytest.approx(method.ceiling)


@pytest.mark.parametrize("variant", [1, 2])
def test_raises_stop_once_the_kept_are_so_many_times_larger(variant):
    """Before every raise the means of both parts are compared; what is reached stays."""
    method = greg(variant=variant, every=2, delta=0.05, end=40, stop_ratio=50.0)
    chosen = torch.tensor([True, False, False, True, False, True])
    seen = view()
    state = nothing_chosen(seen)
    begin = next(step for step in range(1, 40) if chooses(method, step))
    factors = []
    for step in range(begin, begin + 10):
        now = dataclasses.replace(seen, step=step, state=state)
        if step == begin + 5:  # no step of a raise: the next one sees it
            large, small = (seen.weight[c].abs().mean() for c in (~chosen, chosen))
            seen.weight[chosen] *= large / small / 49.0
        if step == begin + 7:
            seen.weight[chosen] *= 49.0 / 51.0
        choose(method, now, chosen, step)
        factors.append(float(method.factor(now)[0]))
    first = 0.0 if variant == 1 else method.pick_ceiling
    raised = [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]  # and the last two would be 5
    assert factors == pytest.approx([first + 0.05 * number for number in raised])
    assert int(state["stopped"]) == begin + 7
    assert set(state) == {"chosen", "stopped"}


def test_released_constants():
    method = methods.GReg(end=50_001, kept_factor=-1e-4, stop_ratio=1000.0)
    assert (methods.GReg(end=50_001).kept_factor, methods.GReg(end=50_001).stop_ratio) == (
        0.0,
        None,
    )
    seen = view(step=1)
    choose(method, seen, torch.tensor([True] + [False] * 5), 1)
    assert method.factor(seen).tolist() == pytest.approx([1e-4] + [-1e-4] * 5)


def test_published_schedule():
    """10,000 raises of 1e-4 every 5 steps; GReg-2 raises all 1000 times by 1e-5 before."""
    first, second = methods.GReg(end=50_001), methods.GReg(variant=2, end=54_501)
    assert (first.every, first.delta, first.ceiling) == (5, 1e-4, 1.0)
    assert (second.pick_delta, second.pick_ceiling) == (1e-5, 1e-2)
    assert chooses(first, 1)
    assert not chooses(second, 1)
    assert chooses(second, 5001)
    chosen = torch.tensor([True] + [False] * 5)

    def factor(method, step):
        seen = view(step=step)
        if not method.begin < step or step >= 5001 or method.variant == 1:
            choose(method, seen, chosen, 1 if method.variant == 1 else 5001)
        return method.factor(seen)[:2].tolist()

    assert factor(first, 5) == pytest.approx([1e-4, 0])
    assert factor(first, 6) == pytest.approx([2e-4, 0])
    assert factor(first, 50_000) == pytest.approx([1.0, 0])
    assert factor(second, 1) == pytest.approx([1e-5, 1e-5])
    assert factor(second, 5000) == pytest.approx([1e-2, 1e-2])
    assert factor(second, 5001) == pytest.approx([1.01e-2, 0])
    assert factor(second, 54_500) == pytest.approx([1.0, 0])


def test_applying_twice_in_one_step_raises_once():
    """The factor is a function of the step: a closure that runs again adds the same."""
    method, seen = greg(), view(step=3)
    choose(method, seen, torch.ones(6, dtype=torch.bool), 1)
    first = method.factor(seen).clone()
    penalize(method, seen)
    assert method.factor(seen).equal(first)
    assert seen.state["chosen"].dtype == torch.bool  # what a checkpoint holds


def test_chosen_filters_are_dropped_first():
    """Whatever has become of their norms; the order by norm stays among both."""
    method = greg()
    seen = view()
    chosen = torch.tensor([False, True, False, True, False, False])
    choose(method, seen, chosen, 1)
    seen.weight[1] *= 100.0
    seen.weight[4] = 0.0
    score = drop_score(method, seen)
    assert score[chosen].max() < score[~chosen].min()
    kept = [c for c in range(6) if not chosen[c]]
    by_norm = sorted(kept, key=lambda c: float(seen.weight[c].abs().mean()))
    assert sorted(kept, key=lambda c: float(score[c])) == by_norm
    seen.weight.zero_()
    assert drop_score(method, seen).tolist() == [1, 0, 1, 0, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_coupled_layers_drop_what_was_chosen(seed):
    """A group ranks by the mean over its layers of the score over the layer's mean."""
    method, combined = greg(), 0.0
    chosen = torch.rand(6, generator=torch.Generator().manual_seed(seed)) < 0.5
    for scale in (1e-6, 1.0, 1e6):
        seen = view(seed=seed)
        seen.weight.mul_(scale)
        choose(method, seen, chosen, 1)
        seen.weight[chosen] *= 50.0
        score = drop_score(method, seen)
        combined = combined + score / score.mean()
    if chosen.any() and not chosen.all():
        assert combined[chosen].max() < combined[~chosen].min()


def test_choice_is_copied():
    method, seen = greg(), view()
    chosen = torch.zeros(6, dtype=torch.bool)
    choose(method, seen, chosen, 1)
    chosen.fill_(True)
    assert not seen.state["chosen"].any()


def test_nothing_is_penalized_before_the_choice():
    """A layer that joined late, or a checkpoint from before, has none chosen."""
    seen = view(step=4)
    (penalty,) = greg().plan().penalties
    seen.state.update(penalty.keeps(seen))
    before = seen.grad.clone()
    penalize(greg(), seen)
    assert seen.grad.equal(before)
    penalize(greg(), dataclasses.replace(seen, grad=None))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"variant": 3}, ValueError, r"Expected variant to be one of \(1, 2\) but got 3"),
        ({"variant": True}, ValueError, r"Expected variant to be one of \(1, 2\) but got True"),
        ({"variant": np.array([1])}, ValueError, r"Expected variant to be one of \(1, 2\) but got"),
        ({"variant": torch.tensor(2)}, ValueError, r"Expected variant to be one of .* got tensor"),
        ({"kept_factor": math.nan}, ValueError, "Expected kept_factor to be finite but got nan"),
        ({"stop_ratio": 0}, ValueError, "Expected stop_ratio to be finite and above 0 but got 0"),
        ({"every": 0}, ValueError, "Expected every of at least 1 but got 0"),
        ({"every": 1.5}, TypeError, r"Expected every to be an integer but got 1\.5"),
        ({"delta": 0}, ValueError, "Expected delta to be finite and above 0 but got 0"),
        ({"ceiling": math.inf}, ValueError, "Expected ceiling to be finite and above 0"),
        ({"ceiling": math.nan}, ValueError, "Expected ceiling to be finite and above 0"),
        ({"pick_delta": -1e-5}, ValueError, "Expected pick_delta to be finite and above 0"),
        ({"pick_ceiling": "1"}, TypeError, "Expected pick_ceiling to be a number but got '1'"),
        (
            {"variant": 2, "pick_ceiling": 0.5},
            ValueError,
            r"Expected pick_ceiling <= ceiling = 0\.4 but got 0\.5",
        ),
        ({"end": 4}, ValueError, r"end - begin of at least 5 steps.*begin=0, end=4: raise end"),
        ({"begin": 4}, ValueError, "end - begin of at least 5 steps"),
        ({"every": 2}, ValueError, "end - begin of at least 9 steps"),
        ({"variant": 2, "end": 5}, ValueError, "end - begin of at least 6 steps"),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=message):
        greg(**settings)


def test_fewest_steps_that_are_enough():
    assert greg(end=5).end == 5
    assert greg(variant=2, end=6).end == 6
    assert greg(every=2, end=9).end == 9
    assert greg(end=None).end is None
