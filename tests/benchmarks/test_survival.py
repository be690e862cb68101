"""The settling experiment: its arms, its rows, its pool, stopped and taken up again."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.accuracy.rows import read_rows
from benchmarks.survival import pool, run
from benchmarks.survival.arms import ARMS, REGROW, SPARSITY, TRAINED, Permuted, When
from benchmarks.survival.cells import LONGER, ONCE, SIX, cells
from benchmarks.survival.images import CLASSES, Images, generated
from benchmarks.survival.training import Training, shared_state, survival_counts, train
from sj_prune.methods import Plan
from sj_prune.methods.parts import magnitude
from sj_prune.run.history import UpdateRecord

WHEN = When(interval=100, end=600, channels=100)
QUICK = [cell for cell in cells("quick") if cell.arm in ("magnitude", "keeps-permuted", "dense")]
SECONDS = {"wall_seconds", "cpu_seconds"}


@pytest.fixture(scope="module")
def images():
    return generated("cpu")


@pytest.fixture(scope="module")
def rows(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    return {cell.arm: train(cell, images, "cpu", out) for cell in QUICK}


def plan_of(arm):
    method = arm.method(WHEN)
    return method if isinstance(method, Plan) else method.plan()


@pytest.mark.parametrize(
    "arm", [a for a in (ARMS | TRAINED).values() if a.method], ids=lambda arm: arm.title
)
def test_arm_ends_when_masks_stay(arm):
    schedule = plan_of(arm).schedule
    assert schedule.due(600)
    assert schedule.next_due(600) is None
    assert arm.control is None or arm.control in ARMS


def test_controls_differ_by_the_order_of_their_scores_alone():
    for name in ("published", "keeps"):
        plan, control = plan_of(ARMS[name]), plan_of(ARMS[f"{name}-permuted"])
        score = control.grow.score
        assert isinstance(score, Permuted)
        assert score.score == plan.grow.score
        assert score.reads == plan.grow.score.reads
        assert (control.drop, control.schedule) == (plan.drop, plan.schedule)
        same = ("fraction", "of", "ties", "across_layers", "keeps_value", "grace")
        assert all(getattr(control.grow, f) == getattr(plan.grow, f) for f in same)


def test_permuted_scores_are_the_same_ones_elsewhere():
    values = torch.arange(50.0)
    layer = SimpleNamespace(generator=torch.Generator().manual_seed(1), values=values)
    found = Permuted(lambda layer: layer.values)(layer)
    assert sorted(found.tolist()) == values.tolist()
    assert (found != values).sum() > 25
    assert Permuted(lambda layer: None)(layer) is None


def test_regrowth_that_decays_follows_the_sparsity():
    plan = plan_of(ARMS["keeps-r0.2-decays"])
    left = [1 - plan.schedule.at(step) / SPARSITY for step in range(100, 601, 100)]
    assert [plan.grow.at(step) for step in range(100, 601, 100)] == pytest.approx(
        [0.2 * part for part in left]
    )
    assert plan_of(ARMS["published"]).grow.at(600) == REGROW
    assert plan_of(ARMS["magnitude"]).drop is magnitude


def test_rates():
    rates = [ONCE.rate(step, 100) for step in range(800)]
    assert set(rates[:600]) == {ONCE.lr}
    assert rates[700] == pytest.approx(ONCE.lr / 2)
    six = [SIX.rate(step, 500) for step in range(11_000)]
    assert six.index(max(six)) == 249
    assert set(six[249:3500]) == {SIX.lr}
    assert set(six[3500:10_500]) == {SIX.lr / 3}
    assert six[10_750] == pytest.approx(SIX.lr / 6)
    assert six[-1] < 1e-4 * SIX.lr
    # Masks change after the shared epochs, and stay where the rate falls.
    assert SIX.when(500) == When(interval=50, end=10_500 - 10_000, channels=100)
    assert [SIX.crops(epoch) for epoch in (0, 19, 20, 21)] == [True, True, False, False]
    assert ONCE.crops(0)
    assert ONCE.crops(7)
    sgd = LONGER[-1]
    assert sgd.rate(0, 100) == pytest.approx(sgd.lr / 100)
    assert sgd.rate(100, 100) == sgd.rate(1199, 100) == sgd.lr


def test_the_papers_neurons():
    node = next(m for m in LONGER[-1].build().modules() if hasattr(m, "v_threshold"))
    assert (node.tau, node.decay_input, type(node.surrogate_function).__name__) == (
        *(4 / 3, False),
        "ATan",
    )
    weights = [m.weight for m in SIX.build().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(weight.numel() for weight in weights) == 608_944  # what docs/ say


def test_seeds_come_one_after_the_other():
    found = cells("settle")
    assert [cell.seed for cell in found] == sorted(cell.seed for cell in found)
    assert [cell.arm for cell in found[: len(ARMS)]] == list(ARMS)
    assert len({cell.name for cell in found}) == len(found) == 24 * len(ARMS)
    assert not {cell.seed for cell in cells("confirm")} & {cell.seed for cell in found}
    with pytest.raises(ValueError, match="Expected arms of dense.*but got 'keeps'"):
        cells("cifar", ["keeps"])
    assert {cell.recipe.name for cell in cells("confirm", recipes=["x4", "sgd"])} == {"x4", "sgd"}
    with pytest.raises(ValueError, match="Expected recipes of x2, x4, sgd but got 'x1'"):
        cells("confirm", recipes=["x1"])


def test_subset_is_of_the_first_images_and_even():
    y = torch.arange(12_000) % CLASSES
    x = torch.arange(12_000).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    found = Images(x, y, x[:1], y[:1]).subset(500)
    assert found.y.bincount().tolist() == [50] * CLASSES
    assert found.x.max() < 10_000
    with pytest.raises(ValueError, match="Expected 1001 of the first 10,000"):
        Images(x, y, x, y).subset(10_010)


def test_epochs_are_orders_of_the_images():
    y = torch.arange(30)
    x = y.view(-1, 1, 1, 1).expand(-1, 3, 32, 32).to(torch.uint8)
    images = Images(x, y, x, y)
    orders = [torch.cat([labels for _, labels in images.epoch(8, *k)]) for k in ((0, 0), (0, 1))]
    assert all(sorted(set(order.tolist())) == sorted(order.tolist()) for order in orders)
    assert len(orders[0]) == 24
    # Every image is one colour: a crop shows zeros at its rim, a flip none.
    for crops in (True, False):
        x = torch.full((30, 3, 32, 32), 200, dtype=torch.uint8)
        batches = [x for x, _ in Images(x, y, x, y).epoch(8, 0, 0, crops)]
        assert (len(torch.cat(batches).unique()) > 3) == crops
    assert not orders[0].equal(orders[1])
    for (x1, y1), (x2, y2) in zip(images.epoch(8, 0, 0), images.epoch(8, 0, 0), strict=True):
        assert x1.equal(x2)
        assert y1.equal(y2)


def test_rows(rows):
    for arm, row in rows.items():
        assert row["sparsity"] == pytest.approx(0.0 if arm == "dense" else SPARSITY, abs=1e-3)
        assert (row["steps"], row["test_images"], len(json.loads(row["curve"]))) == (30, 100, 3)
        grown = json.loads(row["regrown"])
        assert bool(sum(grown.values())) == (arm == "keeps-permuted")
        assert grown.get("classifier.linear", 0) == 0  # no neuron follows it
    each = json.loads(rows["keeps-permuted"]["survival"])
    assert [step for step, _, _ in each] == [4, 6, 8, 10, 12]
    assert all(0 <= kept <= new for _, new, kept in each)
    # Neurons alike, weights alike: at first arms of one seed are one training.
    assert rows["dense"]["parameters"] == rows["magnitude"]["parameters"]


def test_survival_is_of_what_the_update_before_grew():
    def record(step, grown, survived):
        return UpdateRecord(step, 0.5, 0.5, {}, {}, grown, {}, survived)

    history = [
        record(10, {"a": 4, "b": 2}, {}),
        record(20, {"a": 1}, {"a": 3, "b": 1}),
        record(30, {}, {"a": 1}),
    ]
    assert survival_counts(history) == [[20, 6, 4], [30, 1, 1]]


def test_stopped_and_taken_up_again(rows, images, tmp_path):
    cell = next(cell for cell in QUICK if cell.arm == "keeps-permuted")
    for _ in range(2):
        assert train(cell, images, "cpu", tmp_path, stop=lambda: True) is None
    row = train(cell, images, "cpu", tmp_path, stop=lambda: True)
    straight = rows[cell.arm]
    assert {k: v for k, v in row.items() if k not in SECONDS} == {
        k: v for k, v in straight.items() if k not in SECONDS
    }


def test_shared_epochs_are_those_of_a_dense_training(images, tmp_path):
    cell = next(cell for cell in QUICK if cell.arm == "dense")
    alone = replace(cell, recipe=replace(cell.recipe, shared=0))
    rows = [train(one, images, "cpu", tmp_path / str(i)) for i, one in enumerate((cell, alone))]
    networks = [
        torch.load(tmp_path / str(i) / f"{cell.name}.pt", weights_only=True) for i in range(2)
    ]
    assert rows[0]["curve"] == rows[1]["curve"]
    for name, value in networks[0]["model"].items():
        assert torch.equal(value, networks[1]["model"][name]), name


def test_arms_begin_with_the_shared_network_and_optimizer(images, tmp_path):
    dense, pruned = cells("quick", ["dense", "keeps"])
    found = shared_state(dense, images, "cpu", tmp_path, lambda: False)
    training = Training(pruned, images, "cpu", found)
    assert (training.step, training.epoch, len(training.curve)) == (10, 1, 1)
    for name, value in training.model.net.state_dict().items():
        if name in found["model"]:
            assert torch.equal(value, found["model"][name]), name
    # By name: Adam's moments of each parameter are those that this parameter had.
    alone = Training(dense, images, "cpu")
    alone.load(tmp_path / f"quick-shared-s{dense.seed}.pt")
    theirs = dict(alone.model.named_parameters())
    for name, parameter in training.model.net.named_parameters():
        mine, other = training.optimizer.state[parameter], alone.optimizer.state[theirs[name]]
        assert all(torch.equal(mine[k], other[k]) for k in ("step", "exp_avg", "exp_avg_sq")), name


def test_stopped_in_the_shared_epochs(rows, images, tmp_path):
    cell = next(cell for cell in QUICK if cell.arm == "magnitude")
    longer = replace(cell, recipe=replace(cell.recipe, shared=2))
    stops = [train(longer, images, "cpu", tmp_path, stop=lambda: True) for _ in range(3)]
    assert [stop is None for stop in stops] == [True, True, False]
    assert (stops[-1]["steps"], len(json.loads(stops[-1]["curve"]))) == (30, 3)
    with pytest.raises(ValueError, match=r"quick-shared-s0.pt to be of the recipe .*remove it"):
        shared_state(cell, images, "cpu", tmp_path, lambda: False)


def call(tmp_path, *more):
    run.main(["--suite", "quick", "--out", str(tmp_path), *more])
    return read_rows(tmp_path / f"survival_{run.label('cpu')}.csv")


def test_cells_with_rows_are_skipped(tmp_path, capsys):
    arms = ["--arms", "magnitude", "dense", "--workers", "0"]
    assert call(tmp_path, *arms[:2], "--workers", "0", "--limit", "1e-9") == []
    first = call(tmp_path, *arms)
    assert [row["arm"] for row in first] == ["magnitude", "dense"]
    assert call(tmp_path, *arms) == first
    assert "2 cells, 2 done before" in capsys.readouterr().out
    call(tmp_path, *arms, "--list")
    assert capsys.readouterr().out.count("done") == 2


def test_processes_write_the_same_rows_though_one_fails(rows, tmp_path):
    told = []
    broken, cell = cells("quick", ["magnitude", "dense"])
    object.__setattr__(broken, "arm", "unknown")
    settings = pool.Settings("cpu", None, tmp_path, True, tmp_path, time.time() + 500)
    pool.Pool([broken, cell], settings, 1, lambda *what: told.append(what)).run()
    (failed, why), (done, row) = told
    assert (failed, done) == ("failed", "done")
    assert "quick-unknown-s0" in why
    assert "KeyError: 'unknown'" in why
    same = {k: v for k, v in rows["dense"].items() if k not in SECONDS}
    assert {k: v for k, v in row.items() if k not in SECONDS} == same


def test_a_killed_worker_is_told(tmp_path):
    told = []
    settings = pool.Settings("cpu", None, tmp_path, True, tmp_path, time.time() + 500)
    workers = pool.Pool(cells("quick", ["magnitude"]), settings, 1, lambda *what: told.append(what))
    workers.workers[0].kill()
    workers.workers[0].join()
    workers.run()
    ((end, what),) = told
    assert end == "failed"
    assert "killed (exit code -9)" in what


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "120-107"], "argument --seeds: Expected A-B with A <= B but got '120-107'"),
        (["--seeds", "-3"], "argument --seeds"),
        (["--seeds", "abc"], "argument --seeds: invalid seeds value: 'abc'"),
        (["--workers", "-1"], "argument --workers: Expected 0 or more but got -1"),
    ],
)
def test_arguments_that_make_no_sense(arguments, says, capsys):
    with pytest.raises(SystemExit):
        run.parse(arguments)
    assert says in capsys.readouterr().err


def test_seeds():
    assert list(run.parse(["--seeds", "3-5"]).seeds) == [3, 4, 5]
    assert list(run.parse(["--seeds", "3"]).seeds) == [3]


def test_a_checkpoint_of_other_images_or_damaged(images, tmp_path):
    (cell,) = cells("quick", ["dense"])
    training = Training(cell, images, "cpu")
    path = tmp_path / "c.pt"
    training.save(path)
    others = replace(images, note="other images")
    with pytest.raises(ValueError, match="200 images, other images but it is of .*generated"):
        Training(cell, others, "cpu").load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"Expected .*c.pt to be a checkpoint: remove it"):
        training.load(path)
