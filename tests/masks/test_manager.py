"""MaskManager by itself: copies, slots, other networks, types."""

import copy

import pytest
import torch
from torch import nn

from sj_prune.masks import MaskManager
from tests.support.pruning_cases import build, slots_of


def manager(net):
    names = ("0", "3", "8", "10")
    return MaskManager({name: net.get_submodule(name) for name in names})


def random_masks(masks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(m.shape, generator=generator) < 0.5 for n, m in masks.items()}


@pytest.fixture
def net():
    return build()


def test_masks_are_copies(net):
    masks = manager(net)
    assert list(masks) == ["0", "3", "8", "10"]
    assert all(m.dtype == torch.bool and m.all() for m in masks.values())
    for taken in (masks.masks["0"], masks["0"], dict(masks)["0"], masks.state_dict()["0"]):
        taken.fill_(False)
    assert masks["0"].all()
    given = random_masks(masks)
    expected = given["3"].clone()
    masks.install(given)
    given["3"].fill_(False)
    assert masks["3"].equal(expected)
    state = {k: v.clone() for k, v in masks.state_dict().items()}
    masks.load_state_dict(state)
    state["3"].fill_(False)
    assert masks["3"].equal(expected)


def test_unknown_layer_is_named(net):
    with pytest.raises(KeyError, match=r"among .*'10'.* but got 'conv'"):
        manager(net)["conv"]


def test_counts(net):
    masks = manager(net)
    given = random_masks(masks)
    masks.install(given)
    assert masks.kept() == {name: int(mask.sum()) for name, mask in given.items()}
    sparsity = masks.sparsity()
    kept, total = sum(int(m.sum()) for m in given.values()), 760
    assert sparsity.pop("total") == pytest.approx(1 - kept / total)
    assert sparsity == pytest.approx({n: 1 - m.float().mean().item() for n, m in given.items()})


def test_install_zeroes_weights_and_slots(net):
    masks = manager(net)
    optimizer = torch.optim.Adam(net.parameters(), amsgrad=True)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = {name: masks.weight(name).detach().clone() for name in masks}
    given, cleared = random_masks(masks), {n: m & False for n, m in random_masks(masks).items()}
    cleared["3"] = given["3"] & (torch.arange(given["3"].numel()).view_as(given["3"]) % 2 == 0)
    masks.install(given, [optimizer], cleared=cleared)
    for name, mask in given.items():
        weight, alive = masks.weight(name), mask & ~cleared[name]
        assert weight[alive].equal(before[name][alive])
        assert not weight[~alive].any()
        slots = slots_of(optimizer, weight)
        assert set(slots) == {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        for value in slots.values():
            assert value[alive].all()
            assert not value[~alive].any()
        assert optimizer.state[weight]["step"] == 1


def test_other_optimizers_state_is_not_created(net):
    masks = manager(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    masks.install(random_masks(masks), [optimizer])
    assert len(optimizer.state) == 0


def test_gradients_are_masked(net):
    masks = manager(net)
    masks.install(random_masks(masks))
    masks.weight("0").grad = torch.ones_like(masks.weight("0"))
    masks.mask_gradients(masks)  # the others have none
    assert masks.weight("0").grad.bool().equal(masks["0"])
    assert masks.weight("3").grad is None


def test_weights_stay_when_a_state_is_loaded(net):
    masks = manager(net)
    before = masks.weight("3").detach().clone()
    masks.load_state_dict(random_masks(masks))
    assert masks.weight("3").equal(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("3"), r"shape \(6, 4, 3, 3\) at '3' but the checkpoint has None"),
        (lambda s: s.update(x=torch.ones(2)), r"shape None at 'x' but the checkpoint has \(2,\)"),
        (lambda s: s.update({"8": torch.ones(2)}), r"shape \(8, 54\) at '8' .* has \(2,\)"),
    ],
)
def test_foreign_state_is_refused_whole(net, change, message):
    masks = manager(net)
    masks.install(random_masks(masks))
    before = masks.masks
    state = random_masks(masks, seed=1)
    change(state)
    with pytest.raises(ValueError, match=message):
        masks.load_state_dict(state)
    assert all(before[name].equal(masks[name]) for name in masks)


# ---- other copies of the network -----------------------------------------------------------------


class Shell(nn.Module):
    """Holds the network as DDP and `AveragedModel` do."""

    def __init__(self, net):
        super().__init__()
        self.module = net


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        Shell,
        lambda net: Shell(Shell(net)),
        torch.optim.swa_utils.AveragedModel,
        lambda net: net.double(),
        lambda net: net.half(),
    ],
    ids=["copy", "module", "nested", "AveragedModel", "double", "half"],
)
def test_apply_to_another_copy(net, wrap):
    masks = manager(net)
    own = net[3].weight.detach().clone()
    masks.load_state_dict(random_masks(masks))
    other = wrap(copy.deepcopy(net))
    assert masks.apply_(other) is other
    found = {id(p): p for p in other.parameters()}
    assert len(found) == len(list(net.parameters()))
    while not isinstance(other, nn.Sequential):
        other = other.module
    for name in masks:
        weight = other.get_submodule(name).weight
        assert (weight != 0).equal(masks[name])
    assert other[1].weight.all()
    assert net[3].weight.equal(own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.__setitem__(8, nn.Linear(54, 9)), r"\(8, 54\) at '8' .* got \(9, 54\)"),
        (lambda net: net.__delitem__(10), r"\(5, 8\) at '10' .* got None"),
    ],
)
def test_apply_to_another_architecture_changes_nothing(net, change, message):
    masks = manager(net)
    masks.load_state_dict(random_masks(masks))
    other = copy.deepcopy(net)
    change(other)
    before = other[0].weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        masks.apply_(other)
    assert other[0].weight.equal(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_type_of_the_weights_may_change(net, dtype):
    masks = manager(net)
    given = random_masks(masks)
    masks.install(given)
    net.to(dtype)
    masks.enforce(masks, [])
    assert all(masks[n].equal(given[n]) and masks[n].dtype == torch.bool for n in masks)
    assert net[3].weight.dtype == dtype


def test_masks_follow_the_device_of_the_weight(net):
    """Checked without a second device: a network on "meta" has no values but a device."""
    masks = manager(net)
    net.to("meta")
    assert masks["3"].device.type == "meta"


def test_adopted_zeros(net):
    masks = manager(net)
    with torch.no_grad():
        net[0].weight.view(-1)[::5] = 0.0
        net[3].weight.view(-1)[::5] = 0.0
    masks.adopt_zeros(["0"])
    assert (~masks["0"]).flatten().nonzero().flatten().tolist() == list(range(0, 72, 5))
    assert masks["3"].all()
