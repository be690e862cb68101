"""What `report` and `explain` say, and that they change nothing."""

import copy
import csv
import io
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.nn import functional as F

import sj_prune
from sj_prune import cost, methods
from sj_prune.neurons import recording_nodes
from sj_prune.reports.explain import explain
from sj_prune.reports.measured import channel_means, report
from sj_prune.reports.tables import readable

T, N = 4, 3


class LouderLIF(neuron.LIFNode):
    """A user's own neuron that calls no surrogate function: nothing can be kept of it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.surrogate_function = None

    def forward(self, x_seq):
        return surrogate.atan.apply(x_seq - self.v_threshold, 2.0)


class Net(nn.Module):
    """A stem, a block with a residual addition whose convolution runs twice, and a classifier."""

    def __init__(self, inner=neuron.IFNode):
        super().__init__()
        self.stem = layer.Conv2d(2, 6, 3, padding=1, bias=False)
        self.bn = layer.BatchNorm2d(6)
        self.sn1 = neuron.IFNode(surrogate_function=surrogate.ATan())
        self.conv = layer.Conv2d(6, 6, 3, padding=1, bias=False)
        self.sn2 = inner(surrogate_function=surrogate.ATan())
        self.fc = layer.Linear(6, 10)
        nn.init.constant_(self.bn.bias, 0.6)
        functional.set_step_mode(self, "m")

    def forward(self, x_seq):
        spikes = self.sn1(self.bn(self.stem(x_seq)))
        spikes = self.sn2(self.conv(spikes) + spikes + self.conv(spikes * 0.5))
        return self.fc(spikes.mean((-2, -1)))


def images():
    return torch.rand(T, N, 2, 6, 6)


def criticality(**settings):
    return methods.Criticality(**{"sparsity": 0.5, "interval": 1, "end": 4, **settings})


def train(wrapper, steps=4):
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.05, momentum=0.9)
    wrapper.attach(optimizer)
    for _ in range(steps):
        functional.reset_net(wrapper)
        loss = F.cross_entropy(wrapper(images()).mean(0), torch.arange(N))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return wrapper


def trained(**settings):
    return train(sj_prune.PruningWrapper(Net(), criticality(**settings)))


def criticality_of(wrapper, *example_input):
    return channel_means(wrapper.session, *example_input)


def rows_of(found):
    return {row.name: row for row in found.rows}


# ---- report: numbers ---------------------------------------------------------------------------


def test_report_agrees_with_its_sources():
    wrapper, x = trained(), images()
    found = wrapper.report(x)
    costs = cost.measure(wrapper.net, x, masks=wrapper.masks.masks)
    sparsity = wrapper.sparsity()
    assert [row.name for row in found.rows] == ["stem", "conv", "fc"]
    for row in found.rows:
        mask, weight = wrapper.masks[row.name], wrapper.net.get_submodule(row.name).weight
        assert row.shape == tuple(weight.shape)
        assert (row.kept, row.total) == (int(mask.sum()), mask.numel())
        assert row.density == pytest.approx(1 - sparsity[row.name])
        assert row.dropped == sum(record.dropped[row.name] for record in wrapper.history)
        assert row.regrown == sum(record.grown[row.name] for record in wrapper.history)
        assert row.synops == costs[row.name].synops
        assert row.macs_dense == costs[row.name].macs_dense
        assert row.total - row.kept == row.dropped - row.regrown
    assert found.totals["sparsity"] == pytest.approx(sparsity["total"])
    assert found.totals["regrown"] > 0


def test_totals_are_sums():
    wrapper = trained()
    found = wrapper.report(images())
    totals = found.totals
    for name in (
        "synops",
        "synops_dense",
        "macs",
        "macs_dense",
        "total_macs",
        "dropped",
        "regrown",
    ):
        assert totals[name] == pytest.approx(sum(getattr(row, name) for row in found.rows))
    assert totals["energy"] == pytest.approx(4.6 * totals["macs"] + 0.9 * totals["synops"])
    assert totals["parameters"] == sum(p.numel() for p in wrapper.parameters())
    gone = totals["weights"] - totals["weights_kept"]
    assert totals["parameters"] - totals["parameters_kept"] == gone > 0
    assert totals["energy"] < totals["energy_dense"]


def test_before_is_counted_on_the_same_spikes():
    wrapper, x = trained(), images()
    row = rows_of(wrapper.report(x))["conv"]
    # Zeroed weights made nonzero again, without any effect on the spikes that arrive at them.
    net = copy.deepcopy(wrapper).finalize()
    with torch.no_grad():
        net.conv.weight[net.conv.weight == 0] = 1e-9
    assert row.synops_dense == cost.measure(net, x, samples=N)["conv"].synops
    assert row.macs_dense == cost.measure(net, x, samples=N)["conv"].macs


def test_firing_rate_and_criticality_are_those_of_the_host():
    wrapper, x = trained(), images()
    found = rows_of(wrapper.report(x))
    net = copy.deepcopy(wrapper).finalize().eval()
    functional.reset_net(net)
    with torch.no_grad():
        spikes, potential, slopes = [], 0.0, []
        for current in net.bn(net.stem(x)):  # eq. H = V + x, hard reset to 0, ATan(2)
            charge = potential + current
            spike = (charge >= 1.0).float()
            slopes.append(1.0 / (1.0 + (torch.pi * (charge - 1.0)) ** 2))
            potential = (1 - spike) * charge
            spikes.append(spike)
    rate = torch.stack(spikes).mean().item()
    score = torch.stack(slopes).mean(0).amax((-2, -1)).mean().item()
    assert 0 < rate < 1
    assert found["stem"].firing_rate == pytest.approx(rate, rel=1e-5)
    assert found["stem"].criticality == pytest.approx(score, rel=1e-5)
    assert found["fc"].firing_rate is None
    assert found["fc"].criticality is None
    scores = criticality_of(wrapper, x)
    assert list(scores) == ["sn1", "sn2"]
    assert scores["sn1"].mean().item() == pytest.approx(score, rel=1e-5)


def test_recorded_criticality_needs_a_forward():
    wrapper = sj_prune.PruningWrapper(Net(), criticality())
    assert criticality_of(wrapper) == {}
    wrapper(images())
    assert list(criticality_of(wrapper)) == ["sn1", "sn2"]
    other = sj_prune.PruningWrapper(Net(), methods.RigL(end=100))
    other(images())
    assert all(len(score) == 6 for score in criticality_of(other, images()).values())


def test_layer_seen_twice_is_no_pure_spike_layer():
    row = rows_of(trained().report(images()))["conv"]
    assert row.synops_dense > 0
    assert row.macs_dense > 0
    assert not row.binary_input
    assert any("SynOps + " in cell for cell in row.cells())


def test_skipped_parametrized_and_uncalled_layers():
    net = Net()
    net.extra = nn.Linear(3, 3)
    nn.utils.parametrizations.weight_norm(net.fc)
    wrapper = sj_prune.PruningWrapper(net, criticality(), skip=("stem",))
    found = train(wrapper).report(images())
    rows = rows_of(found)
    assert rows["stem"].density == rows["fc"].density == 1
    assert rows["stem"].note == "skipped by name"
    assert rows["fc"].note.startswith("its weight is parametrized")
    assert "not seen" in rows["extra"].note
    assert rows["conv"].note == ""
    assert found.totals["weights"] == rows["conv"].total
    assert found.totals["macs_dense"] == sum(row.macs_dense for row in found.rows) > 0
    assert "note" in str(found)


@pytest.mark.parametrize("grad", [True, False])
def test_report_before_any_forward(grad):
    wrapper = sj_prune.PruningWrapper(Net(), criticality())
    with torch.set_grad_enabled(grad):
        found = wrapper.report(images())
    assert wrapper.session.run.anatomy.topology is None  # a report changes nothing
    assert rows_of(found)["stem"].firing_rate > 0
    assert found.totals["sparsity"] == 0
    train(wrapper)


@pytest.mark.parametrize(
    "method",
    [
        methods.Magnitude(sparsity=0.5, interval=1, end=3),
        methods.SET(sparsity=0.5, interval=1, end=3),
        methods.GradR(sparsity=0.6, interval=1, end=3),
    ],
    ids=lambda method: type(method).__name__,
)
def test_report_of_any_method(method):
    found = train(sj_prune.PruningWrapper(Net(), method)).report(images())
    row = rows_of(found)["stem"]
    assert row.firing_rate > 0
    assert row.criticality > 0
    assert str(sj_prune.PruningWrapper(Net(), method).explain())


def test_report_where_nodes_cannot_record():
    net = Net(inner=LouderLIF)
    found = rows_of(train(sj_prune.PruningWrapper(net, criticality())).report(images()))
    assert found["stem"].firing_rate > 0
    assert found["conv"].firing_rate is None
    single = Net()
    functional.set_step_mode(single, "s")
    wrapper = sj_prune.PruningWrapper(single, methods.Magnitude(end=2000))
    found = rows_of(wrapper.report(images()[0]))
    assert found["stem"].firing_rate > 0
    assert found["stem"].macs_dense == 6 * 2 * 9 * 36  # of one sample and step


class Shared(nn.Module):
    """One neuron layer behind layers of different width, which cannot keep statistics."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Linear(5, 6), nn.Linear(6, 4)
        self.sn = neuron.LIFNode(step_mode="m")

    def forward(self, x_seq):
        x_seq = self.sn(self.wide(x_seq))
        functional.reset_net(self.sn)
        return self.sn(self.narrow(x_seq))


def test_shared_neuron():
    wrapper = sj_prune.PruningWrapper(Shared(), methods.Magnitude(end=2000))
    x = torch.rand(T, N, 5)
    assert rows_of(wrapper.report(x))["wide"].firing_rate is None
    found = wrapper.explain(x)
    assert any("sn (shared by layers of different width" in text for text in found.warnings)
    assert "different width" in rows_of(found)["narrow"].status


# ---- report: nothing changes -------------------------------------------------------------------


def snapshot(wrapper):
    """Return everything a report could disturb, as comparable values."""
    nodes = recording_nodes(wrapper.net)
    return {
        "state": {k: v.clone() for k, v in wrapper.net.state_dict().items()},
        "memories": {n: m.v.clone() if torch.is_tensor(m.v) else m.v for n, m in nodes.items()},
        "random": torch.get_rng_state(),
        "training": [module.training for module in wrapper.modules()],
        "statistics": {n: copy.deepcopy(m.activity.state_dict()) for n, m in nodes.items()},
        "activities": {n: id(m.activity) for n, m in nodes.items()},
        "flags": {
            n: (m.recording, m.record_in_eval, m.channel_dim, m.trace, m.statistics)
            for n, m in nodes.items()
        },
        "grads": {n: None if p.grad is None else p.grad.clone() for n, p in named(wrapper)},
        "masks": wrapper.masks.masks,
        "step": wrapper.step,
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in wrapper.modules()],
        "topology": id(wrapper.session.run.anatomy.topology),
        "inputs": id(wrapper.session.run.anatomy.inputs),
    }


def named(wrapper):
    return list(wrapper.named_parameters())


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif torch.is_tensor(one):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("mode", ["train", "eval", "fresh", "traced"])
def test_report_and_explain_change_nothing(mode):
    wrapper = sj_prune.PruningWrapper(Net(), criticality(end=9))
    nodes = recording_nodes(wrapper.net)
    if mode != "fresh":
        train(wrapper)
        wrapper.train(mode == "train")
        wrapper(images()[:, :2])  # statistics and potentials of another batch size
    if mode == "traced":
        nodes["sn1"].trace = True
        wrapper(images())
        h_seq = nodes["sn1"].h_seq
    x = images()
    before = snapshot(wrapper)
    wrapper.report(x)
    criticality_of(wrapper, x)
    wrapper.explain()
    assert_same(before, snapshot(wrapper))
    if mode == "traced":
        assert nodes["sn1"].h_seq is h_seq


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    "refused",
    [
        lambda x: x[0],
        lambda x: x.double(),
        lambda x: x.bfloat16(),
        lambda x: [x],
        lambda x: "x",
        lambda x: x[:, :0],
    ],
    ids=["no time", "float64", "bfloat16", "list", "str", "no samples"],
)
def test_inputs_are_refused_as_by_explain(fresh, refused):
    wrapper = sj_prune.PruningWrapper(Net(), criticality(end=9))
    x = refused(images())
    with pytest.raises(ValueError, match="Expected") as explained:
        copy.deepcopy(wrapper).explain(x)
    if not fresh:
        train(wrapper)
    before = snapshot(wrapper)
    for look in (wrapper.report, lambda x: criticality_of(wrapper, x)):
        with pytest.raises(ValueError, match="Expected") as found:
            look(x)
        assert str(found.value) == str(explained.value)
        assert_same(before, snapshot(wrapper))


def test_errors_that_are_not_of_the_input_stay(monkeypatch):
    def fail(*_, **__):
        raise MemoryError("all")

    monkeypatch.setattr(cost, "measure", fail)
    wrapper, x = trained(), images()
    before = snapshot(wrapper)
    with pytest.raises(MemoryError, match="all"):
        wrapper.report(x)
    assert_same(before, snapshot(wrapper))


def test_report_between_forward_and_backward():
    wrapper = trained()
    functional.reset_net(wrapper)
    wrapper.zero_grad()
    loss = wrapper(images()).sum()
    wrapper.report(images())
    wrapper.explain(images())
    loss.backward()
    assert wrapper.net.stem.weight.grad.abs().sum() > 0


def test_training_goes_on_the_same_after_a_report():
    ends = []
    for look in (False, True):
        torch.manual_seed(1)
        wrapper = sj_prune.PruningWrapper(Net(), criticality(end=6))
        optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.05, momentum=0.9)
        wrapper.attach(optimizer)
        batches = [images() for _ in range(6)]
        for x in batches:
            functional.reset_net(wrapper)
            F.cross_entropy(wrapper(x).mean(0), torch.arange(N)).backward()
            if look:
                wrapper.report(batches[0])
            optimizer.step()
            optimizer.zero_grad()
        ends.append(wrapper.net.state_dict())
    assert_same(*ends)


# ---- report: forms -----------------------------------------------------------------------------


def test_text():
    found = trained().report(images())
    text = str(found)
    assert text == found.to_text()
    assert "Zeros alone make torch no faster: sj_prune.deploy" in text
    assert "same measured spikes" in text
    totals = [line for line in text.splitlines() if line.startswith("parameters: ")]
    assert len(totals) == 1
    words = (" => ", "SynOps: ", ", MACs: ", "analog MACs: ", "energy: ", "J")
    assert all(word in totals[0] for word in words)
    stem = next(line for line in text.splitlines() if line.startswith("stem"))
    assert "6x2x3x3" in stem
    assert "MACs" in stem
    assert "%" in stem


def test_markdown_is_one_table():
    lines = trained().report(images()).to_markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 3
    assert len({line.count("|") for line in table}) == 1


def test_csv_round_trip(tmp_path):
    found = trained().report(images())
    text = found.to_csv(tmp_path / "report.csv")
    assert (tmp_path / "report.csv").read_text() == text
    read = list(csv.DictReader(io.StringIO(text)))
    assert len(read) == len(found.rows)
    for entry, row in zip(read, found.rows, strict=True):
        assert entry["name"] == row.name
        assert tuple(map(int, entry["shape"].split("x"))) == row.shape
        for key in ("kept", "total", "dropped", "regrown"):
            assert int(entry[key]) == getattr(row, key)
        for key in ("density", "synops_dense", "synops", "macs_dense", "macs"):
            assert float(entry[key]) == getattr(row, key)
        for key in ("firing_rate", "criticality"):
            assert (float(entry[key]) if entry[key] else None) == getattr(row, key)
        assert entry["binary_input"] == str(row.binary_input)


def test_json_round_trip(tmp_path):
    found = trained().report(images())
    text = found.to_json(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text() == text
    read = json.loads(text)
    assert read["totals"] == found.totals
    for entry, row in zip(read["rows"], found.rows, strict=True):
        assert type(row)(**{**entry, "shape": tuple(entry["shape"])}) == row


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.7, "1 k"),
        (1234, "1.23 k"),
        (1_234_567, "1.23 M"),
        (999_999, "1 M"),
        (2.5e9, "2.5 G"),
        (3e15, "3e+03 T"),
    ],
)
def test_readable(value, text):
    assert readable(value) == text


def test_readable_energy():
    assert readable(1.5e7, "J", -12) == "15 uJ"
    assert readable(3.0, "J", -12) == "3 pJ"


@given(st.floats(1.0, 1e14))
def test_readable_keeps_three_digits(value):
    number, _, prefix = readable(value).partition(" ")
    scale = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[prefix]
    assert float(number) * scale == pytest.approx(value, rel=5e-3)
    assert len(number) <= 4


# ---- explain -----------------------------------------------------------------------------------


def test_explain_a_residual_network():
    wrapper = sj_prune.PruningWrapper(Net(), criticality(), example_input=images(), skip=("fc",))
    found = wrapper.explain()
    rows = rows_of(found)
    assert rows["stem"].norm == "bn"
    assert "sn1" in rows["stem"].neurons
    assert rows["conv"].neurons == ("sn2",)  # once, though it runs twice
    assert rows["conv"].norm is None
    assert rows["conv"].group is None
    assert rows["stem"].status == rows["conv"].status == "yes"
    assert (rows["fc"].prunable, rows["fc"].status) == (False, "no: skipped by name")
    assert found.traced
    assert found.warnings == ()
    line = next(line for line in str(found).splitlines() if line.startswith("stem"))
    assert line.split() == ["stem", "6x2x3x3", "bn", "sn1", "-", "yes"]


def test_explain_a_classifier():
    method = criticality()
    wrapper = sj_prune.PruningWrapper(Net(), method, example_input=images())
    status = rows_of(wrapper.explain())["fc"].status
    assert status == "yes: pruned, never regrown (no recording neuron follows)"
    wrapper = sj_prune.PruningWrapper(Net(), methods.RigL(end=100), example_input=images())
    assert rows_of(wrapper.explain())["fc"].status == "yes"


def test_explain_before_any_forward():
    wrapper = sj_prune.PruningWrapper(Net(), criticality())
    found = wrapper.explain()
    assert not found.traced
    assert any("nothing is traced yet" in text for text in found.warnings)
    assert "warning: nothing is traced yet" in str(found)
    assert "?" in str(found)
    assert "- **warning:** nothing" in found.to_markdown()
    found = wrapper.explain(images())
    assert found.traced
    assert found.warnings == ()
    assert "?" not in str(found)


def test_explain_names_dead_neurons():
    net = Net()
    net.sn1.v_threshold = 1e6
    wrapper = sj_prune.PruningWrapper(net, criticality(), example_input=images())
    (warning,) = (text for text in wrapper.explain().warnings if "never fired" in text)
    assert "sn1" in warning
    assert "sn2" in warning  # nothing arrives there


def test_explain_warns_of_a_dead_growth_signal():
    def warnings(method):
        net = Net()
        net.sn1.surrogate_function = surrogate.PiecewiseQuadratic(1.0)
        net.sn1.v_threshold = 1e6
        wrapper = sj_prune.PruningWrapper(net, method, example_input=images())
        return [text for text in wrapper.explain().warnings if "growth signal" in text]

    (warning,) = warnings(criticality())
    assert "zero at sn1:" in warning
    assert warnings(methods.Magnitude(end=2000)) == []


def test_explain_names_foreign_neurons():
    wrapper = sj_prune.PruningWrapper(Net(inner=LouderLIF), criticality(), example_input=images())
    found = wrapper.explain()
    assert any("keep no statistics: sn2 (LouderLIF: " in text for text in found.warnings)
    row = next(row for row in found.neurons if row.name == "sn2")
    assert (row.kind, row.how) == ("LouderLIF", "none")
    assert "surrogate" in row.why
    assert "LouderLIF" in str(found)
    status = rows_of(found)["conv"].status
    assert status.startswith("yes: pruned, never regrown (sn2: LouderLIF")
    wrapper = sj_prune.PruningWrapper(
        Net(inner=LouderLIF), methods.Magnitude(end=2000), example_input=images()
    )
    assert rows_of(wrapper.explain())["conv"].status.startswith("yes (not counted: sn2")


def test_explain_names_single_step_neurons():
    net = Net()
    functional.set_step_mode(net, "s")
    wrapper = sj_prune.PruningWrapper(net, criticality(), example_input=images()[0])
    found = wrapper.explain()
    assert {row.name: row.how for row in found.neurons} == {"sn1": "observed", "sn2": "observed"}
    assert not any("set_step_mode" in text for text in (str(found), found.to_markdown()))
    assert "docs/observing.md" in str(found)
    assert rows_of(found)["stem"].neurons == ("sn1",)


def test_explain_names_idle_neurons_and_frozen_weights():
    net = Net()
    net.spare = neuron.LIFNode(step_mode="m")
    net.stem.weight.requires_grad_(False)
    found = sj_prune.PruningWrapper(net, criticality(), example_input=images()).explain()
    assert any("did not run in the traced forward: spare" in text for text in found.warnings)
    assert any("requires_grad" in text and "stem" in text for text in found.warnings)
    assert rows_of(found)["stem"].neurons == ("sn1",)


def test_explain_parametrized_layers_and_networks_without_neurons():
    net = nn.Sequential(nn.Linear(4, 5), nn.utils.parametrizations.weight_norm(nn.Linear(5, 2)))
    found = sj_prune.PruningWrapper(net, methods.Magnitude(end=2000)).explain()
    assert rows_of(found)["1"].status.startswith("no: its weight is parametrized")
    assert not rows_of(found)["1"].prunable
    assert any("no SpikingJelly neuron" in text for text in found.warnings)


def test_explain_a_first_layer_that_stays_whole():
    method = methods.RigL(
        end=100, sparsity=0.5, allocation=sj_prune.masks.Uniform(first_dense=True)
    )
    rows = rows_of(sj_prune.PruningWrapper(Net(), method).explain())
    assert "kept whole" in rows["stem"].status
    assert rows["conv"].status == "yes"


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (
            methods.Magnitude(sparsity=0.9, interval=500, end=10_000),
            "Magnitude: sparsity reaches 0.9; 20 updates at optimizer steps 500, 1000, ..., 10000.",
        ),
        (
            methods.Magnitude(sparsity=0.9, interval=100, begin=50, end=199),
            "Magnitude: sparsity reaches 0.9; 1 update at optimizer step 150.",
        ),
        (
            methods.Magnitude(sparsity=0.9, interval=100, end=299),
            "Magnitude: sparsity reaches 0.9; 2 updates at optimizer steps 100, 200.",
        ),
        (
            methods.Magnitude(sparsity=0.9, interval=100, end=300),
            "Magnitude: sparsity reaches 0.9; 3 updates at optimizer steps 100, 200, 300.",
        ),
        (
            methods.SET(sparsity=0.9, end=400),
            "SET: sparsity reaches 0.9, masks from the start; "
            "4 updates at optimizer steps 100, 200, ..., 400.",
        ),
        (
            methods.GradR(sparsity=0.9),
            "GradR: sparsity emerges towards 0.9; "
            "records at optimizer steps 100, 200, ... without end.",
        ),
    ],
    ids=str,
)
def test_schedule_line(method, line):
    found = sj_prune.PruningWrapper(Net(), method).explain()
    assert found.schedule == line
    assert line in str(found)
    schedule = method.plan().schedule
    due = [step for step in range(1, 1001) if schedule.due(step)]
    if len(due) == schedule.updates:
        assert all(str(step) in line for step in (due[0], due[-1]))


def test_functions_are_what_the_wrapper_calls():
    wrapper, x = trained(), images()
    net, run = wrapper.net, wrapper.session.run
    assert report(net, run, x) == wrapper.report(x)
    assert explain(net, run) == wrapper.explain()
    wrapper.finalize()
    with pytest.raises(RuntimeError, match="finalize"):
        wrapper.report(x)
