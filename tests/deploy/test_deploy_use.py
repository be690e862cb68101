"""What a user does with a deployed network, and what is refused, by name."""

import re
import threading

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_prune
from sj_prune.deploy import leaves
from sj_prune.deploy.graph import UnsupportedError
from sj_prune.deploy.proof import ProofError
from tests.support.deploy_cases import integers, make_twin, output_of, spiking


def network():
    return make_twin(
        nn.Sequential(
            spiking(4),
            layer.Conv2d(4, 6, 3, padding=1, bias=False),
            layer.BatchNorm2d(6),
            neuron.LIFNode(tau=2.0, v_reset=None),
            layer.Flatten(),
            layer.Linear(6 * 5 * 5, 3),
        )
    )


X = integers(4, 2, 2, 5, 5)


def test_the_network_is_left_as_it_was():
    net = network().train()
    net[3].v = 0.5
    before = {k: v.clone() for k, v in net.state_dict().items()}
    sj_prune.deploy(net, X)
    assert net.training
    assert net[3].v == 0.5
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_weights_changed_later_change_nothing():
    net = network()
    fast = sj_prune.deploy(net, X)
    y = output_of(net, X)
    net[1].weight.data.zero_()
    assert torch.equal(fast(X), y)


def test_recording_nodes_and_pruned_networks():
    net = sj_prune.to_recording(network())
    y = output_of(net, X)
    assert torch.equal(sj_prune.deploy(net, X)(X), y)


def test_steps_of_a_stream_are_those_of_a_sequence():
    net = network()
    fast = sj_prune.deploy(net, X)
    y = output_of(net, X)
    for _ in range(2):
        assert torch.equal(torch.stack([fast.step(x) for x in X]), y)
        fast.reset()
    assert torch.equal(fast(X), y)
    fast.step(X[0])
    with pytest.raises(ValueError, match="reset"):
        fast.step(X[0, :1])


def test_saved_and_loaded(tmp_path):
    net = network()
    fast = sj_prune.deploy(net, X)
    fast.save(tmp_path / "net.pt")
    loaded = sj_prune.load_deployed(tmp_path / "net.pt")
    assert torch.equal(loaded(X), fast(X))
    assert str(loaded.report()) == str(fast.report())
    torch.save({"format": 0}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"SparseNetwork\.save"):
        sj_prune.load_deployed(tmp_path / "other.pt")


def test_damaged_files_are_named_and_saving_keeps_the_old_one(tmp_path, monkeypatch):
    path, fast = tmp_path / "net.pt", sj_prune.deploy(network(), X)
    fast.save(path)
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda state, file: file.write(b"half") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fast.save(path)
    assert path.read_bytes() == whole
    plain = torch.load(path, weights_only=True)
    weights = fast._weights[min(fast._weights)].by_output.entries.numpy().tobytes()
    files = {
        "begins with b'hello'": lambda: path.write_bytes(b"hello"),
        "is cut short": lambda: path.write_bytes(whole[:700]),
        "is damaged: a checksum": lambda: path.write_bytes(
            whole.replace(weights, bytes(len(weights)))
        ),
    }
    for key in plain:
        if key != "format":
            less = {k: v for k, v in plain.items() if k != key}
            files[f"is damaged: KeyError: '{key}'"] = lambda less=less: torch.save(less, path)
        if key not in ("format", "difference"):
            wrong = {**plain, key: 5}
            files[f"{key} is five"] = lambda wrong=wrong: torch.save(wrong, path)
    for message, write in files.items():
        write()
        pattern = "net.pt" if message.endswith("five") else re.escape(message)
        with pytest.raises(ValueError, match=pattern):
            sj_prune.load_deployed(path)


def test_a_damaged_file_is_refused(tmp_path):
    sj_prune.deploy(network(), X, check=False).save(tmp_path / "net.pt")
    plain = torch.load(tmp_path / "net.pt", weights_only=True)
    start, entries = next(w["by_output"] for w in plain["weights"].values() if w["by_output"])
    entries[int(start[-1]) - 1] = 1 << 20  # a row far beyond the inputs
    torch.save(plain, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="damaged"):
        sj_prune.load_deployed(tmp_path / "net.pt")


def test_several_threads_call_at_once():
    net = network()
    fast = sj_prune.deploy(net, X)
    inputs = [integers(4, n, 2, 5, 5, seed=n) for n in range(1, 9)]
    expected = [output_of(net, x) for x in inputs]
    found = [None] * len(inputs)

    def call(i):
        for _ in range(5):
            found[i] = fast(inputs[i])

    workers = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_results_do_not_depend_on_threads():
    net = network()
    net[1].weight.data.normal_()
    one, three = (sj_prune.deploy(net, X, threads=n) for n in (1, 3))
    assert torch.equal(one(X), three(X))


def test_report_says_what_runs():
    report = sj_prune.deploy(network(), X).report()
    text = str(report)
    assert [row.name for row in report.rows] == ["0.0", "1", "5"]
    assert [row.neurons for row in report.rows] == ["0.1", "3", ""]
    assert report.difference == 0
    assert "density" in text
    assert "open" in text
    assert "| layer" in report.to_markdown()
    figure, ax = report.plot()
    assert len(ax.patches) == 6


def test_zeros_stay_zeros_and_take_no_memory():
    net = network()
    kept = int((net[1].weight != 0).sum())
    row = sj_prune.deploy(net, X, check=False).report().rows[1]
    assert row.density == pytest.approx(kept / net[1].weight.numel())


@pytest.mark.parametrize("shape", [(4, 2, 2, 5, 6), (4, 2, 2, 5), (4, 0, 2, 5, 5)])
def test_an_input_of_another_shape_is_refused(shape):
    fast = sj_prune.deploy(network(), X, check=False)
    with pytest.raises(ValueError, match=r"\(" + ", ".join(map(str, shape))):
        fast(torch.ones(shape))


def test_too_many_steps_are_refused():
    fast = sj_prune.deploy(network(), X, check=False)
    with pytest.raises(ValueError, match="time steps"):
        fast(torch.rand(1000, 1, 2, 5, 5))


class Shuffle(nn.Module):
    def forward(self, x):
        return x.flip(2)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.node = neuron.IFNode()

    def forward(self, x):
        return self.node(self.node(x))


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = layer.Conv2d(2, 2, 1)

    def forward(self, x):
        return torch.stack([self.conv(step) for step in x])


class Last(nn.Module):
    def forward(self, x):
        return x[-1]


def hooked():
    net = network()
    net[1].register_forward_hook(lambda m, a, out: 2 * out)
    return net


REFUSED = {
    "neuron": (lambda: nn.Sequential(spiking(2), neuron.KLIFNode()), r"1 \(KLIFNode\).*IF, LIF"),
    "operation": (lambda: nn.Sequential(spiking(2), Shuffle()), r"1 \(Shuffle\).*flip"),
    "twice": (lambda: nn.Sequential(spiking(2), Twice()), r"node \(IFNode\).*more than once"),
    "group norm": (
        lambda: nn.Sequential(layer.GroupNorm(1, 2), neuron.IFNode()),
        r"0 \(GroupNorm\).*native_group_norm",
    ),
    "padding mode": (
        lambda: nn.Sequential(layer.Conv2d(2, 2, 3, padding=1, padding_mode="circular")),
        r"0 \(Conv2d\).*circular",
    ),
    "no statistics": (
        lambda: nn.Sequential(layer.BatchNorm2d(2, track_running_stats=False)),
        r"0 \(BatchNorm2d\).*running statistics",
    ),
    "upsampling": (
        lambda: nn.Sequential(spiking(2), nn.Upsample(scale_factor=2)),
        r"1 \(Upsample\).*upsample_nearest",
    ),
    "layer norm": (
        lambda: nn.Sequential(spiking(2), nn.LayerNorm(5)),
        r"1 \(LayerNorm\).*native_layer_norm",
    ),
    "the last step": (lambda: nn.Sequential(spiking(2), Last()), r"1 \(Last\).*select"),
    "double": (lambda: network().double(), r"float32.*\.weight"),
    "hook": (hooked, r"does not compute what its class says"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name):
    make, message = REFUSED[name]
    net = make()
    functional.set_step_mode(net, "m")
    with pytest.raises(UnsupportedError, match=message):
        sj_prune.deploy(net, X)


INPUTS_REFUSED = {
    "volumes": (layer.Conv3d(2, 3, 1), (4, 2, 2, 5, 5, 5), r"three dimensions \(Conv3d"),
    "tokens": (
        layer.Linear(5, 3),
        (4, 2, 7, 5),
        r"0 \(Linear\): .* last dimension of a map \(7, 5\)",
    ),
}


@pytest.mark.parametrize("name", INPUTS_REFUSED)
def test_inputs_that_are_not_understood_are_refused_by_their_form(name):
    module, shape, message = INPUTS_REFUSED[name]
    net = nn.Sequential(module, neuron.IFNode())
    functional.set_step_mode(net, "m")
    with pytest.raises(UnsupportedError, match=message):
        sj_prune.deploy(net, torch.ones(shape))


def test_single_step_nodes_are_refused():
    net = nn.Sequential(Loop(), neuron.IFNode())
    with pytest.raises(UnsupportedError):
        sj_prune.deploy(net, X)


def test_a_wrong_engine_is_found_out(monkeypatch):
    """The proof is told that a layer computes something else: it has to object."""
    real = leaves.reference

    def wrong(kind, module, settings, x):
        y = real(kind, module, settings, x)
        return y + 1 if kind == "layer" and module.out_channels == 6 else y

    net = network()
    net[5] = nn.Identity()
    monkeypatch.setattr(leaves, "agrees", lambda *args: True)
    monkeypatch.setattr(leaves, "reference", wrong)
    with pytest.raises(ProofError, match="Expected 1 to give"):
        sj_prune.deploy(net, X)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key = layer.Conv2d(4, 4, 1), layer.Conv2d(4, 4, 1)
        self.node = neuron.IFNode()

    def forward(self, x):
        q, k = (m(x).flatten(3) for m in (self.query, self.key))
        return self.node((q @ k.transpose(-1, -2) @ q).view(x.shape) * 0.125)


def test_attention_stays_in_torch():
    net = make_twin(
        nn.Sequential(
            spiking(4), SelfAttention(), layer.Conv2d(4, 3, 3, bias=False), neuron.IFNode()
        )
    )
    fast = sj_prune.deploy(net, X)
    assert torch.equal(fast(X), output_of(net, X))
    assert torch.equal(fast(X), output_of(net, X))
    assert [row.kernel for row in fast.report().rows][1] == "torch"
    with pytest.raises(ValueError, match="stays in torch|does: save"):
        fast.save("nowhere.pt")


def test_submodules_can_be_imported():
    import importlib

    module = importlib.import_module("sj_prune.deploy.graph")
    assert module.UnsupportedError is UnsupportedError
    assert callable(sj_prune.deploy)
