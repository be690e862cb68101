"""SCA in a wrapper: its rule, silence, sleep and waking, and growth without a signal."""

import copy
import logging

import pytest
import torch
from spikingjelly.activation_based import surrogate

from sj_prune import PruningWrapper
from tests.support.channel_cases import (
    CONVS,
    NODES,
    NORMS,
    TOTAL,
    UNITS,
    T,
    channel_net,
    flat,
    lif,
    pruner,
    rates,
    sca,
    units_kept,
)
from tests.support.pruning_cases import (
    OPTIMIZERS,
    batch,
    loss_of,
    same_state,
    slots_of,
    snapshot,
    train,
)

# ---- SCA against its rule ------------------------------------------------------------------------


class Activity:
    """Mean of ``|V| + S`` of every channel, from the input currents of stock equations."""

    def __init__(self, net):
        self.sums = dict.fromkeys(NORMS, 0.0)
        self.samples = 0
        for norm, node in zip(NORMS, NODES, strict=True):
            net.get_submodule(node).register_forward_pre_hook(
                lambda module, inputs, norm=norm: self.add(norm, inputs[0].detach().double())
            )

    def add(self, norm, currents):
        v, total = torch.zeros_like(currents[0]), 0.0
        for x in currents:
            h = v - v / (4 / 3) + x
            spike = (h >= 1.0).double()
            v = h * (1 - spike)
            total = total + v.abs() + spike
        self.sums[norm] = self.sums[norm] + (total / T).mean((2, 3)).sum(0)
        self.samples += norm == NORMS[0] and currents.shape[1]

    def take(self):
        means = torch.cat([self.sums[norm] / self.samples for norm in NORMS])
        self.sums, self.samples = dict.fromkeys(NORMS, 0.0), 0
        return means.tolist()


@pytest.mark.parametrize(("p", "q"), [(0.4, 0.2), (0.5, 0.2), (0.2, 0.04)])
def test_sca_updates_are_the_published_ones(p, q):
    """Top 1 - (p + q) of all channels by activity, then the top q by the gradient of gamma."""
    # Traced first: what is learned about the network is learned by forwards, which hooks see.
    model, optimizer = pruner(
        sca(sparsity=p, regrow=q, interval=3, end=12), "sgd", example_input=batch(0)[0]
    )
    activity = Activity(model.net)
    kept = [True] * TOTAL
    for k in range(1, 13):
        optimizer.zero_grad()
        loss_of(model, k).backward()
        grads = torch.cat([model.net.get_submodule(n).weight.grad.abs() for n in NORMS]).tolist()
        optimizer.step()
        if k % 3:
            continue
        score = activity.take()
        grown = round(q * TOTAL)
        survive = round((1 - p) * TOTAL) - grown
        alive = sorted((i for i in range(TOTAL) if kept[i]), key=lambda i: -score[i])
        survivors = set(alive[:survive])
        others = sorted(set(range(TOTAL)) - survivors, key=lambda i: -grads[i])
        kept = [i in survivors or i in others[:grown] for i in range(TOTAL)]
        assert units_kept(model).tolist() == kept, k
    assert len({tuple(r.kept.values()) for r in model.history}) > 1


# ---- silent and asleep ---------------------------------------------------------------------------


@pytest.mark.parametrize("v_reset", [0.0, None, -0.5])
@pytest.mark.parametrize("carried", [False, True])
def test_pruned_channels_never_fire(v_reset, carried):
    model, optimizer = pruner(sca(), net=channel_net(node=lambda: lif(v_reset)))

    def after(k):
        for norm, rate in rates(model, k, reset=not carried).items():
            assert not rate[~model.masks[norm]].any(), (k, norm)

    # After a carried-over forward the loop resets as always.
    train(model, optimizer, 9, after=after)
    assert not units_kept(model).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sleeping_filters_are_bit_identical(optimizer):
    """Under momentum, weight decay, Adam's moments and SCA's own L1, made large."""
    model, opt = pruner(sca(l1=0.05), optimizer)
    train(model, opt, 2)
    state = {"masks": model.masks.masks, "weights": snapshot(model.net)}

    def after(k):
        masks, weights = model.masks.masks, snapshot(model.net)
        for conv, norm in zip(CONVS, NORMS, strict=True):
            slept = ~masks[norm] & ~state["masks"][norm]
            key = f"{conv}.weight"
            assert weights[key][slept].equal(state["weights"][key][slept]), (k, conv)
            assert not weights[f"{norm}.weight"][~masks[norm]].any()
            assert not weights[f"{norm}.bias"][~masks[norm]].any()
            for module in (conv, norm):
                parameter = model.net.get_submodule(module).weight
                for name, slot in slots_of(opt, parameter).items():
                    assert not slot[~masks[norm]].any(), (k, module, name)
        assert any((weights[f"{c}.weight"] != state["weights"][f"{c}.weight"]).any() for c in CONVS)
        state.update(masks=masks, weights=weights)

    train(model, opt, 8, start=3, after=after)


@pytest.mark.parametrize("wake", ["restore", "zero"])
def test_what_a_waking_channel_starts_at(wake):
    """With a learning rate of 0 nothing but masks changes gamma and beta."""
    net = channel_net()
    method = sca(sparsity=0.5, regrow=0.3, growth="random", interval=1, end=12, wake=wake)
    model = PruningWrapper(net, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model.attach(optimizer)
    first = {key: p.detach().clone() for key, p in net.named_parameters()}
    slept = {norm: torch.zeros(n, dtype=torch.bool) for norm, n in UNITS.items()}
    woken = 0

    def after(k):
        nonlocal woken
        for norm, mask in model.masks.items():
            slept[norm] |= ~mask
            woken += int((slept[norm] & mask).sum())
            lost = slept[norm] if wake == "zero" else ~mask
            for attribute in ("weight", "bias"):
                value = getattr(net.get_submodule(norm), attribute)
                assert value[~lost].equal(first[f"{norm}.{attribute}"][~lost]), (k, norm)
                assert not value[lost].any(), (k, norm)
        for conv in CONVS:
            assert net.get_submodule(conv).weight.equal(first[f"{conv}.weight"])

    train(model, optimizer, 12, after=after)
    assert woken > 10


@pytest.mark.parametrize("regrow", [0.0, 0.2])
def test_masks_that_bind_at_updates_only(regrow):
    """The released behavior, by a plain loop: zeros after the epoch's last step, free between."""
    model, optimizer = pruner(sca(enforce="update", regrow=regrow, l1=1e-3))
    plain = channel_net()
    reference = OPTIMIZERS["sgd_momentum"](plain.parameters())
    revived = 0
    for k in range(1, 10):
        train(model, optimizer, 1, start=k)
        reference.zero_grad()
        loss_of(plain, k).backward()
        for conv in CONVS:
            weight = plain.get_submodule(conv).weight
            weight.grad += 1e-3 * weight.detach().sign()
        reference.step()
        if k in (2, 4, 6, 8):
            with torch.no_grad():
                for conv, norm in zip(CONVS, NORMS, strict=True):
                    pruned = ~model.masks[norm]
                    for module in (conv, norm):
                        for parameter in plain.get_submodule(module).parameters():
                            parameter[pruned] = 0.0
            assert int((~units_kept(model)).sum()) == round(0.4 * TOTAL)
        else:
            revived += sum(
                int((model.net.get_submodule(n).weight[~model.masks[n]] != 0).sum()) for n in NORMS
            )
        for (key, mine), theirs in zip(
            model.net.named_parameters(), plain.parameters(), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7, msg=f"{k}: {key}")
    assert revived > 0


# ---- growth without a signal ---------------------------------------------------------------------


def test_zero_growth_signal_is_said_once_and_replaced(caplog):
    """PiecewiseQuadratic(1) has no derivative a whole threshold below it: METHODS section 3b."""

    def node():
        return lif(function=surrogate.PiecewiseQuadratic(1.0))

    model, optimizer = pruner(sca(sparsity=0.6, regrow=0.2), net=channel_net(node=node))
    expected = {}
    with caplog.at_level(logging.WARNING, logger="sj_prune"):
        for k in range(1, 9):
            optimizer.zero_grad()
            loss_of(model, k).backward()
            if k == 2:
                for conv, norm in zip(CONVS, NORMS, strict=True):
                    view = model.updater.view(conv)
                    expected[norm] = model.method.drop_score(view)
            if k == 4:
                for norm, mask in model.masks.items():
                    grad = model.net.get_submodule(norm).weight.grad
                    assert (~mask).any()
                    assert not grad[~mask].any()
            before = model.masks.masks
            optimizer.step()
            if k == 4:
                assert int((units_kept(model) & ~flat(before)).sum()) > 0, "nothing was woken"
                check_best_woken(model.masks.masks, before, expected)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 3
    assert all(sum(conv in text for text in warned) == 1 for conv in ("of 0 ", "of 3 ", "of 6 "))


def check_best_woken(masks, before, scores):
    """In each layer the woken ones are those that had scored best while awake."""
    for norm, score in scores.items():
        woken, asleep = masks[norm] & ~before[norm], ~masks[norm] & ~before[norm]
        if woken.any() and asleep.any():
            assert score[woken].min() >= score[asleep].max()


def test_live_growth_signal_is_left_alone(caplog):
    model, optimizer = pruner(sca())
    with caplog.at_level(logging.WARNING, logger="sj_prune"):
        train(model, optimizer, 8)
    assert not caplog.records


# ---- copies of the network -----------------------------------------------------------------------


@pytest.mark.parametrize("enforce", ["always", "update"])
def test_masks_are_applied_to_a_copy(enforce):
    """Zeros where the masks say so, the copy's own values elsewhere."""
    model, optimizer = pruner(sca(enforce=enforce))
    train(model, optimizer, 3)
    ema = copy.deepcopy(model.net)
    with torch.no_grad():
        for parameter in ema.parameters():
            parameter.add_(1.0 + parameter.abs())  # nothing is 0
    before, mine = snapshot(ema), snapshot(model.net)
    assert model.masks.apply_(ema) is ema
    zeros = {f"{n}.{a}": ~model.masks[n] for n in NORMS for a in ("weight", "bias")}
    assert any(pruned.any() for pruned in zeros.values())
    for key, value in ema.named_parameters():
        pruned = zeros.get(key, torch.zeros(len(value), dtype=torch.bool))
        assert not value[pruned].any(), key
        assert value[~pruned].equal(before[key][~pruned]), key
    assert same_state(snapshot(model.net), mine)


# ---- finalizing what has come back ---------------------------------------------------------------


@pytest.mark.parametrize(("steps", "revived"), [(8, False), (9, True)])
def test_channels_that_came_back_are_said_when_they_are_zeroed(steps, revived, caplog):
    """The last update is in step 8: one step later momentum has moved what it zeroed."""
    model, optimizer = pruner(sca(enforce="update"))
    train(model, optimizer, steps)
    masks = model.masks.masks
    back = [n for n in NORMS if model.net.get_submodule(n).weight[~masks[n]].any()]
    with caplog.at_level(logging.WARNING, logger="sj_prune"):
        net = model.finalize()
    said = [r.getMessage() for r in caplog.records if "have come back" in r.getMessage()]
    assert len(said) == revived == bool(back)
    assert all(str(back) in text for text in said)
    for name, mask in masks.items():
        assert not net.get_submodule(name).weight[~mask].any()


def test_masks_that_always_bind_have_nothing_to_say(caplog):
    model, optimizer = pruner(sca())
    train(model, optimizer, 9)
    with caplog.at_level(logging.WARNING, logger="sj_prune"):
        model.finalize()
    assert not caplog.records
