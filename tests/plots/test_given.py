"""What plots are given: taken in every form that is offered, or refused by name."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn import functional as F

import sj_prune
from sj_prune import methods, plots
from sj_prune.run.history import UpdateRecord

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


def network(mode="m"):
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        neuron.IFNode(),
        layer.Conv2d(4, 3, 3, padding=1),
        neuron.IFNode(),
        layer.Flatten(),
        layer.Linear(75, 3),
    )
    functional.set_step_mode(net, mode)
    return net


def recording():
    return torch.rand(3, 2, 2, 5, 5, generator=torch.Generator().manual_seed(0)) * 3


def wrapped():
    return sj_prune.PruningWrapper(network(), methods.Magnitude(sparsity=0.5))


def trained(method):
    model = sj_prune.PruningWrapper(network(), method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.attach(optimizer)
    for _ in range(4):
        functional.reset_net(model)
        F.cross_entropy(model(recording()).mean(0), torch.arange(2)).backward()
        optimizer.step()
    return model


def regrown(step, grown, pruned=None):
    kept = {name: 4 - len(units) for name, units in (pruned or {}).items()}
    return UpdateRecord(step, 0.5, 0.5, kept, {}, grown, pruned or {})


def drawn(ax):
    lines = [line.get_xydata().tolist() for line in ax.get_lines()]
    return lines, [(p.get_x(), p.get_y(), p.get_height()) for p in ax.patches]


# ---- histories -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plot", [plots.sparsity_over_steps, plots.regrowth_survival, plots.regrowth_per_layer]
)
def test_a_wrapper_stands_for_its_history(plot):
    model = trained(methods.GraNet(sparsity=0.8, interval=1, end=8))
    assert drawn(plot(model)[1]) == drawn(plot(model.history)[1]) != ([], [])


def test_wrappers_by_name():
    model = trained(methods.Magnitude(sparsity=0.5, interval=1, end=4))
    _, ax = plots.sparsity_over_steps({"a": model, "b": model.history})
    first, second = drawn(ax)[0]
    assert first == second


@pytest.mark.parametrize(
    "plot", [plots.regrowth_per_layer, plots.channel_exchange, plots.channel_raster]
)
@pytest.mark.parametrize("given", [{"a": [regrown(1, {"x": 1})]}, [wrapped], 3, "text"])
def test_plots_of_one_run_refuse_what_is_none(plot, given):
    kind = type(given).__name__
    with pytest.raises(TypeError, match=f"Expected history to be a PruningWrapper .* got {kind}"):
        plot(given)


def test_several_runs_are_refused_by_name():
    with pytest.raises(TypeError, match=r"histories\['b'\] to be a PruningWrapper"):
        plots.sparsity_over_steps({"a": [regrown(1, {})], "b": 3})


def test_layers_that_begin_later_count():
    history = [regrown(1, {"a": 4, "c": 1}), regrown(2, {"a": 2, "b": 9, "c": 0}), regrown(3, {})]
    _, ax = plots.regrowth_per_layer(history)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "c", "b"]
    totals = [sum(c[i].get_height() for c in ax.containers) for i in range(2)]
    assert totals == [5, 11]


def test_groups_that_begin_later_are_whole_until_then():
    history = [regrown(1, {}, {"a": [0]}), regrown(2, {}, {"a": [1], "b": [2, 3]})]
    _, ax = plots.channel_raster(history, sort=False)
    kept, pruned_now, back = 0, 2, 3
    assert ax.images[0].get_array().tolist() == [
        [pruned_now, back],
        [kept, pruned_now],
        *[[kept, kept]] * 4,
        *[[kept, pruned_now]] * 2,
    ]


# ---- values that are no numbers ------------------------------------------------------------------

DRAWN = {
    "histogram": plots.criticality_histogram,
    "importance": plots.channel_importance,
    "map": lambda values: plots.channel_map({"net": values}),
    "filters": plots.filters,
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_values_that_are_not_finite_are_refused(draw, strange, place):
    values = {"fine": torch.rand(3, 1, 1, 1), "bad": torch.rand(3, 1, 1, 1)}
    draw(values)
    values["bad"][place] = strange
    with pytest.raises(ValueError, match="Expected finite values .* in layer 'bad': look for"):
        draw(values)


@pytest.mark.parametrize(
    "draw", [plots.criticality_histogram, lambda m, x: plots.channel_map({"": m}, x)]
)
def test_a_layer_of_a_diverged_network_does_not_disappear(draw):
    model, x = wrapped(), recording()
    draw(model, x)
    x[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="inputs of neurons but those of layer '1' hold NaN"):
        draw(model, x)
    model.net[2].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="inputs of neurons but those of layer '3' hold NaN"):
        draw(model, recording())
    assert not any(m._forward_pre_hooks for m in model.net.modules() if _is_neuron(m))


def _is_neuron(module):
    return isinstance(module, neuron.BaseNode)


def test_what_diverged_while_it_was_recorded():
    model = trained(methods.Criticality(sparsity=0.5, interval=5, end=5))
    functional.reset_net(model)
    model(recording() * torch.nan)  # the batch before the update is recorded
    with pytest.raises(ValueError, match="layer '1' hold NaN or inf"):
        plots.criticality_histogram(model)


# ---- other arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "argument"),
    [
        (lambda: plots.density_per_layer([wrapped()]), "masks_or_wrappers"),
        (lambda: plots.density_per_layer({"a": [1]}), "masks_or_wrappers"),
        (lambda: plots.criticality_histogram([1.0]), "wrapper_or_scores"),
        (lambda: plots.channel_importance([1.0]), "wrapper_or_scores"),
        (lambda: plots.channel_map(wrapped()), "networks"),
        (lambda: plots.channel_map({"a": [1.0]}), r"networks\['a'\]"),
        (lambda: plots.filters(torch.ones(1, 1, 3, 3)), "weights"),
    ],
)
def test_what_has_no_names_is_refused(draw, argument):
    with pytest.raises(TypeError, match=f"Expected {argument} by name, as a dict, but got"):
        draw()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample": 2}, "sample to be one of the 2 of x_seq but got 2"),
        ({"sample": -3}, "sample to be one of the 2 of x_seq but got -3"),
        ({"most": 0}, "most to be at least 1 but got 0"),
    ],
)
def test_raster_of_samples_and_neurons_that_there_are(settings, message):
    with pytest.raises(ValueError, match=message):
        plots.spike_raster(network(), recording(), **settings)


def test_raster_of_what_the_network_does_not_take():
    with pytest.raises(ValueError, match="x_seq to be an input .*0 is in single-step mode"):
        plots.spike_raster(network("s"), recording())
    with pytest.raises(ValueError, match=r"Expected x_seq \[T, N, \*\] but got shape \(5, 5\)"):
        plots.spike_raster(network(), torch.rand(5, 5))


def test_filters_without_columns_or_weights():
    with pytest.raises(ValueError, match="columns to be at least 1 but got 0"):
        plots.filters({"a": torch.ones(1, 1, 3, 3)}, columns=0)
    with pytest.raises(ValueError, match=r"Expected a weight .* but 'a' has \(0, 1, 3, 3\)"):
        plots.filters({"a": torch.ones(0, 1, 3, 3)})


def test_map_of_empty_layers():
    with pytest.raises(ValueError, match="to draw but got none from networks"):
        plots.channel_map({"net": {"a": torch.empty(0)}})


def test_cost_from_generators():
    points = {"a": {"95%": [(1.0, 0.5), (3.0, 0.7)]}, "b": {"": [(2.0, 0.6)]}}
    once = {n: {s: iter(seeds) for s, seeds in settings.items()} for n, settings in points.items()}
    expected = drawn(plots.accuracy_over_cost(points, "SynOps")[1])
    assert drawn(plots.accuracy_over_cost(once, "SynOps")[1]) == expected


@pytest.mark.parametrize(
    "results", [{"a": {"95%": [(1.0, 0.5)], "98%": []}}, {"a": {}}, {"a": {"98%": [(-1, 1)]}}, {}]
)
def test_cost_of_settings_without_points(results):
    setting = "setting '98%'" if any(results.values()) else ""
    with pytest.raises(ValueError, match=f"with costs above 0 .*{setting}"):
        plots.accuracy_over_cost(results, "SynOps")
