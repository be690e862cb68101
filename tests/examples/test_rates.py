"""Learning rates and losses against their formulas."""

from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from common import ema, options, rates
from torch import nn

BASE = {"lr": 0.4, "epochs": 10, "warmup": 0.0, "lr_steps": [0.5, 0.75], "lr_factor": 0.1}


def rate(step, **settings):
    return rates.learning_rate(Namespace(**{**BASE, **settings}), step, 100)


def test_cosine():
    assert rate(0, schedule="cosine") == 0.4
    assert rate(50, schedule="cosine") == pytest.approx(0.2)
    assert 0 < rate(99, schedule="cosine") < 1e-3


def test_step():
    assert [rate(k, schedule="step") for k in (0, 49, 50, 75)] == pytest.approx(
        [0.4, 0.4, 0.04, 0.004]
    )


def test_warm_up_is_linear_and_the_rest_begins_at_the_top():
    first = [rate(k, schedule="cosine", warmup=0.5) for k in range(6)]
    assert first[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    assert first[5] == 0.4


def test_constant():
    assert {rate(k, schedule="constant") for k in range(100)} == {0.4}


def test_losses():
    torch.manual_seed(0)
    output, y = torch.randn(3, 5, 4), torch.tensor([0, 1, 2, 3, 0])
    args = Namespace(loss="ce", label_smoothing=0.1, tet_lambda=0.05)
    expected = F.cross_entropy(output.mean(0), y, label_smoothing=0.1)
    assert torch.equal(rates.loss_of(args, output, y), expected)
    args.loss = "tet"
    each = torch.stack([F.cross_entropy(o, y, label_smoothing=0.1) for o in output]).mean()
    expected = 0.95 * each + 0.05 * ((output - 1) ** 2).mean()
    assert torch.allclose(rates.loss_of(args, output, y), expected)


def test_average_follows_by_its_decay():
    source, average = nn.Linear(2, 1), ema.Average(nn.Linear(2, 1), 0.5)
    average.start(source)
    before = source.weight.detach().clone()
    with torch.no_grad():
        source.weight.add_(1.0)
    average.update(source, step=1000)
    assert torch.allclose(average.net.weight, before + 0.5)
    assert not average.net.weight.requires_grad


def test_methods_are_all_of_the_library():
    assert {"Criticality", "Magnitude", "Random", "SET", "RigL", "GraNet", "GradR"} <= set(
        options.methods()
    )
    assert not {"Method", "ScheduledMethod", "LayerView"} & set(options.methods())


@pytest.mark.parametrize(
    ("epoch", "interval", "end"), [(1000, 2000, 150_000), (15, 2000, 2250), (10, 150, 1500)]
)
def test_updates_fit_into_the_training(epoch, interval, end):
    args = options.build_parser("doc", {}).parse_args([])  # 200 epochs
    method = options.make_method(args, epoch)
    assert (method.interval, method.end) == (interval, end)


def test_methods_without_an_interval_of_their_own():
    def make(*arguments):
        return options.make_method(options.build_parser("doc", {}).parse_args([*arguments]), 39)

    known = options.methods()
    if "NetworkSlimming" in known:
        assert make("--method", "NetworkSlimming").plan().schedule.updates == 1
        assert make("--method", "NetworkSlimming", "--set", "interval=50").interval == 50
    if "SCA" in known:
        assert make("--method", "SCA", "--sparsity", "0.5").interval == 39


def test_fields_of_a_method_are_set_by_name():
    arguments = ["--set", "ties=filter", "batches=3", "--interval", "5"]
    method = options.make_method(options.build_parser("doc", {}).parse_args(arguments), 50)
    assert (method.ties, method.batches, method.interval) == ("filter", 3, 5)


def test_regrow_goes_with_the_sparsity(cifar):
    parser = options.build_parser("doc", cifar.SETTINGS)
    for arguments, expected in (
        ([], 0.1),
        (["--sparsity", "0.9"], 0.2),
        (["--sparsity", "0.5"], None),
        (["--regrow", "0.3"], 0.3),
        (["--method", "Magnitude"], None),
    ):
        args = parser.parse_args(arguments)
        options.choose_regrow(args, cifar.SETTINGS["method"], cifar.REGROW)
        assert args.regrow == expected
