"""Ranks that differ are refused on all of them; windows, copies and checkpoints of several."""

import pytest
import torch

from tests.support import agreement_ranks
from tests.support.agreement_ranks import LONG, SAVED, take_over
from tests.support.processes import once, run_in_ranks
from tests.support.pruning_cases import same
from tests.support.rank_cases import METHODS, masks_of, norm_free, own_hash, ready, train


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    def run(folder):
        return run_in_ranks(2, "agreement_ranks", "every_refusal", folder)

    return once(tmp_path_factory, "refused", run)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Saved by one process in the middle of a window; and what it has come to itself."""
    folder, paths, ends = tmp_path_factory.mktemp("alone"), {}, {}
    for name in LONG:
        called, model, optimizer = ready(METHODS[name](**LONG[name]), norm_free(), momentum=0.0)
        train(called, optimizer, range(1, SAVED + 1), dtype=torch.float64)
        paths[name] = str(folder / f"{name}.pt")
        torch.save(model.state_dict(), paths[name])
        train(called, optimizer, range(SAVED + 1, 6), dtype=torch.float64)
        ends[name] = {"masks": masks_of(model), "hash": own_hash(model)}
    return paths, ends


@pytest.fixture(scope="module")
def states(tmp_path_factory, checkpoints):
    def run(folder):
        return run_in_ranks(2, "agreement_ranks", "every_state", folder, checkpoints[0])

    return once(tmp_path_factory, "states", run)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("seed", "the same seed at attach() but it is 0 on rank 0, 1 on rank 1"),
        ("method", "the same method.sparsity at attach() but it is 0.7 on rank 0, 0.6 on rank 1"),
        ("kind", "the same method at attach() but it is 'Magnitude' on rank 0, 'SET' on rank 1"),
        ("net", "the same shape of '0' at attach() but it is [6, 2, 3, 3] on rank 0, [4, 2, 3, 3]"),
        ("loaded", "the same seed at attach() but it is 5 on rank 0, 0 on rank 1"),
    ],
)
def test_ranks_that_prune_differently_are_refused(refused, case, message):
    for result in refused:
        assert message in result[case]["said"]
        assert result[case]["attached"] == 0


@pytest.mark.parametrize("case", ["masks", "emergent"])
def test_masks_that_differ_are_found_at_the_update(refused, case):
    assert refused[0][case]["said"] == refused[1][case]["said"]
    said = refused[0][case]["said"]
    assert "the same masks at the update in step 2" in said
    hashes = [part.split("'")[1] for part in said.split("but it is ")[1].split(" on rank ")[:2]]
    assert len(set(hashes)) == 2
    assert all(len(found) == 16 for found in hashes)
    if case == "masks":  # nothing was installed
        assert all(result[case]["same"] and result[case]["history"] == 0 for result in refused)


def test_traces_that_differ_are_found(refused):
    for result in refused:
        assert "coupled channels at the update in step 1" in result["coupling"]


def test_an_error_on_one_rank_is_raised_on_all(refused):
    assert refused[1]["failure"] == "no luck"
    assert "Rank 1 of 2 failed at the update in step 1: RuntimeError: no luck" in str(
        refused[0]["failure"]
    )


def test_an_update_without_any_batch_is_refused_on_all(refused):
    assert all("no forward with gradients has run" in r["missing"] for r in refused)


def test_split_parameters_are_refused_by_name(refused):
    for result in refused:
        wrapping, attaching = result["dtensor"]
        assert "'3.weight' is a DTensor" in wrapping
        assert "'3.weight' is a DTensor" in attaching
        composed, flat = result["sharded"]
        assert "'8.weight' is a DTensor" in composed
        assert "FlatParameter" in flat


def test_rank_0_speaks_for_all(refused):
    assert refused[0]["log"] == ["INFO"]
    assert refused[1]["log"] == []


# ---- windows, gradients, copies ------------------------------------------------------------------


def test_rank_that_saw_no_batch_in_the_window(states):
    found = [result["idle window"] for result in states]
    assert found[0]["hash"] == found[1]["hash"]
    assert any((~mask).any() for mask in found[0]["masks"].values())


def test_rank_that_never_saw_a_batch(states):
    """What rank 0 has seen alone decides, as if it were one process with its gradient halved."""
    alone = agreement_ranks.idle_from_the_start()
    for name, expected in alone.items():
        found = [result["idle from the start"][name] for result in states]
        assert found[0]["hash"] == found[1]["hash"]
        assert [one["step"] for one in found] == [1, 1]
        assert any((~mask).any() for mask in expected["masks"].values())
        assert same(found[0]["masks"], expected["masks"]), name


def test_gradients_that_nobody_has_averaged(states):
    first, second = (result["own gradients"] for result in states)
    assert not torch.equal(first[False]["grad"], second[False]["grad"])
    assert torch.equal(first[True]["grad"], second[True]["grad"])
    for found in (first, second):
        assert same(found[False]["masks"], first[True]["masks"])  # as behind DDP
        assert found[False]["kept its own"]
        mean = (first[False]["grad"] + second[False]["grad"]) / 2
        torch.testing.assert_close(found[False]["shown"], mean, rtol=1e-12, atol=0)


def test_what_every_rank_has_observed_counts(states):
    """The mean over all steps of all ranks: three of rank 1, two of rank 0."""
    first, second = (result["own observations"] for result in states)
    assert same(first["masks"], second["masks"])
    for name in ("0", "2", "6"):
        mine, other = first["local"][name], second["local"][name]
        assert (int(mine["terms"]), int(other["terms"])) == (2, 3)
        assert not torch.equal(mine["taylor"], other["taylor"])
        for found in (first, second):
            torch.testing.assert_close(found["shown"][name], (mine["taylor"] + other["taylor"]) / 5)


def test_copy_is_alone(states):
    assert states[0]["copied"] == pytest.approx(0.5, abs=1e-3)


def test_update_by_hand(states):
    alone = agreement_ranks.manual()
    assert any((~mask).any() for mask in alone.values())
    for result in states:
        assert same(result["manual"], alone)


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LONG)
def test_gathered_statistics_are_all_on_rank_0(states, name):
    first, second = (result["resumed"][name] for result in states)
    counts = {5 * SAVED, 7 * SAVED}
    if METHODS[name]().needs:
        assert {first["before"]["1"], second["before"]["1"]} == counts
        assert (first["gathered"]["1"], second["gathered"]["1"]) == (sum(counts), 0)
    else:  # three layers, two steps, two ranks
        assert first["terms"] == [6, 12]
        assert second["terms"] == [6, 0]


@pytest.mark.parametrize("name", LONG)
def test_loaded_statistics_are_on_rank_0_alone(states, name):
    """Those of a checkpoint of one process, too: added up they count once."""
    for kind, terms in (("taken over", 6), ("resumed", 12)):
        first, second = (result[kind][name] for result in states)
        if kind == "resumed":
            first, second = first["resumed"], second["resumed"]
        samples = {"1": 24, "3": 24, "7": 24} if METHODS[name]().needs else None
        assert first["loaded"] == (samples or {"1": 0, "3": 0, "7": 0}, 0 if samples else terms)
        assert second["loaded"] == ({"1": 0, "3": 0, "7": 0}, 0)


@pytest.mark.parametrize("name", LONG)
def test_resuming_with_as_many_ranks_is_bit_identical(states, name):
    found = [result["resumed"][name] for result in states]
    for one in found:
        assert one["resumed"]["hash"] == one["undisturbed"] == found[0]["undisturbed"]
        assert one["resumed"]["history"] == 1
        assert any((~mask).any() for mask in one["masks"].values())


@pytest.mark.parametrize("name", LONG)
def test_resuming_two_ranks_in_one_process(states, checkpoints, tmp_path, name):
    torch.save(states[0]["resumed"][name]["checkpoint"], tmp_path / "two.pt")
    assert same(take_over(name, tmp_path / "two.pt")["masks"], checkpoints[1][name]["masks"])


@pytest.mark.parametrize("name", LONG)
def test_resuming_one_process_in_two_ranks(states, checkpoints, name):
    found = [result["taken over"][name] for result in states]
    assert found[0]["hash"] == found[1]["hash"]
    assert same(found[0]["masks"], checkpoints[1][name]["masks"])
