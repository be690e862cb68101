"""What history says of regrowth: counted again from the masks of every update."""

import copy
import io
import pickle

import pytest
import torch

import sj_prune.run.update
from sj_prune import compact, methods
from sj_prune.run.history import UpdateRecord, survival
from tests.support.channel_cases import pruner, sca
from tests.support.pruning_cases import batch, build, criticality, rigl, train, wrapped

MAKE = {
    "Criticality": lambda: wrapped(criticality(regrow=0.4)),
    "keeps_value": lambda: wrapped(criticality(regrow=0.4, keeps_value=True, grace=1)),
    "filter": lambda: wrapped(criticality(ties="filter")),
    "RigL": lambda: wrapped(rigl()),
    "SET": lambda: wrapped(methods.SET(sparsity=0.7, interval=2, end=9)),
    "GraNet": lambda: wrapped(methods.GraNet(sparsity=0.8, interval=2, end=9)),
    "Magnitude": lambda: wrapped(methods.Magnitude(sparsity=0.8, interval=2, end=9)),
    "SCA": lambda: pruner(sca()),
}
#: where something does: elsewhere what starts at 0 is dropped again, in a network as small as this
SURVIVES = ("keeps_value", "RigL", "GraNet")
GROW = [name for name in MAKE if name != "Magnitude"]


def recorded(monkeypatch):
    """Return the list of survivors and grown units of every update to come, by scope."""
    seen, original = [], sj_prune.run.update.prune_and_regrow

    def called(layers, *args, **kwargs):
        found = original(layers, *args, **kwargs)
        seen.append({x.name: (u.survivors, u.grown) for x, u in zip(layers, found, strict=True)})
        return found

    monkeypatch.setattr(sj_prune.run.update, "prune_and_regrow", called)
    return seen


@pytest.mark.parametrize("name", MAKE)
def test_survival_is_that_of_the_masks(name, monkeypatch):
    model, optimizer = MAKE[name]()
    seen = recorded(monkeypatch)
    train(model, optimizer, 10)
    records = [record for record in model.history if record.step]
    assert len(records) == len(seen) == 4
    first = {} if records == model.history else dict.fromkeys(seen[0], 0)  # masks from the start
    assert records[0].survived == first
    kept, grown = {}, {}
    for before, after, record in zip(seen, seen[1:], records[1:], strict=False):
        expected = {n: int((before[n][1] & after[n][0]).sum()) for n in after}
        assert record.survived == expected
        rates = survival([records[records.index(record) - 1], record])
        for n, number in expected.items():
            asked = int(before[n][1].sum())
            assert rates.get(n) == (number / asked if asked else None)
            kept[n], grown[n] = kept.get(n, 0) + number, grown.get(n, 0) + asked
    over_all = {n: kept[n] / grown[n] for n in grown if grown[n]}
    if name == "Magnitude":
        assert survival(model.history) == {}
        return
    over_all["total"] = sum(kept.values()) / sum(grown.values())
    assert survival(model.history) == pytest.approx(over_all, rel=0, abs=0)
    assert (over_all["total"] > 0) == (name in SURVIVES)


def test_emergent_survival_is_that_of_the_masks():
    model, optimizer = wrapped(methods.GradR(sparsity=0.6, alpha=0.05, interval=2, end=40), "adam")
    masks = [model.masks.masks]
    train(model, optimizer, 20, after=lambda k: None if k % 2 else masks.append(model.masks.masks))
    assert model.history[0].survived == {}
    counted = 0
    for a, b, c, record in zip(masks, masks[1:], masks[2:], model.history[1:], strict=False):
        expected = {n: int((b[n] & ~a[n] & c[n]).sum()) for n in c}
        counted += sum(expected.values())
        assert record.survived == expected
    assert counted > 0


def reloaded(state, make):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other, fresh = make()
    other.load_state_dict(state[0])
    fresh.load_state_dict(state[1])
    return other, fresh


@pytest.mark.parametrize("name", ["keeps_value", "RigL", "SCA"])
def test_history_goes_on_from_a_checkpoint(name):
    model, optimizer = MAKE[name]()
    train(model, optimizer, 5)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    train(model, optimizer, 4, start=6)
    assert any(model.history[-2].survived.values()) == (name in SURVIVES)
    other, fresh = reloaded(state, MAKE[name])
    train(other, fresh, 4, start=6)
    assert other.history == model.history
    assert twin.session.run.regrown.keys() == model.session.run.regrown.keys()


def test_checkpoint_of_the_format_before():
    """Nobody knows what its last update grew; from the second on history is whole."""
    model, optimizer = MAKE["Criticality"]()
    train(model, optimizer, 3)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 6, start=4)
    extra = state[0]["_extra_state"]
    extra["format"] = 3
    del extra["regrown"]
    for record in extra["history"]:
        del record["survived"]
    other, fresh = reloaded(state, MAKE["Criticality"])
    train(other, fresh, 6, start=4)
    assert [record.survived for record in other.history[:2]] == [{}, {}]
    assert other.history[2:] == model.history[2:]


@pytest.mark.parametrize(
    "places", [torch.tensor([760]), torch.tensor([-1]), torch.zeros(2), torch.ones(1, 1).long()]
)
def test_damaged_places_are_refused(places):
    model, optimizer = MAKE["Criticality"]()
    train(model, optimizer, 3)
    state = copy.deepcopy(model.state_dict())
    state["_extra_state"]["regrown"]["0"] = places
    other, _ = MAKE["Criticality"]()
    with pytest.raises(
        ValueError, match="Expected places of units below 72 at '_extra_state.regrown.0'"
    ):
        other.load_state_dict(state)
    assert other.history == []


@pytest.mark.parametrize("name", GROW)
def test_report_says_how_much_survived(name):
    model, optimizer = MAKE[name]()
    train(model, optimizer, 10)
    found = model.report(batch(1)[0])
    rates = survival(model.history)
    layers = {n: s.layers for n, s in model.masks.scopes.items()}
    expected = {layer: rates.get(n) for n, names in layers.items() for layer in names}
    assert {row.name: row.survival for row in found.rows} == {
        row.name: expected.get(row.name) for row in found.rows
    }
    assert found.totals["survival"] == rates["total"]
    line = f"Regrowth: {100 * rates['total']:.1f} % of what an update regrew survived"
    for text in (str(found), found.to_markdown()):
        assert line in text
        assert "survived" in text.splitlines()[0]
    assert "survival" in found.to_csv().splitlines()[0]


def test_report_without_regrowth_says_nothing_of_it():
    model, optimizer = MAKE["Magnitude"]()
    train(model, optimizer, 6)
    found = model.report(batch(1)[0])
    assert "survival" not in found.totals
    assert "urvived" not in str(found)


def test_history_outlives_compaction():
    model, optimizer = MAKE["SCA"]()
    train(model, optimizer, 9)
    before = copy.deepcopy(model.history)
    net = model.finalize()
    small = compact(net, batch(1)[0])
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in build().parameters())
    assert model.history == before
    assert "total" in survival(model.history)


def test_a_record_by_hand():
    def record(step, grown, survived):
        return UpdateRecord(step, 0.5, 0.5, {}, {}, grown, survived=survived)

    records = [
        record(1, {"a": 4, "b": 0}, {}),
        record(2, {"a": 2, "b": 2}, {"a": 1, "b": 0}),
        record(3, {"a": 9, "b": 9}, {"a": 2, "b": 0}),
    ]
    assert survival(records) == {"a": 0.5, "b": 0.0, "total": 3 / 8}
    assert survival(records[:2]) == {"a": 0.25, "total": 0.25}
    assert survival(records[:1]) == {}
