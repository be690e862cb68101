"""Masks and weights never part: whoever looks sees pruned weights at 0, or an error says why."""

import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional
from torch import nn
from torch.nn.utils import parameters_to_vector, parametrizations, vector_to_parameters

from sj_prune import PruningWrapper, methods
from tests.support.pruning_cases import (
    OPTIMIZERS,
    assert_masked,
    batch,
    build,
    loss_of,
    magnitude,
    same,
    slots_of,
    snapshot,
    train,
    wrapped,
)


def forward(model, *, training):
    model.train(training)
    functional.reset_net(model)
    with torch.no_grad():
        out = model(batch(90)[0])
    functional.reset_net(model)
    model.train()
    return out


def backward(model):
    loss_of(model, 91).backward()  # a forward with gradients


#: whoever looks
LOOKS = {
    "eval forward": lambda model: forward(model, training=False),
    "train forward": lambda model: forward(model, training=True),
    "forward and backward": backward,
    "sparsity": lambda model: model.sparsity(),
    "state_dict": lambda model: model.state_dict(),
    "report": lambda model: model.report(batch(90)[0]),
    "finalize": lambda model: model.finalize(),
}


# ---- who writes weights --------------------------------------------------------------------------


@torch.no_grad()
def copied(net):
    for p in net.parameters():
        p.copy_(torch.rand_like(p) + 0.1)


def through_data(net):
    for p in net.parameters():
        p.data.uniform_(0.1, 1.0)


def new_data(net):
    for p in net.parameters():
        p.data = torch.rand_like(p) + 0.1


def numpy_view(net):
    for p in net.parameters():
        p.detach().numpy()[...] += 0.5


def from_vector(net):
    vector = parameters_to_vector(net.parameters()).detach()
    vector_to_parameters(vector + 0.5, net.parameters())


def dense_checkpoint(net):
    net.load_state_dict(build(5).state_dict())


WRITERS = [copied, through_data, new_data, numpy_view, from_vector, dense_checkpoint]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("write", WRITERS)
def test_what_is_written_outside_is_undone_at_the_next_look(write, look):
    model, _ = wrapped(magnitude(), "adam")
    train(model, model.optimizers[0], 9)
    masks, net = model.masks.masks, model.net
    write(net)
    LOOKS[look](model)
    for name, mask in masks.items():
        assert not net.get_submodule(name).weight[~mask].any()
        assert net.get_submodule(name).weight[mask].any()


@pytest.mark.parametrize("look", [name for name in LOOKS if name != "finalize"])
def test_channels_are_silent_and_asleep_at_the_next_look(look):
    model, optimizer = wrapped(methods.FilterNorm(sparsity=0.5, interval=2, end=4))
    train(model, optimizer, 5)
    filters = model.net[3].weight.detach().clone()
    pruned = ~model.masks["4"]
    assert pruned.any()
    through_data(model.net)
    LOOKS[look](model)
    assert not model.net[4].weight[pruned].any()
    assert not model.net[4].bias[pruned].any()
    assert torch.equal(model.net[3].weight[pruned], filters[pruned])


def test_one_weight_written_by_hand_is_undone():
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 9)
    for name, mask in model.masks.items():
        weight = model.net.get_submodule(name).weight
        weight.data[tuple((~mask).nonzero()[-1])] = 1.0
    assert model.sparsity()["total"] == pytest.approx(0.8)
    assert_masked(model, optimizer)


def test_it_is_said_once(caplog):
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 9)
    for _ in range(3):
        through_data(model.net)
        forward(model, training=True)
        model.sparsity()
    said = [r for r in caplog.records if "outside of the attached" in r.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING]


def test_nothing_is_said_of_a_plain_training(caplog):
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 10)
    model.report(batch(90)[0])
    model.finalize()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("training", [True, False])
def test_a_pending_backward_survives_a_look(training):
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 9)
    loss = loss_of(model, 1)
    through_data(model.net)
    forward_state = functional.reset_net  # the graph of `loss` stays whole
    forward_state(model)
    forward(model, training=training)
    model.sparsity()
    loss.backward()
    assert model.net[3].weight.grad is not None


def test_parameters_that_stand_in_are_not_written():
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 9)
    dense = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    functional.reset_net(model)
    torch.func.functional_call(model, dense, (batch(1)[0],))
    assert all(bool((value == 1).all()) for value in dense.values())


def test_masks_that_bind_at_updates_only_are_left_alone():
    method = methods.SCA(sparsity=0.5, interval=2, end=4, enforce="update")
    model, optimizer = wrapped(method)
    train(model, optimizer, 5)
    through_data(model.net)
    model.sparsity()
    forward(model, training=False)
    assert model.net[4].weight.all()


# ---- hidden variables ----------------------------------------------------------------------------


def gradr():
    return methods.GradR(sparsity=0.8, alpha=1e-3, interval=2, end=9)


@pytest.mark.parametrize("then", ["look", "step"])
def test_hidden_variables_are_made_anew_from_written_weights(then):
    model, optimizer = wrapped(gradr(), "sgd")
    train(model, optimizer, 4)
    weight, state = model.net[3].weight, model.session.run.memory["3"]
    state["theta"][0] = -9.0  # dormant for good
    weight.data[0] = 0.0
    model.sparsity()
    assert (state["theta"][0] == -9.0).all()  # nobody wrote
    weight.data[0] = -0.5
    if then == "look":
        model.sparsity()
        assert torch.equal(state["theta"][0], torch.full_like(state["theta"][0], 0.5))
    train(model, optimizer, 1)
    assert (weight[0] < -0.3).all()
    assert torch.equal(weight, state["sign"] * state["theta"].clamp_min(0))


def test_sparsity_counts_zeros_where_it_emerges():
    model, optimizer = wrapped(gradr(), "sgd")
    train(model, optimizer, 4)
    model.net[3].weight.data[:3] = 0.0
    weights = [model.net.get_submodule(name).weight for name in model.masks]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert model.sparsity()["total"] == pytest.approx(zeros)


# ---- identity ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("look", LOOKS)
def test_a_parametrization_registered_later_is_named(change, steps, look):
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, steps)
    change(model.net[10])
    with pytest.raises(RuntimeError, match=r"layer '10'.*(parametrized by).*Norm|Orthogonal"):
        LOOKS[look](model)


def test_a_module_that_is_gone_is_named():
    model, _ = wrapped(magnitude())
    model.net[3] = nn.Sequential()
    with pytest.raises(RuntimeError, match="'3'"):
        model.sparsity()


def replace(net, name="3"):
    module = net.get_submodule(name)
    module.weight = nn.Parameter(module.weight.detach().clone())


def test_a_replaced_parameter_that_no_optimizer_holds_is_named_at_the_next_step():
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 3)
    replace(model.net)
    with pytest.raises(RuntimeError, match=r"\['3'\].*replaced"):
        train(model, optimizer, 1)


def test_a_replaced_parameter_with_a_new_optimizer_goes_on():
    model, optimizer = wrapped(magnitude())
    train(model, optimizer, 3)
    replace(model.net)
    model.release(optimizer)
    optimizer = torch.optim.Adam(model.parameters())
    model.attach(optimizer)
    train(model, optimizer, 7, start=4)
    assert model.step == 10
    assert_masked(model, optimizer)


# ---- gradients follow requires_grad --------------------------------------------------------------


def test_gradients_of_a_layer_unfrozen_later_are_hidden():
    model = PruningWrapper(build(), magnitude(end=4, interval=1))
    model.net[3].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.attach(optimizer)
    train(model, optimizer, 5)
    model.net[3].weight.requires_grad_(True)
    optimizer.zero_grad()
    loss_of(model, 9).backward()
    grad = model.net[3].weight.grad
    assert grad.any()
    assert not grad[~model.masks["3"]].any()


# ---- optimizers ----------------------------------------------------------------------------------


class Outer(torch.optim.Optimizer):
    """Steps through an inner optimizer, where slots live; `go` steps it without `step`."""

    def __init__(self, params):
        super().__init__(params, {})
        self.inner = torch.optim.Adam(self.param_groups, lr=0.01)

    def go(self):
        self.inner.step()

    def step(self, closure=None):
        self.go()


def test_slots_are_cleared_where_they_live():
    model = PruningWrapper(build(), magnitude())
    optimizer = Outer(list(model.parameters()))
    model.attach(optimizer)
    train(model, optimizer, 9)
    assert slots_of(optimizer.inner, model.net[3].weight)
    assert_masked(model, optimizer.inner)


def idle_words(caplog):
    return [r for r in caplog.records if "step() of the attached Outer" in r.getMessage()]


def test_an_optimizer_that_does_not_step_is_named_at_the_first_due_update(caplog):
    model = PruningWrapper(build(), magnitude(interval=3))
    optimizer = Outer(list(model.parameters()))
    model.attach(optimizer)
    for k in range(4):
        assert not idle_words(caplog)
        optimizer.zero_grad()
        loss_of(model, k).backward()
        optimizer.go()
    assert len(idle_words(caplog)) == 1


@pytest.mark.parametrize("end", ["report", "finalize"])
def test_an_optimizer_that_does_not_step_is_named_at_the_end(end, caplog):
    model = PruningWrapper(build(), magnitude(interval=300, end=900))
    optimizer = Outer(list(model.parameters()))
    model.attach(optimizer)
    for k in range(3):
        loss_of(model, k).backward()
    LOOKS[end](model)
    assert len(idle_words(caplog)) == 1


def test_accumulated_gradients_are_no_missing_step(caplog):
    model, optimizer = wrapped(magnitude(interval=1))
    for k in range(6):
        loss_of(model, k).backward()
    optimizer.step()
    assert not [r for r in caplog.records if "never run" in r.getMessage()]


# ---- the end, and the start ----------------------------------------------------------------------


def end_words(caplog):
    return [r.getMessage() for r in caplog.records if "finalize() returns" in r.getMessage()]


def test_finalize_without_an_optimizer_says_so(caplog):
    PruningWrapper(build(), magnitude()).finalize()
    (said,) = end_words(caplog)
    assert "no optimizer was ever attached" in said


def test_finalize_before_the_schedule_is_over_says_so(caplog):
    model, optimizer = wrapped(magnitude(interval=3))
    train(model, optimizer, 4)
    model.finalize()
    (said,) = end_words(caplog)
    assert "next update comes in step 6" in said


@pytest.mark.parametrize("how", ["by hand", "random start"])
def test_finalize_of_what_is_pruned_is_silent(how, caplog):
    method = methods.SET(sparsity=0.8, interval=2, end=6) if how != "by hand" else magnitude()
    model = PruningWrapper(build(), method)
    if how == "by hand":
        model.update_masks(0.5)
    model.finalize()
    assert not end_words(caplog)


def sparse_net():
    net = build(3)
    with torch.no_grad():
        for name in ("0", "3", "8", "10"):
            net.get_submodule(name).weight.mul_(
                torch.rand(net.get_submodule(name).weight.shape) < 0.1
            )
    return net


@pytest.mark.parametrize(
    "method", [magnitude, lambda **k: methods.GraNet(sparsity=0.8, interval=2, end=9, **k)]
)
def test_zeros_are_kept_from_the_first_step(method):
    net = sparse_net()
    zeros = {name: net.get_submodule(name).weight == 0 for name in ("0", "3", "8", "10")}
    total = sum(int(z.sum()) for z in zeros.values()) / 760
    model, optimizer = wrapped(method(start=methods.FromZeros()), net=net)
    for k in range(9):
        train(model, optimizer, 1, start=k)
        assert model.sparsity()["total"] == pytest.approx(total)
        assert_masked(model, optimizer)
        if k == 0:
            assert all(torch.equal(~model.masks[name], zero) for name, zero in zeros.items())


def test_silent_channels_are_kept_from_the_first_step():
    net = build()
    for p in net[4].parameters():
        p.data[:2] = 0.0
    method = methods.FilterNorm(sparsity=0.5, interval=2, end=8, start=methods.FromZeros())
    model, optimizer = wrapped(method, net=net)
    train(model, optimizer, 1)
    assert model.masks["4"].tolist() == [False, False, True, True, True, True]
    assert not net[4].weight[:2].any()


def test_a_layer_of_zeros_alone_cannot_start():
    net = build()
    net[3].weight.data.zero_()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="'3'.*FromZeros"):
        PruningWrapper(net, magnitude(start=methods.FromZeros()))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_hidden_variables_do_not_start_from_zeros():
    with pytest.raises(ValueError, match="start=Dense"):
        methods.GradR(start=methods.FromZeros())


def test_zeros_that_will_be_filled_are_counted(caplog):
    net = sparse_net()
    zeros = sum(int((net.get_submodule(n).weight == 0).sum()) for n in ("0", "3", "8", "10"))
    PruningWrapper(net, magnitude())
    assert [r for r in caplog.records if f"{zeros} of 760" in r.getMessage()]


def test_a_layer_left_with_next_to_nothing_is_named_once(caplog):
    net = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 200))
    net[0].weight.data.mul_(1e-3)
    model = PruningWrapper(net, magnitude(sparsity=0.9))
    for _ in range(2):
        model.update_masks(0.9)
    (said,) = [
        r.getMessage()
        for r in caplog.records
        if "next" not in r.getMessage() and "are left" in r.getMessage()
    ]
    assert "0 (1 of 20000)" in said


# ---- anything, in any order ----------------------------------------------------------------------

METHODS = {
    "Magnitude": magnitude,
    "SET": lambda: methods.SET(sparsity=0.7, interval=2, end=9),
    "RigL": lambda: methods.RigL(sparsity=0.7, interval=2, end=9),
    "GraNet": lambda: methods.GraNet(sparsity=0.8, interval=2, end=9),
    "Criticality": lambda: methods.Criticality(sparsity=0.8, regrow=0.25, interval=2, end=9),
    "FilterNorm": lambda: methods.FilterNorm(sparsity=0.5, interval=2, end=8),
    "RandomChannels": lambda: methods.RandomChannels(sparsity=0.5, interval=2, end=8, regrow=0.2),
    "GradR": gradr,
}
ACTS = ("step", "write", "swap", "freeze", "skip", "save", "load", "slots")


class Story:
    """One run, in which anybody may do anything between steps."""

    def __init__(self, method, optimizer):
        self.model, self.optimizer = wrapped(METHODS[method](), optimizer)
        self.emergent = method == "GradR"
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.steps = 0
        self.step()
        self.saved = self.save()

    def step(self, *, skipped=False):
        self.steps += 1
        self.optimizer.zero_grad()
        loss_of(self.model, self.steps).backward()
        if not skipped:
            self.optimizer.step()

    def save(self):
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def act(self, name, number):
        acts = {
            "step": lambda: self.step(),
            "skip": lambda: self.step(skipped=True),
            "write": lambda: WRITERS[number % len(WRITERS)](self.model.net),
            "swap": self.swap,
            "freeze": lambda: self.freeze((0, 3, 8, 10)[number % 4]),
            "save": self.keep,
            "load": self.load,
            "slots": self.fill_slots,
        }
        acts[name]()

    def swap(self):
        for p, mine in zip(self.model.parameters(), self.average, strict=True):
            p.data, mine.data = mine.data.clone(), p.data.clone()

    def freeze(self, index):
        weight = self.model.net[index].weight
        weight.requires_grad_(not weight.requires_grad)

    def keep(self):
        self.saved = self.save()

    def load(self):
        self.model.load_state_dict(self.saved[0])
        self.optimizer.load_state_dict(self.saved[1])

    def fill_slots(self):
        for state in self.optimizer.state.values():
            for slot in state.values():
                if isinstance(slot, torch.Tensor) and slot.ndim:
                    slot.fill_(0.5)

    def look(self, number):
        names = [name for name in LOOKS if name != "finalize"]
        name = names[number % len(names)]
        LOOKS[name](self.model)
        self.check(slots="forward" not in name)

    def check(self, *, slots):
        masks, held = self.model.masks, self.model.masks.parameters()
        if self.emergent:
            zeros = [held[name] == 0 for name in masks]
            if slots:  # nobody counts in a forward
                assert all(torch.equal(masks[n], ~z) for n, z in zip(masks, zeros, strict=True))
            return
        silent = masks.gated()
        for key, parameter in silent.items():
            pruned = masks.zero_pruned(key, torch.ones_like(parameter)) == 0
            assert not parameter[pruned].any(), key
            if slots:
                kept = slots_of(self.optimizer, parameter).values()
                assert not any(slot[pruned].any() for slot in kept), key
        assert masks.sparsity() == self.model.sparsity()


def tell(method, optimizer, acts):
    torch.manual_seed(0)
    story = Story(method, optimizer)
    for act, number, looks in acts:
        story.act(act, number)
        if looks:
            story.look(number)
    story.look(3)
    emergent = story.emergent
    kept, total = story.model.masks.masks, story.model.sparsity()["total"]
    net = story.model.finalize()
    for name, mask in kept.items():
        assert emergent or not net.get_submodule(name).weight[~mask].any()
    assert 0.0 <= total < 1.0


acts = st.tuples(st.sampled_from(ACTS), st.integers(0, 35), st.booleans())
stories = {
    "method": st.sampled_from(sorted(METHODS)),
    "optimizer": st.sampled_from(["sgd_momentum", "adam", "adamw", "rmsprop"]),
    "acts": st.lists(acts, min_size=3, max_size=10),
}
assert set(OPTIMIZERS) >= {"sgd_momentum", "adam", "adamw", "rmsprop"}


@given(**stories)
@settings(max_examples=30)
def test_masks_and_weights_never_part(method, optimizer, acts):
    tell(method, optimizer, acts)


@pytest.mark.slow
@given(**stories)
@settings(max_examples=2000)
def test_masks_and_weights_never_part_at_length(method, optimizer, acts):
    tell(method, optimizer, acts)


def test_a_network_that_is_wrapped_again_has_one_owner(caplog):
    """A notebook cell that runs a second time."""
    net = build()
    before, first = wrapped(magnitude(), net=net)
    train(before, first, 3)
    with caplog.at_level("WARNING", logger="sj_prune"):
        model, optimizer = wrapped(magnitude(), net=net)
    assert "wrapped already" in caplog.text
    with pytest.raises(RuntimeError, match="wrapped anew"):
        before.update_masks()
    train(model, optimizer, 9)
    assert len(before.history) == 1
    assert len(model.history) == 4
    state = snapshot(net)
    first.step()  # nothing of the wrapper before runs in it
    assert len(before.history) == 1
    assert not same(state, snapshot(net))
    PruningWrapper(model.finalize(), magnitude())
    assert caplog.text.count("wrapped already") == 1
