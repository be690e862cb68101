"""prune(): every method, what is preserved, what is given back when something fails."""

import copy
from dataclasses import replace

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune import methods
from tests.support.trained_cases import (
    CHANNELS,
    METHODS,
    WEIGHTS,
    N,
    Residual,
    T,
    assert_untouched,
    batches,
    evaluate,
    gradients_by_hand,
    lif,
    loss_of,
    snapshot,
    statistics_by_hand,
    trained_like,
)

UNITS = 8 + 10 + 12  # channels of `Residual`, the two coupled layers counted once


def silent_units(net):
    """Return how many of the units of a `Residual` are silent."""

    def zero(*parameters):
        return torch.stack([(p.flatten(1) if p.ndim > 1 else p[:, None]) == 0 for p in parameters])

    norms = zero(net.norm0.weight, net.norm0.bias, net.norm2.weight, net.norm2.bias)
    inner = zero(net.norm1.weight, net.norm1.bias)
    hidden = (net.fc1.weight == 0).all(1) & (net.fc1.bias == 0)
    return int(norms.all(0).sum()) + int(inner.all(0).sum()) + int(hidden.sum())


# ---- every method --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_weights_to_the_exact_sparsity(name, sparsity):
    net = trained_like()
    result, report = sj_prune.prune(net, batches(3), WEIGHTS[name](sparsity=sparsity), batches=2)
    assert result is net
    weights = [m.weight for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    total = sum(w.numel() for w in weights)
    kept = round((1 - sparsity) * total)
    assert report.totals["weights_kept"] == kept
    nonzero = sum(int(w.count_nonzero()) for w in weights)
    # What Criticality regrows starts at 0, as published.
    assert nonzero == kept if "Criticality" not in name else nonzero <= kept
    assert round(report.totals["sparsity"], 3) == round(1 - kept / total, 3)


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_channels_to_the_exact_sparsity(name, sparsity):
    net = trained_like()
    method = CHANNELS[name](sparsity=sparsity)
    result, report = sj_prune.prune(net, batches(3), method, batches=2)
    linear = method.structure.linear and not isinstance(method, methods.NetworkSlimming)
    units = UNITS if linear else 18
    kept = round((1 - sparsity) * units)
    assert result is net
    assert report.totals["channels"] == units
    assert report.totals["channels_kept"] == kept
    assert silent_units(net) == units - kept
    small = sj_prune.compact(net, batches(1)[0][0])
    x = torch.rand(T, N, 2, 6, 6, dtype=torch.float64)
    expected, found = (evaluate(copy.deepcopy(each).double(), x) for each in (net, small))
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert small.conv1.out_channels < 10


@pytest.mark.parametrize("name", METHODS)
def test_stock_network_that_loads_strictly(name):
    stock = trained_like()
    net = copy.deepcopy(stock)
    before = snapshot(net)
    sj_prune.prune(net, batches(2), METHODS[name]())
    assert_untouched(net, before, but=("values",))  # classes, hooks, attributes, modes, gradients
    assert {type(m) for m in net.modules() if isinstance(m, neuron.BaseNode)} == {neuron.LIFNode}
    fresh = Residual()
    fresh.load_state_dict(net.state_dict(), strict=True)
    x = batches(1, seed=5)[0][0]
    assert torch.equal(evaluate(fresh, x), evaluate(net, x))
    assert not torch.equal(evaluate(net, x), evaluate(stock, x))


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_network(name):
    found = []
    for seed in (0, 0, 1):
        net = trained_like()
        torch.manual_seed(seed + 17)  # the global generator does not matter
        sj_prune.prune(net, batches(2), METHODS[name](), seed=seed)
        found.append(torch.cat([p.flatten() for p in net.parameters()]))
    assert torch.equal(found[0], found[1])
    if name.startswith("Random"):
        assert not torch.equal(found[0], found[2])


class Squares(methods.Magnitude):
    """A user's own scoring method."""

    def plan(self):
        return replace(super().plan(), drop=lambda layer: layer.weight.square())


def test_a_users_method():
    net, report = sj_prune.prune(trained_like(), batches(1), Squares(sparsity=0.75))
    assert round(report.totals["sparsity"], 2) == 0.75
    other, _ = sj_prune.prune(trained_like(), batches(1), methods.Magnitude(sparsity=0.75))
    assert torch.equal(net.conv1.weight, other.conv1.weight)


def test_schedules_do_not_count():
    one, _ = sj_prune.prune(trained_like(), batches(1), methods.Magnitude(sparsity=0.75))
    method = methods.Magnitude(sparsity=0.75, interval=10, begin=5, end=100)
    other, _ = sj_prune.prune(trained_like(), batches(1), method)
    assert torch.equal(one.conv1.weight, other.conv1.weight)
    assert method.end == 100


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (methods.GradR(sparsity=0.8), "emerge"),
        (methods.SET(sparsity=0.8, interval=2, end=10), "trains sparse networks"),
        (methods.RigL(sparsity=0.8, interval=2, end=10), "trains sparse networks"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_methods_that_train_are_refused(method, message):
    net = trained_like()
    before = snapshot(net)
    with pytest.raises(ValueError, match=message):
        sj_prune.prune(net, batches(1), method)
    assert_untouched(net, before)


# ---- the right ones go ---------------------------------------------------------------------------


def kept_of(norm):
    return (norm.weight != 0) | (norm.bias != 0)


def lowest(score, number):
    return set(score.argsort()[:number].tolist())


def gone(norm):
    return set((~kept_of(norm)).nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("method", "score"),
    [
        (methods.APoZ(sparsity=0.5), lambda s: s["firing_rate"]),
        (
            methods.SCA(sparsity=0.5, regrow=0.0, allocation=sj_prune.masks.Uniform()),
            lambda s: s["abs_potential"] + s["firing_rate"],
        ),
        (
            methods.SCA(
                sparsity=0.5, regrow=0.0, score="abs_charge", allocation=sj_prune.masks.Uniform()
            ),
            lambda s: s["abs_charge"],
        ),
        (
            methods.SCA(
                sparsity=0.5, regrow=0.0, score="criticality", allocation=sj_prune.masks.Uniform()
            ),
            lambda s: s["criticality_max"],
        ),
    ],
    ids=["APoZ", "SCA", "SCA-charge", "SCA-criticality"],
)
def test_activity_on_all_batches_decides(method, score):
    net, found = trained_like(), batches(4)
    by_hand = score(statistics_by_hand(net, found[:3])["node1"])
    assert by_hand.unique().numel() == 10
    other = score(statistics_by_hand(net, found[:1])["node1"])
    sj_prune.prune(net, found, method, batches=3)
    assert gone(net.norm1) == lowest(by_hand, 5)
    assert not torch.equal(by_hand, other)


def test_taylor_is_the_mean_of_squares_over_batches():
    net, found = trained_like(), batches(4)
    gates = torch.stack(
        [
            g["norm1.weight"] * net.norm1.weight + g["norm1.bias"] * net.norm1.bias
            for g in gradients_by_hand(net, found)
        ]
    )
    mean_of_squares, square_of_mean = gates.square().mean(0), gates.mean(0).square()
    assert lowest(mean_of_squares, 5) != lowest(square_of_mean, 5)  # or it would prove nothing
    sj_prune.prune(net, found, methods.TaylorChannels(sparsity=0.5))
    assert gone(net.norm1) == lowest(mean_of_squares, 5)


def test_gradient_growth_reads_the_mean_gradient():
    net, found = trained_like(), batches(4)
    grads = torch.stack([g["norm1.weight"] for g in gradients_by_hand(net, found)])
    method = methods.FilterNorm(sparsity=0.5, regrow=0.4, structure=sj_prune.masks.Channels())
    norms = net.conv1.weight.abs().sum((1, 2, 3))
    # 5 of 10 are kept, int(0.4 * 5) = 2 of them grown among the 7 others.
    survivors = set(range(10)) - lowest(norms, 7)
    others = [i for i in range(10) if i not in survivors]
    by_mean = sorted(others, key=lambda i: -abs(grads.mean(0)[i]))[:2]
    by_last = sorted(others, key=lambda i: -abs(grads[-1][i]))[:2]
    assert set(by_mean) != set(by_last)
    sj_prune.prune(net, found, method)
    assert set(kept_of(net.norm1).nonzero().flatten().tolist()) == survivors | set(by_mean)


# ---- what is preserved ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FilterNorm-regrow", "TaylorChannels", "GraNet", "APoZ"])
def test_modes_and_gradients_stay(name):
    net = trained_like(drop=0.5)
    net.train()
    net.norm1.eval()
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    net.fc2.bias.grad = None
    net.stem.weight.requires_grad_(name != "APoZ")
    before = snapshot(net)
    sj_prune.prune(net, batches(2), METHODS[name]())
    assert_untouched(net, before, but=("values",))


def test_dropout_is_off_while_calibrating():
    plain, dropping = trained_like(), trained_like(drop=0.9)
    for net in (plain, dropping):
        sj_prune.prune(net.train(), batches(3), methods.TaylorChannels())
    assert torch.equal(plain.fc1.weight, dropping.fc1.weight)


@pytest.mark.parametrize("name", ["Magnitude", "TaylorChannels", "SCA"])
def test_inside_no_grad(name):
    one, other = trained_like(), trained_like()
    sj_prune.prune(one, batches(2), METHODS[name]())
    with torch.no_grad():
        sj_prune.prune(other, batches(2), METHODS[name]())
    assert torch.equal(one.conv1.weight, other.conv1.weight)


def test_only_the_first_batches_are_drawn():
    drawn = []

    def loader():
        for batch in batches(9):
            drawn.append(len(drawn))
            yield batch

    sj_prune.prune(trained_like(), loader(), methods.APoZ(), batches=4)
    assert drawn == [0, 1, 2, 3]


def test_a_loader_shorter_than_asked():
    one, other = trained_like(), trained_like()
    sj_prune.prune(one, batches(3), methods.APoZ(), batches=100)
    sj_prune.prune(other, batches(3), methods.APoZ(), batches=3)
    assert torch.equal(one.norm1.weight, other.norm1.weight)


@pytest.mark.parametrize("kind", ["tensor", "list", "alone", "nested", "dataset"])
def test_forms_of_batches(kind):
    found = batches(2)
    x = torch.cat([x for x, _ in found], 1).transpose(0, 1)

    def collate(items):
        return (torch.stack([i[0] for i in items], 1),)

    forms = {
        "tensor": [x for x, _ in found],
        "list": [[x, y] for x, y in found],
        "alone": [(x,) for x, _ in found],
        "nested": [((x,), y) for x, y in found],
        "dataset": torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x), batch_size=N, collate_fn=collate
        ),
    }
    net, expected = trained_like(), trained_like()
    sj_prune.prune(expected, found, methods.APoZ())
    sj_prune.prune(net, forms[kind], methods.APoZ())
    assert torch.equal(net.norm1.weight, expected.norm1.weight)


def test_double_precision():
    net, found = trained_like(dtype=torch.float64), batches(2, dtype=torch.float64)
    net, report = sj_prune.prune(net, found, methods.TaylorChannels())
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert report.totals["channels_kept"] == 15


def test_a_network_that_converts_its_input():
    class Converts(Residual):
        def forward(self, x):
            return super().forward(2 * x.float() / 255)

    found = [((127 * x).to(torch.uint8), y) for x, y in batches(2)]
    net, report = sj_prune.prune(trained_like(Converts()), found, methods.SCA(sparsity=0.4))
    assert report.totals["channels_kept"] == round(0.6 * 18)


def test_renormalizing_is_optional():
    net, found = trained_like(), batches(2)
    before = [b.clone() for b in net.buffers()]
    sj_prune.prune(net, found, methods.FilterNorm(), renormalize=False)
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    other = trained_like()
    sj_prune.prune(other, found, methods.FilterNorm())
    assert not torch.equal(other.norm2.running_mean, net.norm2.running_mean)
    assert int(other.norm2.num_batches_tracked) == 2
    # On the pruned network: estimating once more changes nothing.
    again, kept = other.norm2.running_mean.clone(), kept_of(other.norm2)
    sj_prune.renormalize(other, [(x,) for x, _ in found])
    torch.testing.assert_close(other.norm2.running_mean[kept], again[kept], rtol=1e-5, atol=1e-6)


def test_skipped_layers_stay():
    net = trained_like()
    weight = net.conv1.weight.clone()
    sj_prune.prune(net, batches(1), methods.Magnitude(sparsity=0.9), skip=("conv1",))
    assert torch.equal(net.conv1.weight, weight)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("name", ["Magnitude", "FilterNorm-1"])
def test_before_is_the_dense_network_on_its_own_spikes(name, renormalize):
    net, found = trained_like(), batches(2)
    dense = sj_prune.cost.measure(copy.deepcopy(net), found[0][0]).values()
    _, report = sj_prune.prune(net, found, METHODS[name](), renormalize=renormalize)
    for kind in ("synops", "macs", "energy"):
        assert report.totals[f"{kind}_dense"] == pytest.approx(
            sum(getattr(one, kind) for one in dense)
        )
    assert report.totals["synops"] < report.totals["synops_dense"]
    assert "measured before it was pruned" in str(report)


def test_report_is_of_the_network_that_is_returned():
    net, report = sj_prune.prune(trained_like(), batches(2), methods.FilterNorm(sparsity=0.5))
    small = sj_prune.compact(net, batches(1)[0][0])
    assert report.totals["parameters_kept"] == sum(p.numel() for p in small.parameters())
    assert "=>" in str(report)
    assert isinstance(sj_prune.prune(trained_like(), batches(1), methods.APoZ()), sj_prune.Pruned)


# ---- the hosts -----------------------------------------------------------------------------------


class Own(neuron.LIFNode):
    """A user's subclass: left alone, and cut in eval mode on 0.0.0.0.14."""


@pytest.mark.parametrize("name", ["TaylorChannels", "FilterNorm-regrow", "GraNet"])
def test_gradients_pass_through_other_neurons_in_eval_mode(name):
    class Mixed(Residual):
        def __init__(self):
            super().__init__()
            self.node3 = Own(tau=4 / 3, decay_input=False, step_mode="m")

    net, found = trained_like(Mixed()), batches(3)
    twin = copy.deepcopy(net)
    seen = []

    def loss(output, target):
        seen.append(net.training)
        return loss_of(output, target)

    sj_prune.prune(net, found, METHODS[name](), loss=loss)
    assert seen == [False] * 3
    assert type(net.node3) is Own
    assert not net.node3.training
    if name == "TaylorChannels":
        gates = [
            g["norm1.weight"] * twin.norm1.weight + g["norm1.bias"] * twin.norm1.bias
            for g in gradients_by_hand(twin, found)
        ]
        assert gone(net.norm1) == lowest(torch.stack(gates).square().mean(0), 5)


# ---- errors --------------------------------------------------------------------------------------


def bad_loss(output, target):
    raise ArithmeticError("loss")


def bad_fine_tune(model):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.attach(optimizer)
    x, y = batches(1)[0]
    functional.reset_net(model)
    loss_of(model(x), y).backward()
    optimizer.step()
    raise KeyboardInterrupt


def moves_and_raises(model):
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    raise ArithmeticError("moved")


def rebinds_and_raises(model):
    model.net.norm1.register_buffer("running_mean", torch.zeros(10))
    model.net.norm1.weight = nn.Parameter(torch.zeros(10))
    raise ArithmeticError("rebound")


def finalizes(model):
    model.finalize()


def raises_later():
    yield batches(1)[0]
    raise OSError("disk")


TAYLOR = methods.TaylorChannels(sparsity=0.5)
FAILURES = {
    "budget name": (ValueError, {"budget": {"flops": 0.5}}),
    "budget range": (ValueError, {"budget": {"macs": 0.0}}),
    "budget sparsity": (ValueError, {"budget": {"sparsity": 1.0}}),
    "budget type": (TypeError, {"budget": 0.5}),
    "budget out of reach": (ValueError, {"budget": {"macs": 0.001}}),
    "budget empties": (ValueError, {"budget": {"sparsity": 0.99}}),
    "empty loader": (ValueError, {"loader": []}),
    "loader of numbers": (ValueError, {"loader": [1, 2]}),
    "loader of dicts": (ValueError, {"loader": [{"x": 1}]}),
    "loader of triples": (ValueError, {"loader": [(1, 2, 3)]}),
    "loader of strings": (ValueError, {"loader": ["xy"]}),
    "loader is none": (TypeError, {"loader": 3}),
    "loader raises": (OSError, {"loader": raises_later()}),
    "wrong shape": (ValueError, {"loader": [(torch.rand(T, N, 3, 6, 6), torch.zeros(N).long())]}),
    "no time": (ValueError, {"loader": [(x[0], y) for x, y in batches(2)]}),
    "wrong type": (ValueError, {"loader": batches(1, dtype=torch.float64)}),
    "wrong shape later": (
        Exception,
        {"loader": [*batches(1), (torch.rand(T, N, 2, 9, 9), torch.zeros(N).long())]},
    ),
    "no targets": (ValueError, {"loader": [x for x, _ in batches(2)]}),
    "targets out of range": (
        IndexError,
        {"loader": [(x, y + 100) for x, y in batches(2)]},
    ),
    "loss raises": (ArithmeticError, {"loss": bad_loss}),
    "loss is no scalar": (RuntimeError, {"loss": lambda output, target: output}),
    "loss is not finite": (ValueError, {"loss": lambda output, target: output.sum() * torch.inf}),
    "loss is no function": (TypeError, {"loss": "cross entropy"}),
    "fine_tune raises": (KeyboardInterrupt, {"fine_tune": bad_fine_tune}),
    "fine_tune moves": (ArithmeticError, {"fine_tune": moves_and_raises}),
    "fine_tune rebinds": (ArithmeticError, {"fine_tune": rebinds_and_raises}),
    "fine_tune finalizes": (RuntimeError, {"fine_tune": finalizes}),
    "fine_tune is no function": (TypeError, {"fine_tune": 3}),
    "batches": (ValueError, {"batches": 0}),
    "batches type": (TypeError, {"batches": 1.5}),
    "skip": (ValueError, {"skip": ("nothing",)}),
    "seed": (TypeError, {"seed": "zero"}),
    "method": (TypeError, {"method": methods.TaylorChannels}),
    "sparsity": (ValueError, {"method": methods.TaylorChannels(sparsity=0.97)}),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FAILURES)
def test_network_comes_back_when_something_fails(name):
    error, changed = FAILURES[name]
    net = trained_like()
    functional.reset_net(net.train())
    loss_of(net(batches(1, seed=3)[0][0]), batches(1)[0][1]).backward()  # with state and gradients
    net.norm2.eval()
    before = snapshot(net)
    arguments = {"loader": batches(3), "method": TAYLOR, **changed}
    with pytest.raises(error):
        sj_prune.prune(net, arguments.pop("loader"), arguments.pop("method"), **arguments)
    assert_untouched(net, before)


def test_batches_without_time_are_named():
    net = trained_like()
    images = [(x[0], y) for x, y in batches(2)]
    message = (
        r"Expected inputs \[T, N, C, H, W\], time first, but got shape \(6, 2, 6, 6\).*without "
        r"time: repeat it along T, x\.unsqueeze\(0\)\.repeat\(T, 1, 1, 1, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        sj_prune.prune(net, images, TAYLOR)
    repeated = [(x.unsqueeze(0).repeat(3, 1, 1, 1, 1), y) for x, y in images]
    sj_prune.prune(net, repeated, TAYLOR)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="yields inputs alone"):
        sj_prune.prune(trained_like(), [x for x, _ in batches(1)], TAYLOR)
    with pytest.raises(TypeError, match="Expected net to be"):
        sj_prune.prune(3, batches(1), TAYLOR)
    with pytest.raises(ValueError, match="got dict"):
        sj_prune.prune(trained_like(), [{"x": 1}], TAYLOR)


def test_a_pending_backward_pass_survives_a_failure():
    net = trained_like().train()
    x, y = batches(1)[0]
    loss = loss_of(net(x), y)
    with pytest.raises(ArithmeticError):
        sj_prune.prune(net, batches(1), TAYLOR, loss=bad_loss)
    loss.backward()
    assert net.stem.weight.grad.any()


# ---- fine-tuning ---------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "name", ["Magnitude", "FilterNorm-1", "SCA", "SCA-update", "TaylorChannels"]
)
def test_masks_stay_on(name, optimizer):
    net, losses, kept = trained_like(), [], {}

    def fine_tune(model):
        made = OPTIMIZERS[optimizer](model.parameters())
        model.attach(made)
        model.train()
        kept.update(model.masks.masks)
        weights = {k: p.detach().clone() for k, p in model.net.named_parameters()}
        for _ in range(4):
            for x, y in batches(2):
                functional.reset_net(model)
                loss = loss_of(model(x), y)
                made.zero_grad()
                loss.backward()
                made.step()
                losses.append(loss.item())
                for key, mask in model.masks.masks.items():
                    assert torch.equal(mask, kept[key])
                    module = model.net.get_submodule(key)
                    assert not module.weight[~mask].any()
                    assert name in WEIGHTS or not module.bias[~mask].any()
        assert not torch.equal(weights["conv1.weight"], net.conv1.weight)
        made_here.append(made)

    made_here = []
    result, report = sj_prune.prune(net, batches(2), METHODS[name](), fine_tune=fine_tune)
    assert losses[-1] < losses[0]
    for key, mask in kept.items():
        weight = result.get_submodule(key).weight
        assert not weight[~mask].any()
        assert weight[mask].any()
    assert not all(mask.all() for mask in kept.values())
    assert report.totals["synops"] > 0
    # Nothing of the pruner stays on the optimizer.
    assert not made_here[0]._optimizer_step_pre_hooks
    assert not made_here[0]._optimizer_step_post_hooks


def test_binding_at_updates_only_makes_no_difference_at_once(caplog):
    """No update follows: what is fine-tuned is what is returned, and as SCA that always binds."""

    def tune(model):
        made = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        model.attach(made)
        model.train()
        for x, y in batches(8):
            functional.reset_net(model)
            made.zero_grad()
            loss_of(model(x), y).backward()
            made.step()
        model.eval()
        tuned.append(evaluate(model.net, batches(1)[0][0]))

    tuned, results = [], []
    for name in ("SCA", "SCA-update"):
        method = METHODS[name](sparsity=0.4, regrow=0.2)
        net, _ = sj_prune.prune(trained_like(), batches(2), method, fine_tune=tune)
        assert torch.equal(evaluate(net.eval(), batches(1)[0][0]), tuned[-1]), name
        results.append(net.state_dict())
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
    assert not caplog.records


def test_without_an_attached_optimizer_the_result_is_masked_all_the_same(caplog):
    def fine_tune(model):
        made = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
        for x, y in batches(3):
            functional.reset_net(model)
            made.zero_grad()
            loss_of(model(x), y).backward()
            made.step()
        with torch.no_grad():
            model.net.norm1.bias.add_(1.0)

    net, report = sj_prune.prune(
        trained_like(), batches(2), methods.FilterNorm(sparsity=0.5), fine_tune=fine_tune
    )
    assert "attached no optimizer" in caplog.text
    assert silent_units(net) == 15
    small = sj_prune.compact(net, batches(1)[0][0])
    assert report.totals["parameters_kept"] == sum(p.numel() for p in small.parameters())


def test_report_comes_after_fine_tuning():
    def fine_tune(model):
        with torch.no_grad():
            for norm in (model.net.norm0, model.net.norm1, model.net.norm2):
                norm.bias.fill_(-5.0)  # no more spikes there

    net, report = sj_prune.prune(
        trained_like(), batches(1), methods.Magnitude(sparsity=0.5), fine_tune=fine_tune
    )
    rows = {row.name: row for row in report.rows}
    assert rows["conv1"].firing_rate == 0
    assert rows["conv1"].synops == 0


def test_gradients_of_fine_tuning_are_the_users():
    def fine_tune(model):
        x, y = batches(1)[0]
        loss_of(model(x), y).backward()

    net = trained_like()
    sj_prune.prune(net, batches(1), methods.TaylorChannels(), fine_tune=fine_tune)
    assert net.fc2.weight.grad.any()


def test_a_network_in_single_step_mode():
    """Scores that read no neurons need no multi-step mode."""
    net = nn.Sequential(
        layer.Conv2d(2, 8, 3, padding=1),
        layer.BatchNorm2d(8),
        lif(),
        layer.Flatten(),
        layer.Linear(8 * 36, 5),
    )
    x = torch.rand(N, 2, 6, 6)
    y = torch.zeros(N, dtype=torch.long)
    net, report = sj_prune.prune(net.eval(), [(x, y)] * 2, methods.TaylorChannels(sparsity=0.5))
    assert report.totals["channels_kept"] == 4
