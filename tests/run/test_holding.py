"""A step leaves pruned weights and slots at 0, whatever the optimizer, whoever wrote before it."""

import copy
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from sj_prune import PruningWrapper
from sj_prune.masks import MaskManager
from tests.support.pruning_cases import magnitude, slots_of


class OwnSGD(optim.SGD):
    """Who knows what a subclass does."""


def rows(kind, *settings):
    return [pytest.param(kind, s, id=f"{kind.__name__} {s}") for s in settings]


#: those whose steps are still where gradient, weight and slot are 0
STILL = [
    *rows(
        optim.SGD,
        {},
        {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.2},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
        {"momentum": 0.9, "foreach": True},
        {"momentum": 0.9, "fused": True, "weight_decay": 0.1},
    ),
    *rows(
        optim.Adam,
        {},
        {"amsgrad": True, "weight_decay": 0.1},
        {"maximize": True, "foreach": True},
        {"fused": True, "weight_decay": 0.1},
        {"eps": 1e-30},
    ),
    *rows(optim.AdamW, {"weight_decay": 0.5}, {"foreach": True}, {"fused": True, "amsgrad": True}),
    *rows(optim.NAdam, {"weight_decay": 0.1}, {"decoupled_weight_decay": True, "foreach": True}),
    *rows(optim.RAdam, {"weight_decay": 0.1}, {"decoupled_weight_decay": True, "foreach": True}),
    *rows(
        optim.RMSprop,
        {},
        {"centered": True, "momentum": 0.9, "weight_decay": 0.1},
        {"centered": True, "foreach": True},
    ),
    *rows(
        optim.Adagrad,
        {"lr_decay": 0.1, "weight_decay": 0.1},
        {"initial_accumulator_value": 0.5},
        {"foreach": True},
        {"fused": True},
    ),
    *rows(optim.Adadelta, {"weight_decay": 0.1}, {"foreach": True, "maximize": True}),
]
#: and all others
HELD = [
    *rows(optim.Adam, {"eps": 0.0}, {"eps": 1e-60}),
    *rows(optim.Adamax, {}, {"foreach": True}),
    *rows(optim.Rprop, {}),
    *rows(optim.ASGD, {}),
    *rows(optim.Adafactor, {}),
    *(rows(optim.Muon, {}) if hasattr(optim, "Muon") else ()),  # torch 2.9
    *rows(OwnSGD, {"momentum": 0.9}),
]


def test_all_optimizers_of_torch_are_here():
    known = {row.values[0] for row in STILL + HELD}
    classes = {c for c in vars(optim).values() if isinstance(c, type)}
    dense = {c for c in classes if issubclass(c, optim.Optimizer)}
    # The next tests have LBFGS, which needs a closure.
    assert dense - known == {optim.Optimizer, optim.SparseAdam, optim.LBFGS}


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 7, bias=False), nn.ReLU(), nn.Linear(7, 6, bias=False))


def make(kind, settings):
    net = build()
    model = PruningWrapper(net, magnitude(interval=4, end=8))
    optimizer = kind(net.parameters(), lr=0.05, **settings)
    model.attach(optimizer)
    return model, optimizer


def gradients(net, k, absent=()):
    generator = torch.Generator().manual_seed(k)
    for i, p in enumerate(net.parameters()):
        grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        p.grad = None if i in absent else grad


class Twin:
    """The same training, in which the test itself sets everything to 0 around each step."""

    def __init__(self, model, optimizer):
        self.net = copy.deepcopy(model.net)
        settings = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        self.optimizer = type(optimizer)(self.net.parameters(), lr=0.05)
        self.optimizer.param_groups[0].update(settings)
        if isinstance(optimizer, optim.Adagrad):
            self.optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    @torch.no_grad()
    def step(self, masks):
        weights = [self.net.get_submodule(name).weight for name in masks]
        for w, mask in zip(weights, masks.values(), strict=True):
            if w.grad is not None:
                w.grad[~mask] = 0.0
            w[~mask] = 0.0
            for slot in slots_of(self.optimizer, w).values():
                slot[~mask] = 0.0
        self.optimizer.step()
        for w, mask in zip(weights, masks.values(), strict=True):
            for tensor in (w, *slots_of(self.optimizer, w).values()):
                tensor[~mask] = 0.0

    def check(self, model, optimizer):
        for mine, other in zip(self.net.parameters(), model.net.parameters(), strict=True):
            assert torch.equal(mine, other)
            slots = slots_of(self.optimizer, mine)
            others = slots_of(optimizer, other)
            assert slots.keys() == others.keys()
            assert all(torch.equal(slots[key], others[key]) for key in slots)


@pytest.mark.parametrize(("kind", "settings"), STILL + HELD)
def test_a_step_is_that_of_a_brute_force(kind, settings):
    model, optimizer = make(kind, settings)
    twin = Twin(model, optimizer)
    for k in range(1, 12):
        absent = (1,) if k == 7 else ()
        gradients(model.net, k, absent)
        gradients(twin.net, k, absent)
        optimizer.step()
        twin.step(model.masks)  # as they are after the update
        twin.check(model, optimizer)
    assert model.sparsity()["total"] == pytest.approx(0.8, abs=0.01)


def count_holds(monkeypatch):
    """Return the list of calls that hold weights and slots."""
    calls, enforce = [], MaskManager.enforce
    monkeypatch.setattr(
        MaskManager, "enforce", lambda *args: calls.append(len(calls)) or enforce(*args)
    )
    return calls


@pytest.mark.parametrize(("kind", "settings"), STILL + HELD)
def test_between_updates_gradients_alone_are_masked(kind, settings, monkeypatch):
    model, optimizer = make(kind, settings)
    calls = count_holds(monkeypatch)
    numbers = []
    for k in range(1, 13):
        gradients(model.net, k)
        before = len(calls)
        optimizer.step()
        numbers.append(len(calls) - before)
    first, update = 1, 2  # an update holds what it installs, and the step that it is in holds too
    still = [0 if (kind, settings) in [row.values for row in STILL] else 1] * 3
    assert numbers == [first, *still[:2], update, *still, update, *still, still[0]]


def test_a_closure_is_held(monkeypatch):
    model, optimizer = make(optim.SGD, {"momentum": 0.9})
    calls = count_holds(monkeypatch)
    for k in range(1, 4):
        optimizer.step(lambda k=k: gradients(model.net, k))
    assert len(calls) == 3


def test_lbfgs_ends_at_0():
    net = build()
    model = PruningWrapper(net, magnitude(interval=2, end=4))
    model.attach(optim.LBFGS(net.parameters(), lr=0.1, max_iter=4))

    def closure():
        net.zero_grad()
        loss = net(torch.ones(3, 9)).square().sum()
        loss.backward()
        return loss

    for _ in range(5):
        model.optimizers[0].step(closure)
        for name, mask in model.masks.items():
            assert not net.get_submodule(name).weight[~mask].any()


# ---- outside writes ------------------------------------------------------------------------------


def slots(model, optimizer):
    return [s for p in model.net.parameters() for s in slots_of(optimizer, p).values()]


def each_weight(write):
    return lambda model, optimizer: [write(p) for p in model.net.parameters()]


def each_slot(write):
    return lambda model, optimizer: [write(s) for s in slots(model, optimizer)]


def one_of_many(tensor):
    """The last pruned entry alone, which no sample need see: its version tells."""
    with torch.no_grad():
        tensor.view(-1)[(tensor == 0).flatten().nonzero()[-1]] += 1.0


def new_data(tensor):
    tensor.data = torch.ones_like(tensor)


def loaded(model, optimizer):
    state = copy.deepcopy(optimizer.state_dict())
    for slots in state["state"].values():
        for slot in slots.values():
            if isinstance(slot, torch.Tensor) and slot.ndim:
                slot.fill_(0.5)
    optimizer.load_state_dict(state)


def new_slots(model, optimizer):
    for p in model.net.parameters():
        for key in slots_of(optimizer, p):
            optimizer.state[p][key] = torch.ones_like(p)


def hooked(register):
    def write(model, optimizer):
        def act(*_):
            with torch.no_grad():
                for p in model.net.parameters():
                    p.data.add_(0.1)
                    p.grad.fill_(1.0)

        getattr(optimizer, register)(act)

    return write


WRITERS = {
    "fill": each_weight(lambda p: nn.init.constant_(p, 0.1)),
    "data": each_weight(lambda p: p.data.add_(0.1)),
    "new data": each_weight(new_data),
    "numpy": each_weight(lambda p: p.detach().numpy().__iadd__(0.1)),
    "one weight": each_weight(one_of_many),
    "slots": each_slot(lambda s: s.add_(0.5)),
    "slots through data": each_slot(lambda s: s.data.add_(0.5)),
    "one slot": each_slot(one_of_many),
    "new slots": new_slots,
    "loaded": loaded,
    "a hook that runs after ours": hooked("register_step_pre_hook"),
    "eps": lambda model, optimizer: optimizer.param_groups[0].update(eps=0.0),
    "masks": lambda model, optimizer: model.update_masks(0.85),
    "resumed": lambda model, optimizer: model.load_state_dict(copy.deepcopy(model.state_dict())),
    "nobody": lambda model, optimizer: None,
}


def assert_held(model, optimizer):
    for name, mask in model.masks.items():
        weight = model.net.get_submodule(name).weight
        for tensor in (weight, *slots_of(optimizer, weight).values()):
            assert not tensor[~mask].any()


acts = st.lists(st.sampled_from(sorted(WRITERS)), min_size=1, max_size=4)


@given(acts, st.sampled_from([optim.SGD, optim.Adam, optim.RMSprop, optim.Adagrad]))
@settings(max_examples=60)
def test_what_others_wrote_is_0_after_the_next_step(names, kind):
    model, optimizer = make(kind, {"momentum": 0.9} if kind is optim.SGD else {})
    for k in range(1, 6):
        gradients(model.net, k)
        optimizer.step()
    for k, name in enumerate(names, start=6):
        WRITERS[name](model, optimizer)
        gradients(model.net, k)
        optimizer.step()
        assert_held(model, optimizer)


def test_a_post_hook_that_was_there_before_is_undone():
    net = build()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    hooked("register_step_post_hook")(PruningWrapper(net, magnitude()), optimizer)
    model = PruningWrapper(net, magnitude(interval=2, end=4))
    model.attach(optimizer)
    for k in range(1, 8):
        gradients(net, k)
        optimizer.step()
        assert_held(model, optimizer)


def test_gradients_that_are_not_finite_leave_no_trace():
    model, optimizer = make(optim.Adam, {})
    for k in range(1, 8):
        gradients(model.net, k)
        for name, mask in model.masks.items():
            grad = model.net.get_submodule(name).weight.grad
            grad[~mask] = torch.tensor([torch.nan, torch.inf])[k % 2]
        optimizer.step()
        if k % 4:
            assert_held(model, optimizer)
        assert all(p.isfinite().all() for p in model.net.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_eps_counts_in_the_type_of_the_weights(dtype):
    """1e-8 is 0 in half precision, where Adam takes 0 / 0."""
    net = build().to(dtype)
    model = PruningWrapper(net, magnitude(interval=2, end=4))
    optimizer = optim.Adam(net.parameters(), lr=0.01)
    model.attach(optimizer)
    for k in range(1, 8):
        gradients(net, k)
        optimizer.step()
        assert_held(model, optimizer)


def test_a_step_that_fails_leaves_nothing_for_long(monkeypatch):
    model, optimizer = make(optim.Adam, {})
    for k in range(1, 7):
        gradients(model.net, k)
        optimizer.step()
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[optim.Adam.__module__], "adam", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
    model.sparsity()
    assert_held(model, optimizer)
    optimizer.step()
    assert_held(model, optimizer)
