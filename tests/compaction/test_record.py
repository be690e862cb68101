"""A smaller network is built again from its widths and its state_dict."""

import copy
import json

import pytest
import torch

from sj_prune.compaction import (
    architecture,
    compact,
    couple_checked,
    load_compact,
    rebuild,
    save_compact,
)
from tests.support import zoo
from tests.support.compaction_cases import awake, mask_at_random, run
from tests.support.user_cases import NETWORKS, build
from tests.support.user_networks import Depthwise, Grouped, SharedNeuron
from tests.support.user_networks_other import Inputs
from tests.support.user_networks_staying import TiedWeights


def small_of(kind, density=0.5):
    net, x = build(kind)
    awake(net, x)
    args = x if isinstance(x, tuple) else (x,)
    mask_at_random(net, x, 0, density, couple_checked(net, args))
    return compact(net, x), x


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_saved_and_loaded(kind, tmp_path):
    small, x = small_of(kind)
    save_compact(tmp_path / "small.pt", small)
    fresh, _ = build(kind, seed=1)
    before = copy.deepcopy(fresh.state_dict())
    loaded = load_compact(tmp_path / "small.pt", fresh)
    assert architecture(loaded) == architecture(small)
    for expected, actual in zip(run(small, x, False)[0], run(loaded, x, False)[0], strict=True):
        assert torch.equal(expected, actual)
    assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())


@pytest.mark.parametrize("name", ["sew_resnet12_ADD", "CIFAR10DVSNet"])
def test_networks_of_the_zoo(name):
    net, x = zoo.build(name)
    awake(net, x)
    mask_at_random(net, x, 0, 0.3)
    small = compact(net, x)
    record = json.loads(json.dumps(architecture(small)))
    again = rebuild(zoo.build(name, seed=5)[0], record)
    again.load_state_dict(small.state_dict(), strict=True)
    assert torch.equal(run(again, x, False)[0][0], run(small, x, False)[0][0])


def test_file_holds_no_pickled_classes(tmp_path):
    small, _ = small_of(Grouped)
    save_compact(tmp_path / "small.pt", small)
    content = torch.load(tmp_path / "small.pt", weights_only=True)
    assert sorted(content) == ["architecture", "format", "state_dict"]
    assert content["architecture"] == architecture(small)


def test_record_is_plain():
    small, _ = small_of(Depthwise)
    record = architecture(small)
    assert json.loads(json.dumps(record)) == record
    assert set(record["dw"]) == {"in_channels", "out_channels", "groups"}
    assert record["dw"]["groups"] == record["dw"]["in_channels"] == record["a"]["out_channels"]
    assert record["bn_dw"] == {"num_features": record["dw"]["out_channels"]}
    assert set(record["fc"]) == {"in_features", "out_features"}


def test_full_widths_change_nothing():
    net, _ = build(TiedWeights)
    again = rebuild(net, architecture(net))
    assert again.b.weight is again.a.weight
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(other={"num_features": 3}), "a layer 'other' in the network"),
        (lambda r: r.pop("dw"), "the record to hold 'dw'"),
        (lambda r: r["a"].update(out_channels=99), "out_channels of 'a' to be at most .* 8"),
        (lambda r: r["a"].update(out_channels=0), "out_channels of 'a' to be a positive"),
        (lambda r: r["a"].update(out_channels=2.0), "out_channels of 'a' to be a positive"),
        (lambda r: r["a"].pop("groups"), r"\['groups', 'in_channels', 'out_channels'\] of 'a'"),
        (lambda r: r["dw2"].update(out_channels=9, groups=2), "of 'dw2' to be a multiple of its 2"),
    ],
)
def test_records_that_do_not_fit_name_the_layer(change, message):
    net, _ = build(Depthwise)
    record = architecture(net)
    change(record)
    with pytest.raises(ValueError, match=message):
        rebuild(net, record)


def test_other_files_are_refused(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="format None"):
        load_compact(tmp_path / "other.pt", build(SharedNeuron)[0])
    small, _ = small_of(Inputs)
    save_compact(tmp_path / "small.pt", small)
    with pytest.raises(ValueError, match="a layer .b. in the network"):
        load_compact(tmp_path / "small.pt", build(Depthwise)[0])
