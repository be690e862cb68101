"""All analyses say the same of a network in whatever form it comes, and leave it as it is."""

import pytest
import torch
from spikingjelly.activation_based import functional

import sj_prune
from sj_prune import analysis, methods
from tests.support.analysis_cases import (
    FORMS,
    Repeating,
    generators,
    in_training,
    network,
    wrapped,
)
from tests.support.example_cases import same
from tests.support.trained_cases import T, assert_untouched, batches, snapshot

LOADER = batches(3)


def everything(net, loader=LOADER, forward=None):
    """Return what all analyses say, without the names of modules."""
    clusters = analysis.clusters(net, loader, loader[:2], forward=forward)
    noise = analysis.robustness(
        net, loader, inputs=(0.5,), parameters=(0.5,), repeats=2, forward=forward
    )
    method = methods.FilterNorm()
    shapley = analysis.shapley(
        net, loader, method, permutations=3, batches=1, forward=forward, groups=None
    )
    values = [torch.cat(list(v.values())) for v in (shapley.values, shapley.scores)]
    return clusters.rows, noise.rows, [v.tolist() for v in values]


@pytest.fixture(scope="module")
def expected():
    return everything(network())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(expected, form):
    net, forward = FORMS[form](network())
    inner, wraps = getattr(net, "net", net), isinstance(net, sj_prune.PruningWrapper)
    before, drawn = snapshot(inner), generators()
    state = net.get_extra_state() if wraps else None
    assert everything(net, forward=forward) == expected
    assert_untouched(inner, before)
    assert str(generators()) == str(drawn)
    assert same(net.get_extra_state() if wraps else None, state)


def test_channels_of_a_led_network_are_tried_out(caplog):
    """Its copies, in float64, are led through themselves, not through what they are copies of."""
    net, forward = FORMS["single-step"](network())
    analysis.shapley(net, LOADER, methods.FilterNorm(), permutations=2, batches=1, forward=forward)
    assert "could not be tried out" not in caplog.text


def test_outputs_that_are_no_answers_are_named():
    x_seq, y = LOADER[0]
    with pytest.raises(ValueError, match=r"one answer .* for 2 labels .* but got \[3, 6, 5\]"):
        analysis.robustness(network(), [(x_seq, y[:2])])
    pair = torch.nn.ModuleList([network()])
    pair.forward = lambda x: (pair[0](x), None)
    with pytest.raises(ValueError, match="but got a tuple: give value="):
        analysis.robustness(pair, LOADER)


@pytest.mark.parametrize("analyze", [analysis.clusters, analysis.robustness, analysis.shapley])
def test_no_batches_are_refused(analyze):
    with pytest.raises(ValueError, match="Expected batches of at least 1 but got 0"):
        analyze(wrapped(network()), LOADER, batches=0)


def test_a_network_in_the_middle_of_its_training(expected):
    net = in_training(network())
    before = snapshot(net)
    found = everything(net)
    assert_untouched(net, before)
    assert found != expected
    functional.reset_net(net)
    assert found == everything(net.eval())


def test_an_image_that_the_network_repeats(expected):
    images = [(x_seq[0], y) for x_seq, y in LOADER]
    frames = [(x.repeat(T, 1, 1, 1, 1), y) for x, y in images]
    net = network()
    found = analysis.clusters(Repeating(net, T), images, images)
    assert found.rows == analysis.clusters(net, frames, frames).rows


def test_recording_goes_on_where_it_was():
    model = wrapped(network(), example_input=LOADER[0][0])
    model.train()
    model(LOADER[0][0])
    (node, *_) = model.nodes.values()
    count, mean = node.activity.count, node.activity.mean("firing_rate")
    everything(model)
    assert node.activity.count == count
    assert torch.equal(node.activity.mean("firing_rate"), mean)


def test_users_hooks_hear_nothing():
    net, heard = network(), []

    def listen(module, inputs, output):
        heard.append(output)

    net[2].register_forward_hook(listen)
    everything(net)
    assert heard == []


def test_written_weights_of_a_wrapper_are_masked():
    model = wrapped(network(), example_input=LOADER[0][0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model.attach(optimizer)
    model.train()(LOADER[0][0]).sum().backward()
    optimizer.step()
    assert model.sparsity()["total"] == 0.4
    found = analysis.clusters(model, LOADER).rows
    with torch.no_grad():
        for norm in (model.net[1], model.net[4]):
            norm.bias.add_(~model.masks["1" if norm is model.net[1] else "4"] * 3.0)
    assert analysis.clusters(model, LOADER).rows == found
    model.finalize()
    with pytest.raises(RuntimeError, match="Expected a wrapper in use"):
        analysis.clusters(model, LOADER)


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([], ValueError, "at least one batch"),
        ([LOADER[0][0]], ValueError, r"one class number a sample.*but got NoneType"),
        ([(LOADER[0][0], torch.rand(6))], ValueError, r"but got torch.float32 \(6,\)"),
        ([(LOADER[0][0], torch.ones(6, 5).long())], ValueError, r"but got torch.int64 \(6, 5\)"),
        ([(1, 2, 3)], ValueError, "but got 3 items"),
    ],
)
def test_refused_loaders(loader, error, message):
    for run in (analysis.clusters, analysis.robustness):
        with pytest.raises(error, match=message):
            run(network(), loader)
    with pytest.raises(error, match=message):
        analysis.shapley(network(), loader, methods.FilterNorm())
    with pytest.raises(TypeError, match=r"Expected net to be a torch.nn.Module"):
        analysis.clusters("net", loader)


def test_inputs_that_the_network_does_not_take_are_named():
    net = network()
    for run in (analysis.clusters, analysis.robustness):
        with pytest.raises(
            ValueError, match=r"such as \[T, N, \*\], but its forward of \[\(6, 2, 6"
        ):
            run(net, [(LOADER[0][0][0], LOADER[0][1])])
        single = functional.set_step_mode(net, "s") or net
        with pytest.raises(
            ValueError, match=r"as \[N, \*\], but .*conv2d.* forward=lambda net, x_"
        ):
            run(single, LOADER)
        functional.set_step_mode(net, "m")
