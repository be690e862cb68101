"""Training goes on in the smaller network as it would have in the masked one."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn
from torch.optim import lr_scheduler

import sj_prune
from sj_prune.compaction import CompactionError, compact_with_optimizer
from sj_prune.compaction.slices import silence, silent_units
from sj_prune.network.coupling import couple
from tests.support.compaction_cases import as_tuple, assert_equal, awake, mask_at_random
from tests.support.user_cases import build
from tests.support.user_networks import Concatenation, Depthwise, Grouped, NoNorm, SharedNeuron

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.003, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def loss_of(net, x):
    functional.reset_net(net)
    return net(*as_tuple(x)).square().mean()


def step(net, optimizer, x, groups):
    """A step under strict masks: silent units stay silent, nothing else of them matters."""
    optimizer.zero_grad()
    loss_of(net, x).backward()
    optimizer.step()
    for group, silent in groups:
        silence(net, group, silent)


def trained(kind, make, seed=0):
    net, x = build(kind, seed)
    awake(net, x, seed)
    net, x = net.double().train(), x.double()
    groups = couple(net, (x,)).groups
    mask_at_random(net, x, seed, 0.5)
    masks = [(group, silent_units(net, group)) for group in groups]
    optimizer = make(net.parameters())
    for _ in range(3):
        step(net, optimizer, x, masks)
    return net, optimizer, x, masks


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("kind", [Concatenation, Depthwise, Grouped, NoNorm])
def test_training_goes_on_alike(kind, make):
    net, optimizer, x, masks = trained(kind, make)
    small, other = compact_with_optimizer(net, optimizer, x)
    assert type(other) is type(optimizer)
    for _ in range(4):
        step(net, optimizer, x, masks)
        step(small, other, x, [])
    assert small.training
    # The masked network cut now is the small one.
    again, state = compact_with_optimizer(net, optimizer, x)
    expected, actual = again.state_dict(), small.state_dict()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-9, atol=1e-12)
    for p, q in zip(state.state.values(), other.state.values(), strict=True):
        assert p.keys() == q.keys()
        for key, value in p.items():
            torch.testing.assert_close(q[key], value, rtol=1e-9, atol=1e-12)


def test_after_training_with_the_wrapper():
    """Masks of a channel method, trained under, finalized: what was silent leaves."""
    net, x = build(Concatenation)
    awake(net, x)
    method = sj_prune.methods.RandomChannels(sparsity=0.5, interval=1, end=3)
    model = sj_prune.PruningWrapper(net.train(), method, example_input=x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.attach(optimizer)
    for _ in range(4):
        functional.reset_net(model)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    net = model.finalize()
    functional.reset_net(net)
    small, _ = compact_with_optimizer(net, optimizer, x)
    units = [sum(g.units for g in couple(each, (x,)).groups) for each in (net, small)]
    assert units[1] == units[0] / 2
    assert_equal(net, small, x)


def test_the_old_optimizer_is_untouched():
    net, optimizer, x, _ = trained(SharedNeuron, OPTIMIZERS["adam"])
    before = copy.deepcopy(optimizer.state_dict())
    small, other = compact_with_optimizer(net, optimizer, x)
    step(small, other, x, [])
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, slots in before["state"].items():
        for name, value in slots.items():
            assert torch.equal(after["state"][key][name], value)
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert mine == {id(p) for p in net.parameters()}


def test_groups_settings_and_order_are_kept():
    net, x = build(Concatenation)
    awake(net, x)
    mask_at_random(net, x, 0, 0.5)
    outside = nn.Parameter(torch.ones(3))
    norms = [p for n, p in net.named_parameters() if n.startswith("bn")]
    rest = [p for n, p in net.named_parameters() if not n.startswith("bn")]
    optimizer = torch.optim.SGD(
        [{"params": rest, "lr": 0.3}, {"params": norms, "weight_decay": 0.0, "name": "norms"},
         {"params": [outside], "lr": 0.7}],
        lr=0.1, momentum=0.9, weight_decay=1e-2,
    )  # fmt: skip
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.1)
    (loss_of(net, x) + outside.sum()).backward()
    optimizer.step()
    scheduler.step()
    small, other = compact_with_optimizer(net, optimizer, x)
    for a, b in zip(optimizer.param_groups, other.param_groups, strict=True):
        assert {k: v for k, v in a.items() if k != "params"} == {
            k: v for k, v in b.items() if k != "params"
        }
        assert len(a["params"]) == len(b["params"])
    assert other.param_groups[0]["initial_lr"] == 0.3
    assert other.param_groups[0]["lr"] == pytest.approx(0.03)
    names = {id(p): n for n, p in small.named_parameters()}
    expected = [n for n, _ in net.named_parameters() if not n.startswith("bn")]
    assert [names[id(p)] for p in other.param_groups[0]["params"]] == expected
    assert other.param_groups[2]["params"][0] is outside
    assert torch.equal(
        other.state[outside]["momentum_buffer"], optimizer.state[outside]["momentum_buffer"]
    )


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.1),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 3, 7], 0.5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.5, 0.2], total_steps=12),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 3), lr_scheduler.StepLR(o, 2, 0.1)], [3]
    ),
}


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_goes_on_as_documented(make, stop):
    """The docstring's recipe: rates, and OneCycle's momentum, are those of a run without a cut."""
    net, x = build(SharedNeuron)
    awake(net, x)
    mask_at_random(net, x, 0, 0.5)
    norms = [p for n, p in net.named_parameters() if n.startswith("bn")]
    rest = [p for n, p in net.named_parameters() if not n.startswith("bn")]
    optimizer = torch.optim.SGD([{"params": rest}, {"params": norms, "lr": 0.3}], 0.1, 0.9)
    scheduler = make(optimizer)

    def step(net, optimizer, scheduler):
        used = [(group["lr"], group["momentum"]) for group in optimizer.param_groups]
        optimizer.zero_grad()
        loss_of(net, x).backward()
        optimizer.step()
        scheduler.step()
        return used

    for _ in range(stop):
        step(net, optimizer, scheduler)
    small, new = compact_with_optimizer(net, optimizer, x)
    slots = {p: dict(slots) for p, slots in new.state.items()}
    state = new.state_dict()
    following = make(new)
    following.load_state_dict(scheduler.state_dict())
    new.load_state_dict(state)
    for p, kept in slots.items():
        assert torch.equal(new.state[p]["momentum_buffer"], kept["momentum_buffer"])
    expected = [step(net, optimizer, scheduler) for _ in range(6)]
    assert [step(small, new, following) for _ in range(6)] == expected
    assert len({rates[0][0] for rates in expected}) > 1


def test_slots_are_cut_where_the_parameter_is():
    net, optimizer, x, _ = trained(SharedNeuron, OPTIMIZERS["sgd"])
    small, other = compact_with_optimizer(net, optimizer, x)
    kept = net.bn_a.weight != 0
    buffer = optimizer.state[net.b.weight]["momentum_buffer"]
    assert torch.equal(other.state[small.b.weight]["momentum_buffer"], buffer[kept][:, kept])
    assert all(slot.shape == p.shape for p, slots in other.state.items() for slot in slots.values())


class Plain(torch.optim.SGD):
    """A user's optimizer with something beside its state."""

    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)
        self.rounds = 7


def test_a_subclass_keeps_what_it_has():
    net, optimizer, x, _ = trained(SharedNeuron, lambda p: Plain(p, lr=0.1, momentum=0.9))
    _, other = compact_with_optimizer(net, optimizer, x)
    assert type(other) is Plain
    assert other.rounds == 7


def test_slots_of_another_shape_are_refused():
    net, optimizer, x, _ = trained(SharedNeuron, lambda p: torch.optim.Adafactor(p))
    with pytest.raises(CompactionError, match="of a.weight to have the parameter's shape"):
        compact_with_optimizer(net, optimizer, x)


def test_an_optimizer_of_something_else_is_refused():
    net, x = build(SharedNeuron)
    awake(net, x)
    with pytest.raises(ValueError, match="holds none"):
        compact_with_optimizer(net, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1), x)
    with pytest.raises(TypeError, match="Optimizer"):
        compact_with_optimizer(net, None, x)


class Agent(nn.Module):
    """Owns its optimizer and its schedule, as agents of deep Q learning do."""

    def __init__(self, keep):
        super().__init__()
        self.body, self.x = build(NoNorm, 0)
        awake(self.body, self.x, 0)
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        self.keep = keep(optimizer)
        self.schedule = lr_scheduler.StepLR(optimizer, 1)

    @property
    def optimizer(self):
        return self.schedule.optimizer

    def forward(self, x):
        return self.body(x)


KEEPS = {"attribute": lambda o: o, "list": lambda o: [o], "dict": lambda o: {"actor": o}}


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
def test_an_optimizer_that_the_network_owns_trains_the_smaller_one(keep):
    net = Agent(keep).double()
    x = net.x.double()
    groups = couple(net, (x,)).groups
    mask_at_random(net, x, 0, 0.5)
    masks = [(group, silent_units(net, group)) for group in groups]
    for _ in range(2):
        step(net, net.optimizer, x, masks)
    small, other = compact_with_optimizer(net, net.optimizer, x)
    assert other is small.optimizer
    held = [p for group in other.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in small.parameters()]
    assert sum(p.numel() for p in held) < sum(p.numel() for p in net.parameters())
    for _ in range(3):
        step(net, net.optimizer, x, masks)
        other.zero_grad()
        loss_of(small, x).backward()
        other.step()
    functional.reset_net(net)
    functional.reset_net(small)
    torch.testing.assert_close(small(x), net(x), rtol=1e-9, atol=1e-9)


def test_an_owned_optimizer_holds_what_was_loaded(tmp_path):
    net = Agent(KEEPS["attribute"])
    mask_at_random(net, net.x, 0, 0.5)
    sj_prune.save_compact(tmp_path / "small.pt", sj_prune.compact(net, net.x))
    small = sj_prune.load_compact(tmp_path / "small.pt", Agent(KEEPS["attribute"]))
    held = [p for group in small.keep.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in small.parameters()]
    assert sum(p.numel() for p in held) < sum(p.numel() for p in net.parameters())
