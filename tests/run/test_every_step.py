"""What holds after every optimizer step, whichever way a user steps."""

import copy
import math

import pytest
import torch

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import (
    OPTIMIZERS,
    assert_masked,
    build,
    criticality,
    loss_of,
    magnitude,
    rigl,
    same,
    slots_of,
    snapshot,
    train,
    wrapped,
)

METHODS = {
    "Magnitude": magnitude,
    "Criticality": criticality,
    "RigL": rigl,
    "GraNet": lambda: methods.GraNet(sparsity=0.8, interval=2, end=8),
}


def half_masks(model):
    """Prune a random half, so that already the first update can grow something new."""
    generator = torch.Generator().manual_seed(5)
    masks = {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in model.masks.items()}
    model.masks.install(masks, model.optimizers)


# ---- optimizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_and_slots_are_zero(name, optimizer):
    model, opt = wrapped(METHODS[name](), optimizer)
    if name != "Magnitude":
        half_masks(model)
    weight, before, grown = model.net[3].weight, model.masks.masks, 0

    def after(k):
        nonlocal before, grown
        assert_masked(model, opt)
        for n, mask in model.masks.items():
            new = mask & ~before[n]
            grown += int(new.sum())
            if name in ("Criticality", "RigL"):
                # It was masked when the gradient came, or the step was skipped: nothing moved it.
                mine = model.masks.weight(n)
                assert not mine[new].any()
                assert not any(slot[new].any() for slot in slots_of(opt, mine).values())
        before = model.masks.masks

    train(model, opt, 9, after=after)
    assert model.step == 9
    assert (grown > 0) == (name != "Magnitude")
    slots = {
        "sgd": 0,
        "sgd_momentum": 1,
        "nesterov": 1,
        "adam": 2,
        "adamw": 2,
        "amsgrad": 3,
        "rmsprop": 3,
    }
    assert len(slots_of(opt, weight)) == slots[optimizer]  # all of them were looked at


@pytest.mark.parametrize("name", METHODS)
def test_parameter_groups(name):
    model = PruningWrapper(build(), METHODS[name]())
    convs = [p for n, p in model.named_parameters() if p.ndim == 4]
    rest = [p for n, p in model.named_parameters() if p.ndim != 4]
    opt = torch.optim.SGD(
        [{"params": convs, "lr": 0.2, "weight_decay": 0.1}, {"params": rest}], lr=0.05, momentum=0.9
    )
    model.attach(opt)
    train(model, opt, 9, after=lambda k: assert_masked(model, opt))
    reached = 0.7 if name == "RigL" else 0.8
    assert model.sparsity()["total"] == pytest.approx(reached)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("attach_order", ["convs first", "norms first"])
def test_several_optimizers(name, attach_order):
    """Weights split between two, everything else in a third: one counter, one set of masks."""
    model = PruningWrapper(build(), METHODS[name]())
    a = torch.optim.SGD([model.net[0].weight, model.net[3].weight], lr=0.1, momentum=0.9)
    b = torch.optim.Adam([model.net[8].weight, model.net[10].weight], lr=0.01)
    masked = {id(p) for o in (a, b) for g in o.param_groups for p in g["params"]}
    c = torch.optim.SGD([p for p in model.parameters() if id(p) not in masked], lr=0.1)
    for optimizer in (a, b, c) if attach_order == "convs first" else (c, a, b):
        model.attach(optimizer)
    train(model, [a, b, c], 9, after=lambda k: assert_masked(model, a, b, c))
    assert model.step == 9
    assert [record.step for record in model.history if record.step] == [2, 4, 6, 8]
    assert model.sparsity()["total"] == pytest.approx(0.7 if name == "RigL" else 0.8)


def split(model, lr=0.1):
    """Return two optimizers: the convolutions, and everything else."""
    convs = [model.net[0].weight, model.net[3].weight]
    mine = {id(p) for p in convs}
    rest = [p for p in model.parameters() if id(p) not in mine]
    return (
        torch.optim.SGD(convs, lr=lr, momentum=0.9),
        torch.optim.SGD(rest, lr=lr, momentum=0.9),
    )


@pytest.mark.parametrize("name", ["RigL", "GraNet"])
def test_order_of_stepping_does_not_hide_gradients(name):
    """An optimizer that steps before the one that updates must leave the dense gradient alone."""

    def masks(order):
        model = PruningWrapper(build(), METHODS[name]())
        convs, rest = split(model, lr=0.0)
        model.attach(convs).attach(rest)
        half_masks(model)
        train(model, [convs, rest] if order == "in order" else [rest, convs], 2)
        assert_masked(model, convs, rest)
        return model.masks.masks

    assert same(masks("in order"), masks("reversed"))


def test_rigl_skips_the_step_of_all_attached_optimizers():
    model = PruningWrapper(build(), rigl())
    convs, rest = split(model)
    model.attach(convs).attach(rest)
    seen = []

    def after(k):
        now = {n: p.detach().clone() for n, p in model.net.named_parameters()}
        if seen:
            last = seen[-1]
            others = [n for n in now if n.removesuffix(".weight") not in model.masks]
            assert len(others) == 6  # two norms, two biases
            moved = [not now[n].equal(last[n]) for n in others]
            assert moved == [k not in (2, 4, 6, 8)] * len(others), k
        seen.append(now)

    train(model, [convs, rest], 9, after=after)


def test_gradient_accumulation():
    """Four backward passes a step: one count, and the masks of the mean gradient."""
    model, opt = wrapped(rigl())
    other, other_opt = wrapped(rigl())
    for k in range(1, 6):
        opt.zero_grad()
        other_opt.zero_grad()
        for i in range(4):
            (loss_of(model, 10 * k + i) / 4).backward()
            if k % 2:  # masked in between, too
                for n, mask in model.masks.items():
                    assert not model.masks.weight(n).grad[~mask].any()
        sum(loss_of(other, 10 * k + i) / 4 for i in range(4)).backward()
        opt.step()
        other_opt.step()
        assert_masked(model, opt)
    assert model.step == 5
    assert same(model.masks.masks, other.masks.masks)


def test_dense_optimizer_state_may_be_loaded():
    dense_net = build()
    dense = OPTIMIZERS["adam"](dense_net.parameters())
    train(dense_net, dense, 3)
    model, opt = wrapped(criticality(), "adam")
    train(model, opt, 5)
    opt.load_state_dict(dense.state_dict())
    assert opt.state[model.net[3].weight]["exp_avg"][~model.masks["3"]].any()
    train(model, opt, 4, start=6, after=lambda k: assert_masked(model, opt))


# ---- closures ------------------------------------------------------------------------------------


def closure_for(model, opt, k, log=None):
    def closure():
        opt.zero_grad()
        loss = loss_of(model, k)
        loss.backward()
        if log is not None:
            log.append(k)
        return loss

    return closure


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_closure_gives_the_same_run_as_a_plain_loop(name, keyword):
    plain, opt = wrapped(METHODS[name](), "adam")
    train(plain, opt, 9)
    model, opt = wrapped(METHODS[name](), "adam")
    for k in range(1, 10):
        expected = loss_of(copy.deepcopy(model), k)
        closure = closure_for(model, opt, k)
        loss = opt.step(closure=closure) if keyword else opt.step(closure)
        assert loss.equal(expected)  # the return value passes through
        assert_masked(model, opt)
    assert model.step == 9
    assert same(plain.masks.masks, model.masks.masks)
    assert same(snapshot(plain.net), snapshot(model.net))


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
@pytest.mark.parametrize("name", METHODS)
def test_lbfgs(name, line_search):
    model = PruningWrapper(build(), METHODS[name]())
    opt = torch.optim.LBFGS(
        model.parameters(), lr=0.1, max_iter=3, history_size=3, line_search_fn=line_search
    )
    model.attach(opt)
    log = []
    for k in range(1, 10):
        loss = opt.step(closure_for(model, opt, k, log))
        assert math.isfinite(loss.item())
        assert_masked(model, opt)
    assert len(log) > 9  # several evaluations a step
    assert model.step == 9  # that count once
    assert [r.step for r in model.history if r.step] == [2, 4, 6, 8]
    assert model.sparsity()["total"] == pytest.approx(0.7 if name == "RigL" else 0.8)


def test_closure_that_raises_counts_no_step():
    model, opt = wrapped(magnitude())

    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opt.step(closure)
    assert model.step == 0
    train(model, opt, 2)
    assert model.step == 2
    assert [record.step for record in model.history] == [2]


def test_step_returns_none_without_a_closure():
    model, opt = wrapped(magnitude())
    loss_of(model, 1).backward()
    assert opt.step() is None


def test_learning_rate_scheduler():
    model, opt = wrapped(magnitude())
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 2, gamma=0.5)
    for k in range(1, 5):
        train(model, opt, 1, start=k)
        scheduler.step()
    assert model.step == 4
    assert opt.param_groups[0]["lr"] == pytest.approx(0.025)


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Magnitude", "Criticality", "RigL"])
def test_clipping_sees_masked_gradients(name):
    model, opt = wrapped(METHODS[name]())
    half_masks(model)
    loss_of(model, 1).backward()
    alive = [
        p.grad
        if n.removesuffix(".weight") not in model.masks
        # the dense gradient of a pruned weight would count here
        else p.grad[model.masks[n.removesuffix(".weight")]]
        for n, p in model.net.named_parameters()
    ]
    expected = torch.sqrt(sum(g.double().square().sum() for g in alive))
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert norm == pytest.approx(float(expected), rel=1e-5)
    for n, mask in model.masks.items():
        assert not model.masks.weight(n).grad[~mask].any()


def test_gradient_of_the_kept_is_untouched():
    model, _ = wrapped(magnitude())
    half_masks(model)
    stock = copy.deepcopy(model).finalize()
    loss_of(model, 1).backward()
    loss_of(stock, 1).backward()
    for n, mask in model.masks.items():
        mine, theirs = model.masks.weight(n).grad, stock.get_submodule(n).weight.grad
        assert theirs[~mask].any()
        torch.testing.assert_close(mine[mask], theirs[mask])


# ---- loss scaling --------------------------------------------------------------------------------

FUSED = {
    "sgd": lambda p, fused: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=fused),
    "adam": lambda p, fused: torch.optim.Adam(p, lr=0.01, fused=fused),
}
SCALED = {
    **METHODS,
    "GradR": lambda: methods.GradR(sparsity=0.9, alpha=0.05, interval=2, end=8),
}
OVERFLOWS = (2, 5)  # step 2 is an update's


def run(name, optimizer, fused, scaled):
    """Train 9 batches, two of which overflow: with a scaler, or leaving these two out by hand."""
    model = PruningWrapper(build(), SCALED[name]())
    opt = FUSED[optimizer](model.parameters(), fused)
    model.attach(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
    for k in range(1, 10):
        opt.zero_grad()
        scaler.scale(loss_of(model, k)).backward()
        if k in OVERFLOWS:
            if not scaled:
                continue
            model.net[3].weight.grad[0, 0, 0, 0] = math.inf
        before, steps = snapshot(model.net), model.step
        result = scaler.step(opt)
        scaler.update()
        assert result is None
        if k in OVERFLOWS:
            assert model.step == steps
            assert same(before, snapshot(model.net))
        if name != "GradR":
            assert_masked(model, opt)
    if scaled:
        assert scaler.get_scale() == 2.0**10  # both were seen
    assert model.step == 7
    return model


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("optimizer", FUSED)
@pytest.mark.parametrize("name", SCALED)
def test_loss_scaling_changes_nothing(name, optimizer, fused):
    """Scales are powers of two, so gradients, growth scores and penalties agree to the bit."""
    expected, got = (run(name, optimizer, fused, scaled) for scaled in (False, True))
    assert [r.step for r in got.history] == [r.step for r in expected.history]
    assert same(expected.masks.masks, got.masks.masks)
    torch.testing.assert_close(snapshot(got.net), snapshot(expected.net), rtol=1e-6, atol=1e-7)


def test_unscaling_by_hand_works_too():
    """The usual recipe for clipping: scaler.unscale_, clip, scaler.step."""
    masks = []
    for scaled in (False, True):
        model, opt = wrapped(rigl(), "adam")
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=scaled)
        for k in range(1, 6):
            opt.zero_grad()
            scaler.scale(loss_of(model, k)).backward()
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(opt)
            scaler.update()
        masks.append(model.masks.masks)
    assert same(*masks)
