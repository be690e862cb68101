"""Several processes prune as one: the same masks on every rank, those of one process."""

import pytest
import torch

from tests.support import training_ranks
from tests.support.processes import once, run_in_ranks
from tests.support.pruning_cases import same
from tests.support.rank_cases import METHODS
from tests.support.training_ranks import FIRST

UPDATES = {
    **dict.fromkeys(("RigL", "SET", "NDSNN", "DeepR"), [0, 2, 4, 6]),  # 0: when it is wrapped
    **dict.fromkeys(("GReg", "ADMM", "RCMO"), [6]),
}


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    def run(folder):
        return run_in_ranks(request.param, "training_ranks", "every_check", folder)

    return once(tmp_path_factory, f"world{request.param}", run)


@pytest.fixture(scope="module")
def alone():
    """The same updates in this process, which sees the global batch."""
    torch.manual_seed(0)
    return {name: training_ranks.first_update(name) for name in FIRST}


@pytest.mark.parametrize("name", METHODS)
def test_masks_and_weights_are_the_same_on_every_rank(ranks, name):
    found = [result["methods"][name] for result in ranks]
    assert all(one["hashes"] == found[0]["hashes"] for one in found)
    # Every step changed something, but that of RigL's last update, which is skipped and grows none.
    assert len(set(found[0]["hashes"])) == (7 if name == "RigL" else 8)
    assert all(one["history"] == found[0]["history"] for one in found)
    steps = [record["step"] for record in found[0]["history"]]
    assert steps == UPDATES.get(name, [2, 4, 6])
    assert all(all(one["zero"]) for one in found)


@pytest.mark.parametrize("name", FIRST)
def test_first_update_is_that_of_one_process(ranks, alone, name):
    expected = alone[name]
    assert not same(expected["before"], expected["after"])
    for result in ranks:
        assert same(result["first"][name]["before"], expected["before"])
        assert same(result["first"][name]["after"], expected["after"])


@pytest.mark.parametrize("name", ["Criticality", "RigL", "SCA"])
def test_accumulation_without_synchronization(ranks, alone, name):
    for result in ranks:
        assert same(result["accumulated"][name]["after"], alone[name]["after"])


def test_statistics_are_those_of_all_samples(ranks):
    """The mean over all samples, whichever rank has seen them; shares are of unequal size."""
    local = [result["statistics"]["local"] for result in ranks]
    counts = [int(one["1"]["samples"]) for one in local]
    assert len(set(counts)) > 1
    assert sum(counts) == 2 * 12  # two batches of the window
    for layer, node in {"0": "1", "2": "3", "6": "7"}.items():
        total = sum(one[node]["sums"][:, 0] for one in local) / sum(counts)
        for result in ranks:
            # ATan(2) has its peak 1 at 0: nothing is divided.
            torch.testing.assert_close(
                result["statistics"]["seen"][layer][0], total, rtol=1e-12, atol=0
            )
    assert ranks[0]["statistics"]["seen"]["8"] == [None]  # no neuron follows
    assert all(result["statistics"]["cleared"] == 0 for result in ranks)


def test_gates_of_neurons_follow_the_mean_gradient(ranks):
    expected = training_ranks.gates()
    assert sum(key.endswith(": gate") for key in expected) == 3
    for result in ranks:
        for key, value in expected.items():
            torch.testing.assert_close(result["gates"][key], value, rtol=1e-7, atol=1e-9)


def test_growth_is_scored_by_the_mean_dense_gradient(ranks):
    expected = training_ranks.gradients()["seen"]
    for result in ranks:
        for name, grad in result["gradients"]["seen"].items():
            torch.testing.assert_close(grad, expected[name], rtol=1e-9, atol=1e-12)
            assert torch.equal(grad, ranks[0]["gradients"]["seen"][name])
        pruned = {name: ~mask for name, mask in result["gradients"]["before"].items()}
        found = [
            result["gradients"]["seen"][name][mask].any()
            for name, mask in pruned.items()
            if mask.any()
        ]
        assert len(found) >= 2
        assert all(found)
