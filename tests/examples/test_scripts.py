"""Every script runs end to end without a download, with every method and option."""

import csv

import pytest
import torch
from common import loop, options
from spikingjelly.activation_based import neuron

from sj_prune import data, models
from tests.support.example_cases import STEPS, TINY, load

DVS = [
    *("--generated", "10", "--batch", "25", "--epochs", "2", "--threads", "1", "--frames", "3"),
    *("--size", "32", "--sparsity", "0.8", "--device", "cpu", "--widths", *["4"] * 8),
]


def rows_of(out):
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def sparsity_of(state):
    weights = [value for value in state.values() if value.ndim > 1]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def check(result, out, net, epochs, whole=True):
    """What a finished run leaves behind."""
    rows = rows_of(out)
    assert [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))
    assert result["accuracy"] == float(rows[-1]["test_accuracy"])
    assert all(float(row["train_loss"]) > 0 for row in rows)
    assert result["sparsity"] == pytest.approx(0.8, abs=0.01)
    net.load_state_dict(load(out / "final.pt"), strict=True)  # a stock network
    if whole:
        assert sparsity_of(net.state_dict()) >= result["sparsity"]
    assert load(out / "last.pt")["progress"]["step"] == result["steps"]
    assert load(out / "best.pt")["progress"]["best"] == result["best"]
    assert not list(out.glob("*.new"))


def test_cifar(cifar, tmp_path, capsys):
    result = cifar.main([*TINY, "--out", str(tmp_path)])
    check(result, tmp_path, models.VGG16(widths=(4,) * 13, T=2), 3)
    assert result["steps"] == STEPS
    printed = capsys.readouterr().out
    assert "epoch 3/3" in printed
    assert "sparsity of the pruned layers" in printed  # the report


@pytest.mark.parametrize("network", ["SixConvTwoFC", "VGG16SCA", "ResNet19"])
def test_cifar_networks(cifar, tmp_path, network):
    number = {"SixConvTwoFC": 6, "VGG16SCA": 13, "ResNet19": 3}[network]
    narrow = ["--network", network, "--hidden", "8", "--epochs", "1", "--batch", "8"]
    arguments = [*TINY[: TINY.index("--widths")], *narrow, "--widths", *["4"] * number]
    result = cifar.main([*arguments, "--dataset", "cifar100", "--out", str(tmp_path)])
    assert result["steps"] == 5
    assert load(tmp_path / "final.pt")["features.conv1.weight"].shape[0] == 4


def test_tiny_imagenet(tiny_imagenet, tmp_path):
    arguments = [*TINY[: TINY.index("--widths")], "--epochs", "1", "--widths", "4", "4", "4"]
    result = tiny_imagenet.main([*arguments, "--out", str(tmp_path)])
    check(result, tmp_path, models.ResNet19(200, widths=(4, 4, 4), T=2), 1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """The folder of the recordings; whoever comes first makes them."""
    return tmp_path_factory.mktemp("recordings")


def test_event_data_with_a_larger_test_set(cifar10_dvs, recordings, tmp_path):
    narrow = ["--network", "DVSNet", "--widths", *["8"] * 5, "--pool", "max", "--train-part", "0.5"]
    arguments = [*DVS[: DVS.index("--widths")], *narrow, "--epochs", "1"]
    out = ["--data-root", str(recordings), "--out", str(tmp_path / "run")]
    assert cifar10_dvs.main([*arguments, *out])["steps"] == 2  # of 50 recordings, 25 a step


def test_cifar10_dvs(cifar10_dvs, recordings, tmp_path):
    arguments = [*DVS, "--data-root", str(recordings), "--out", str(tmp_path / "run")]
    result = cifar10_dvs.main(arguments)
    check(result, tmp_path / "run", models.VGGSNN(widths=(4,) * 8, size=32), 2)
    assert list(recordings.rglob("*.aedat"))
    # What was recorded once is read again.
    dense = [*arguments, "--method", "dense", "--out", str(tmp_path / "dense")]
    dense.remove("--sparsity"), dense.remove("0.8")
    assert cifar10_dvs.main(dense)["sparsity"] == 0.0


def test_part_of_the_data_set(cifar, tmp_path, monkeypatch):
    """Smaller images, fewer of them, all classes alike, and the same ones for every seed."""
    seen = []
    original = loop.Trainer.fit

    def fit(trainer):
        seen.append((trainer.train_data, trainer.test_data))
        return original(trainer)

    monkeypatch.setattr(loop.Trainer, "fit", fit)
    part = ["--train-images", "30", "--test-images", "10", "--shrink", "2", "--epochs", "1"]
    narrow = ["--network", "SixConvTwoFC", "--hidden", "8", "--widths", *["4"] * 6]
    arguments = [*TINY[: TINY.index("--widths")], *narrow, *part, "--generated", "20"]
    for seed in ("0", "1"):
        cifar.main([*arguments, "--seed", seed, "--out", str(tmp_path / seed)])
    (train, test), (other, _) = seen
    assert train.x.shape == (30, 3, 16, 16)
    assert train.x.dtype == torch.uint8
    assert test.x.shape == (10, 3, 16, 16)
    assert train.y.bincount().tolist() == [3] * 10
    assert test.y.bincount().tolist() == [1] * 10
    assert train.x.equal(other.x)
    # Each of them is the mean of 2x2 pixels of an image of the whole set.
    whole, _ = data.synthetic_images(20, size=32, seed=0)
    means = (whole[..., 0::2, 0::2].int() + whole[..., 0::2, 1::2] + whole[..., 1::2, 0::2]) / 4
    means = (means + whole[..., 1::2, 1::2] / 4).round().to(torch.uint8).flatten(1)
    assert all((means == image).all(1).any() for image in train.x.flatten(1))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (["--train-images", "25"], "multiple of 10 classes, at most . images of each, but got 25"),
        (["--test-images", "1000"], "multiple of 10 classes, at most . images of each"),
        (["--shrink", "5"], "--shrink to divide 32 pixels but got 5"),
    ],
)
def test_impossible_parts(cifar, tmp_path, part, message):
    with pytest.raises(SystemExit, match=message):
        cifar.main([*TINY, *part, "--out", str(tmp_path)])


@pytest.mark.parametrize("name", ["atan", "sigmoid", "tanh"])
def test_surrogates(cifar, tmp_path, monkeypatch, name):
    nets = []
    original = loop.Trainer.fit
    monkeypatch.setattr(loop.Trainer, "fit", lambda t: nets.append(t.net) or original(t))
    cifar.main([*TINY, "--surrogate", name, "--epochs", "1", "--out", str(tmp_path)])
    used = {type(m.surrogate_function).__name__.lower() for m in nets[0].modules() if is_lif(m)}
    assert used == {name}


def is_lif(module):
    return isinstance(module, neuron.LIFNode)


@pytest.mark.parametrize(("pool", "spikes"), [("average", False), ("max", True)])
def test_event_network_for_images(cifar, tmp_path, pool, spikes):
    """Only behind max pooling do all convolutions but the first one get spikes."""
    arguments = [*TINY[: TINY.index("--widths")], "--network", "DVSNet", "--widths", *["8"] * 5]
    result = cifar.main([*arguments, "--pool", pool, "--out", str(tmp_path)])
    state = load(tmp_path / "final.pt")
    net = models.DVSNet(widths=(8,) * 5, size=32, in_channels=3, T=2, pool=pool)
    net.load_state_dict(state, strict=True)
    nonzero = {k: int(v.count_nonzero()) for k, v in state.items() if v.ndim == 4}
    first = nonzero["features.conv1.weight"] * 32 * 32 * 2
    assert (result["analog_macs"] == first) == spikes
    assert result["analog_macs"] >= first
    assert result["picojoules"] == pytest.approx(
        4.6 * result["analog_macs"] + 0.9 * result["synops"]
    )
    assert result["parameters"] == sum(p.numel() for p in net.parameters())
    assert result["parameters_nonzero"] == sum(int(p.count_nonzero()) for p in net.parameters())


# Which a training of six steps would not reach by the defaults.
FASTER = {
    "GReg": ["--set", "delta=1.0", "every=1"],
    "NDSNN": ["--set", "initial=0.3"],
    "DPAPSynapses": [
        "--network",
        "SixConvTwoFC",
        "--widths",
        *"444444",
        "--hidden",
        "8",
    ],  # of linear layers with neurons behind them
}


@pytest.mark.parametrize("method", ["dense", *options.methods()])
def test_methods(cifar, tmp_path, method):
    # A layer of four channels cannot lose more than three.
    short = ["--epochs", "2", "--sparsity", "0.6", "--ema", "0.9", "--out", str(tmp_path)]
    arguments = [*TINY, "--method", method, *short, *FASTER.get(method, [])]
    assert cifar.main(arguments)["steps"] == 6
    assert len(rows_of(tmp_path)) == 2


VARIANTS = {
    "bf16": ["--amp", "bf16"],
    "fp16": ["--amp", "fp16"],
    "channels last": ["--channels-last"],
    "adamw": ["--optimizer", "adamw", "--lr", "0.001", "--schedule", "step", "--lr-steps", "0.5"],
    "tet": ["--loss", "tet", "--label-smoothing", "0.1", "--clip", "1"],
    "skip": ["--skip", "features.conv1", "classifier", "--warmup", "1", "--schedule", "constant"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_options(cifar, tmp_path, variant):
    result = cifar.main([*TINY, *VARIANTS[variant], "--out", str(tmp_path)])
    check(result, tmp_path, models.VGG16(widths=(4,) * 13, T=2), 3, whole=variant != "skip")


@pytest.mark.slow
def test_compiled(cifar, tmp_path):
    small = ["--network", "SixConvTwoFC", "--hidden", "8", "--epochs", "1", "--widths", *["4"] * 6]
    result = cifar.main([*TINY, "--compile", *small, "--out", str(tmp_path)])
    assert result["steps"] == 3


def test_tensorboard(cifar, tmp_path):
    pytest.importorskip("tensorboard")
    cifar.main([*TINY, "--tensorboard", "--epochs", "1", "--out", str(tmp_path)])
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_dry_run(cifar, tmp_path, capsys):
    cifar.main([*TINY, "--dry-run", "--warmup", "1", "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "features.conv13" in printed  # explain()
    assert "Criticality: sparsity reaches 0.8; 7 updates at optimizer steps" in printed
    assert "3 epochs of 3 steps" in printed
    assert "learning rate (cosine): 0.01667 at step 0, 0.05 at step 3" in printed
    assert "M SynOps" in printed
    assert not (tmp_path / "run").exists()
    cifar.main([*TINY, "--dry-run", "--method", "dense", "--out", str(tmp_path / "run")])
    assert "nothing is pruned" in capsys.readouterr().out


def test_averaged_weights_are_as_sparse(cifar, tmp_path):
    result = cifar.main([*TINY, "--ema", "0.9", "--out", str(tmp_path)])
    state = load(tmp_path / "last.pt")
    ema = state["ema"]
    weights = {name: value for name, value in ema.items() if value.ndim > 1}
    pruned = total = 0
    for name, average in weights.items():
        weight = state["model"][f"net.{name}"]
        assert not average[weight == 0].any(), name
        assert not torch.equal(average, weight)
        pruned, total = pruned + int((weight == 0).sum()), total + weight.numel()
    assert pruned / total == pytest.approx(result["sparsity"], abs=1e-3)
    assert torch.equal(
        load(tmp_path / "final.pt")["features.conv1.weight"], ema["features.conv1.weight"]
    )
    assert "ema_accuracy" in rows_of(tmp_path)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "Magnitude", "--regrow", "0.2"], r"Magnitude among .* but got \['regrow'\]"),
        (["--set", "ties"], "--set NAME=VALUE but got 'ties'"),
        (["--sparsity", "1.5"], r"--method Criticality: Expected sparsity in \[0, 1\)"),
        (["--skip", "features.conv99"], "--method Criticality: .*features.conv99"),
        (["--generated", "0", "--data-root", "/nowhere"], "--generated 500"),
    ],
)
def test_refusals(cifar, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        cifar.main([*TINY, *arguments, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
