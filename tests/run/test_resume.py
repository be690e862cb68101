"""Training goes on bit-identically after a checkpoint; foreign checkpoints are refused whole."""

import copy
import io
import time

import pytest
import torch

from sj_prune import PruningWrapper, methods
from sj_prune.masks import ERK, NM, Uniform
from tests.support import killed_run
from tests.support.processes import forks
from tests.support.pruning_cases import (
    OPTIMIZERS,
    build,
    criticality,
    frozen,
    loss_of,
    magnitude,
    rigl,
    same,
    same_state,
    snapshot,
    train,
    wrapped,
)

TIMING = {"interval": 4, "end": 12}
METHODS = {
    "Magnitude": lambda: magnitude(**TIMING),
    "Random": lambda: methods.Random(sparsity=0.8, **TIMING),
    "Criticality": lambda: criticality(batches=3, regrow=0.4, **TIMING),
    "SET": lambda: methods.SET(sparsity=0.7, **TIMING),
    "RigL": lambda: rigl(**TIMING),
    "GraNet": lambda: methods.GraNet(sparsity=0.8, **TIMING),
    "STDS": lambda: methods.STDS(ceiling=0.3, **TIMING),
    "DeepR": lambda: methods.DeepR(sparsity=0.7, l1=4.0, temperature=0.05, **TIMING),
    "DeepR-soft": lambda: methods.DeepR(soft=True, l1=0.3, temperature=0.3, **TIMING),
    "UPR": lambda: methods.UPR(strength=1e-3, initial=0.05, neurons=0.05, gate_lr=0.02, **TIMING),
    "ADMM": lambda: methods.ADMM(sparsity=0.8, rho=0.5, **TIMING),
    "RCMO": lambda: methods.RCMO(sparsity=0.8, lr_y=10.0, lr_z=1e5, interval=1, end=12),
    "Criticality-NM": lambda: criticality(sparsity=0.5, structure=NM(1, 2), **TIMING),
    "RigL-NM": lambda: rigl(sparsity=0.5, structure=NM(1, 2), allocation=Uniform(), **TIMING),
    "LAMP": lambda: methods.LAMP(sparsity=0.8, **TIMING),
    "CQP": lambda: methods.CQP(sparsity=0.8, batches=3, **TIMING),
    "NDSNN": lambda: methods.NDSNN(sparsity=0.8, initial=0.5, **TIMING),
    "DPAPSynapses": lambda: methods.DPAPSynapses(patience=1.0, **TIMING),
    "GradR": lambda: methods.GradR(sparsity=0.9, alpha=0.05, **TIMING),
}
ONCE = ("ADMM", "RCMO")
STEPS = 13


def save(model, optimizer, position):
    file = io.BytesIO()
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "position": position},
        file,
    )
    return file.getvalue()


def resume(data, name, optimizer, order="attach, load"):
    """Return fresh objects, as another process would make them, with the checkpoint in."""
    state = torch.load(io.BytesIO(data), weights_only=True)
    model = PruningWrapper(build(seed=99), METHODS[name](), seed=77)
    fresh = OPTIMIZERS[optimizer](model.parameters())
    if order == "attach, load":
        model.attach(fresh)
        model.load_state_dict(state["model"])
        fresh.load_state_dict(state["optimizer"])
    else:
        model.load_state_dict(state["model"])
        fresh.load_state_dict(state["optimizer"])
        model.attach(fresh)
    return model, fresh, state["position"] + 1


def everything(model, optimizer):
    return {
        "masks": model.masks.masks,
        "weights": snapshot(model.net),
        "optimizer": frozen(optimizer)["state"],
        "history": [record.to_dict() for record in model.history],
        "step": model.step,
        "memory": copy.deepcopy((model.session.run.memory, model.session.run.network_memory)),
        "statistics": [node.activity.state_dict() for node in model.nodes.values()],
    }


POSITIONS = (0, 1, 2, 3, 4, 5, 7, 8, 10, 12)
ORDERS = ("attach, load", "load, attach")


@pytest.mark.parametrize(
    "part", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["one half", "the other half"]
)
@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam"])
@pytest.mark.parametrize("name", METHODS)
def test_resumed_run_is_the_uninterrupted_one(name, optimizer, part):
    """Saved at every step: before, at and after updates, and in the middle of a window.

    Half of the positions go with one order, the others with the other one, and the other way round
    with the other optimizer.
    """
    model, opt = wrapped(METHODS[name](), optimizer)
    saved = {0: save(model, opt, 0)}
    train(model, opt, STEPS, after=lambda k: saved.update({k: save(model, opt, k)}))
    expected = everything(model, opt)
    number = 1 if name in ONCE else 3
    assert len({record["step"] for record in expected["history"]} - {0}) == number
    for number, position in enumerate(POSITIONS, start=part + (optimizer == "adam")):
        order = ORDERS[number % 2]
        other, fresh, start = resume(saved[position], name, optimizer, order)
        train(other, fresh, STEPS - position, start=start)
        got = everything(other, fresh)
        for key, value in expected.items():
            assert same_state(value, got[key]), (position, order, key)


def test_middle_of_a_window_was_among_them():
    """The checkpoint after step 2 holds the first batch of three, which the update needs."""
    model, opt = wrapped(METHODS["Criticality"]())
    train(model, opt, 2)
    other, _, start = resume(save(model, opt, 2), "Criticality", "sgd_momentum")
    assert [node.activity.count for node in other.nodes.values()] == [6, 6, 6]
    assert all(node.recording for node in other.nodes.values())
    loss_of(other, start)  # this forward also learns the topology anew
    assert [node.activity.count for node in other.nodes.values()] == [12, 12, 12]


@pytest.mark.parametrize("position", [0, 2, 5])
@pytest.mark.parametrize("name", METHODS)
def test_loading_rewinds_a_running_wrapper(name, position):
    model, opt = wrapped(METHODS[name](), "adam")
    train(model, opt, position)
    data = torch.load(io.BytesIO(save(model, opt, position)), weights_only=True)
    train(model, opt, 5, start=position + 1)
    expected = everything(model, opt)
    train(model, opt, 3, start=position + 6)
    model.load_state_dict(data["model"])
    opt.load_state_dict(data["optimizer"])
    train(model, opt, 5, start=position + 1)
    got = everything(model, opt)
    # Sums that were not allocated yet when saved count for zeros.
    wrong = [key for key in expected if not same_state(expected[key], got[key])]
    assert wrong in ([], ["statistics"] if position == 0 else [])


def test_killed_process(tmp_path):
    """A run is killed for real, at an arbitrary place; what it left on disk goes on."""
    path = tmp_path / "checkpoint.pt"
    process = forks().Process(target=killed_run.main, args=(str(path),))
    process.start()
    try:
        deadline = time.monotonic() + 120
        while not path.exists() or torch.load(path, weights_only=True)["position"] < 4:
            assert process.is_alive(), "the run ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    state = torch.load(path, weights_only=True)

    def method():
        return criticality(interval=3, end=12, batches=2, regrow=0.4)

    other, fresh = wrapped(method(), "adam", seed=5, net=build(seed=8))
    other.load_state_dict(state["model"])
    fresh.load_state_dict(state["optimizer"])
    last = max(12, state["position"] + 2)
    train(other, fresh, last - state["position"], start=state["position"] + 1)
    model, opt = wrapped(method(), "adam")
    train(model, opt, last)
    assert same(model.masks.masks, other.masks.masks)
    assert same(snapshot(model.net), snapshot(other.net))
    assert model.history == other.history


def test_weights_load_into_a_stock_network():
    model, opt = wrapped(magnitude())
    train(model, opt, 4)
    state = model.state_dict()
    assert [key for key in state if not key.startswith("net.")] == ["_extra_state"]
    stock = build(seed=4)
    weights = {key.removeprefix("net."): v for key, v in state.items() if key != "_extra_state"}
    stock.load_state_dict(weights, strict=True)
    assert same(snapshot(stock), snapshot(model.net))
    # The other way: a trained dense network is loaded into .net.
    other = PruningWrapper(build(), magnitude())
    other.net.load_state_dict(stock.state_dict(), strict=True)
    assert same(snapshot(other.net), snapshot(stock))


def test_checkpoint_does_not_change_with_the_run():
    model, opt = wrapped(METHODS["GradR"]())
    train(model, opt, 3)
    state = {k: v for k, v in model.state_dict().items() if k == "_extra_state"}
    before = torch.load(io.BytesIO(save(model, opt, 3)), weights_only=True)["model"]
    train(model, opt, 3, start=4)
    assert same_state(state["_extra_state"], before["_extra_state"])


def test_loading_by_assignment_keeps_gradients_masked():
    """``assign=True`` puts other parameters in: masks and hooks have to be theirs."""
    model, opt = wrapped(magnitude())
    train(model, opt, 4)
    state = torch.load(io.BytesIO(save(model, opt, 4)), weights_only=True)
    other = PruningWrapper(build(seed=3), magnitude())
    other.load_state_dict(state["model"], assign=True)
    loss_of(other, 5).backward()
    for n, mask in other.masks.items():
        assert not mask.all()
        assert not other.masks.weight(n).grad[~mask].any()


# ---- refusals ------------------------------------------------------------------------------------


def wider():
    net = build()
    net[8] = type(net[8])(54, 9)
    net[10] = type(net[10])(9, 5)
    return net


def deeper():
    net = build()
    net.append(type(net[8])(5, 5))
    return net


FOREIGN = {
    "another method": (lambda: wrapped(rigl())[0], r"method\.name = 'Magnitude' .* 'RigL'"),
    "sparsity": (
        lambda: wrapped(magnitude(sparsity=0.7))[0],
        r"method\.sparsity = 0\.8 but it has 0\.7",
    ),
    "interval": (lambda: wrapped(magnitude(interval=3))[0], r"method\.interval = 2 .* 3"),
    "allocation": (
        lambda: wrapped(magnitude(allocation=ERK()))[0],
        r"method\.allocation\.class = '[\w.]*Global' but it has '[\w.]*ERK'",
    ),
    "wider": (lambda: wrapped(magnitude(), net=wider())[0], r"shape \(8, 54\) at 'net\.8\.weight'"),
    "deeper": (lambda: wrapped(magnitude(), net=deeper())[0], r"net\.11\.weight.*architecture"),
    "skip": (lambda: wrapped(magnitude(), skip=("3",))[0], r"\(6, 4, 3, 3\) at '3' .* None"),
    "bare network": (build, r"bare network \(load that into model\.net\)"),
    "neurons": (
        lambda: wrapped(magnitude(), net=build(spiking=False))[0],
        "statistics of neuron layer '2'",
    ),
}


def damaged(change):
    def state():
        model, _ = wrapped(magnitude())
        loaded = torch.load(io.BytesIO(save(model, _, 0)), weights_only=True)["model"]
        change(loaded)
        return loaded

    return state


DAMAGED = {
    "format": (damaged(lambda s: s["_extra_state"].update(format=99)), "format 4 but got 99"),
    "no dict": (damaged(lambda s: s.update(_extra_state=[1])), "format 4 but got list"),
    "lost": (damaged(lambda s: s["_extra_state"].pop("generator")), r"\['generator'\].*damaged"),
    "lost key": (damaged(lambda s: s.pop("net.3.weight")), r"lacks \['net\.3\.weight'\]"),
    "lost state": (damaged(lambda s: s.pop("_extra_state")), r"lacks \['_extra_state'\]"),
    "foreign key": (damaged(lambda s: s.update(x=torch.ones(1))), r"has \['x'\] beside them"),
    "no mapping": (lambda: [1, 2], "Expected state_dict to be a mapping but got list"),
}


@pytest.mark.parametrize("case", [*FOREIGN, *DAMAGED])
def test_foreign_checkpoint_changes_nothing(case):
    # Settings of the checkpoint's maker are the opposite way round for the case of no neurons.
    make, message = {**FOREIGN, **DAMAGED}[case]
    made = make()
    state = made.state_dict() if isinstance(made, torch.nn.Module) else made
    if case == "neurons":
        state, receiver = wrapped(magnitude())[0].state_dict(), made
        opt = receiver.optimizers[0]
    else:
        receiver, opt = wrapped(magnitude())
    train(receiver, opt, 3)
    before, optimizer = everything(receiver, opt), frozen(opt)
    with pytest.raises(TypeError if case == "no mapping" else ValueError, match=message):
        receiver.load_state_dict(state)
    assert same_state(before, everything(receiver, opt))
    assert same_state(optimizer, frozen(opt))
    train(receiver, opt, 3, start=4)
    assert receiver.step == 6


@pytest.mark.parametrize("name", ["GradR", "STDS"])
def test_checkpoint_of_another_precision_is_cast(name):
    """As torch casts weights; a hidden variable goes along."""
    method = getattr(methods, name)(end=100)
    model, optimizer = wrapped(method)
    train(model, optimizer, 3)
    other = PruningWrapper(build().double(), method)
    other.load_state_dict(model.state_dict())
    assert other.session.run.memory.keys() == model.session.run.memory.keys()
    for layer, tensors in model.session.run.memory.items():
        theta = other.session.run.memory[layer]["theta"]
        assert theta.dtype == torch.float64
        torch.testing.assert_close(theta, tensors["theta"].double(), rtol=1e-6, atol=1e-8)
    again = PruningWrapper(build(), method)
    again.load_state_dict(other.state_dict())
    for layer, tensors in model.session.run.memory.items():
        theta = again.session.run.memory[layer]["theta"]
        torch.testing.assert_close(theta, tensors["theta"], rtol=1e-6, atol=1e-8)
