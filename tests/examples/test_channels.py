"""examples/channels.py end to end: what it writes is what it says."""

import copy
import json

import pytest
import torch
from common import sew
from spikingjelly.activation_based import functional, neuron

import sj_prune

pytest.importorskip("matplotlib").use("Agg")
pytest.importorskip("sklearn")


PLOTS = ("importance", "survivors", "exchange", "raster")
ARGUMENTS = ["--quick", "--threads", "1", "--device", "cpu", "--train-images", "640"]
SHORTER = [*ARGUMENTS, "--train-images", "160", "--test-images", "100", "--no-dense"]


@pytest.fixture(scope="module")
def run(channels, tmp_path_factory):
    """The folder of one quick run, and what it returned."""
    out = tmp_path_factory.mktemp("channels")
    return out, channels.main([*ARGUMENTS, "--out", str(out)])


@pytest.fixture
def answers(channels):
    """Return the classes that a network gives the test images in float64, without the script."""

    def ask(net):
        images = channels.read_digits()[1]
        mean, std = images.mean[0], images.std[0]
        x = (images.x.double() / 255 - mean) / std
        net = copy.deepcopy(net).double().eval()
        functional.reset_net(net)
        with torch.no_grad():
            output = net(x.repeat(channels.TIME_STEPS, 1, 1, 1, 1)).mean(0)
        return output.argmax(1), images.y

    return ask


def masked(channels, out):
    net = channels.build(channels.parse(ARGUMENTS))
    net.load_state_dict(torch.load(out / "final.pt", weights_only=True), strict=True)
    return net


def compacted(channels, out):
    return sj_prune.load_compact(out / "compact.pt", channels.build(channels.parse(ARGUMENTS)))


def test_compact_network_answers_as_the_masked_one(channels, run, answers):
    out, result = run
    nets = masked(channels, out), compacted(channels, out)
    (expected, y), (found, _) = (answers(net) for net in nets)
    assert torch.equal(found, expected)
    assert result["accuracy_compact"] == result["accuracy_masked"] == result["accuracy_loaded"]
    assert result["accuracy_compact"] == pytest.approx(100 * (found == y).double().mean().item())
    assert len(expected.unique()) > 1  # it does not answer the same whatever it sees


def test_compact_network_is_smaller_by_what_was_pruned(channels, run):
    out, result = run
    dense, small = masked(channels, out), compacted(channels, out)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (dense, small)]
    assert [result["parameters_before"], result["parameters_after"]] == sizes
    assert result["macs_after"] < result["macs_before"]
    assert result["synops_after"] < result["synops_before"]
    # Stem and both convolutions of three stages; the stem is coupled with the first stage.
    widths = channels.QUICK["widths"]
    assert result["channels_before"] == 2 * sum(widths)
    assert result["channels_after"] == round(0.5 * result["channels_before"])
    convolutions = [small.conv1, *(stage[0].conv1 for stage in small.stages)]
    convolutions += [stage[0].conv2 for stage in small.stages[1:]]
    assert sum(conv.out_channels for conv in convolutions) == result["channels_after"]
    nodes = [m for m in small.modules() if isinstance(m, neuron.BaseNode)]
    assert {type(node) for node in nodes} == {neuron.IFNode}


def test_files(run):
    out, result = run
    assert json.loads((out / "result.json").read_text()) == result
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in PLOTS)
    assert (out / "dense" / "final.pt").exists()


def test_finished_run_is_shrunk_again_without_training(channels, run, monkeypatch, capsys):
    out, result = run
    trainer = channels.loop.Trainer
    monkeypatch.setattr(trainer, "_train_step", lambda *_: pytest.fail("trained"))
    again = channels.main([*ARGUMENTS, "--out", str(out)])
    assert capsys.readouterr().out.count("Resumed from") == 2
    for key, value in result.items():
        assert key.startswith("latency") or again[key] == value, key


@pytest.mark.parametrize("extra", [["--regrow", "0"], ["--set", "growth=random"]])
def test_pruning_without_growth_or_with_another(channels, tmp_path, extra, capsys):
    arguments = [*SHORTER, "--epochs", "3", *extra, "--out", str(tmp_path)]
    result = channels.main(arguments)
    assert result["channels_after"] == 36
    assert not (tmp_path / "dense").exists()
    assert "masked => compact" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["NetworkSlimming", "TaylorChannels", "RandomChannels"])
def test_other_channel_methods(channels, tmp_path, method):
    arguments = [*SHORTER, "--epochs", "2", "--method", method, "--regrow", "0"]
    result = channels.main([*arguments, "--out", str(tmp_path)])
    assert result["channels_after"] == 36
    assert (tmp_path / "raster.png").exists()


def test_dense_alone(channels, tmp_path):
    arguments = [*ARGUMENTS, "--method", "dense", "--epochs", "1", "--out", str(tmp_path)]
    result = channels.main(arguments)
    assert result["macs_dense"] > result["synops_dense"] > 0
    assert "accuracy_compact" not in result
    assert not (tmp_path / "compact.pt").exists()


def test_generated_color_images_and_bottleneck_of_the_stem(channels, tmp_path):
    arguments = [*ARGUMENTS, "--dataset", "cifar10", "--generated", "6", "--batch", "15"]
    small = ["--epochs", "2", "--reduce", "4", "--blocks", "2", "--connect", "IAND", "--no-dense"]
    result = channels.main([*arguments, *small, "--out", str(tmp_path)])
    assert result["channels_after"] == round(0.5 * result["channels_before"])


def test_dry_run(channels, tmp_path, capsys):
    result = channels.main([*ARGUMENTS, "--dry-run", "--out", str(tmp_path / "run")])
    assert "accuracy_compact" not in result
    assert "SCA: sparsity reaches 0.5; 3 updates at optimizer steps" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "Magnitude"], "prunes single weights: use examples/cifar.py"),
        (["--generated", "5"], "add --dataset cifar10"),
        (["--sparsity", "0.95"], r"--method SCA: Expected sparsity \+ regrow < 1"),
    ],
)
def test_refusals(channels, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        channels.main([*ARGUMENTS, "--no-dense", *arguments, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("reduce", "size"), [(1, 8), (2, 4), (4, 2)])
def test_stem_reduces(reduce, size):
    net = sew.SEWResNet(5, 2, (4, 6), 2, reduce=reduce)
    sizes = []
    net.stages.register_forward_pre_hook(lambda _, x: sizes.append(tuple(x[0].shape)))
    assert net(torch.rand(3, 2, 2, 8, 8)).shape == (3, 2, 5)
    assert sizes == [(3, 2, 4, size, size)]


def test_split_of_the_digits_is_fixed_and_stratified(channels):
    train, test = channels.read_digits()
    assert (len(train), len(test)) == (1347, 450)
    assert train.x.dtype == torch.uint8
    assert tuple(train.x.shape[1:]) == (1, 8, 8)
    assert torch.equal(channels.read_digits()[1].x, test.x)
    shares = torch.bincount(test.y) / torch.bincount(torch.cat([train.y, test.y]))
    assert (shares - 0.25).abs().max() < 0.01
    scaled = (train.x.double() / 255 - train.mean[0]) / train.std[0]
    assert scaled.mean() == pytest.approx(0.0, abs=1e-5)
    assert scaled.std() == pytest.approx(1.0, rel=1e-5)
