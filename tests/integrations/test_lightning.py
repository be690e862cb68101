"""The Lightning callback does what the plain loop does, and its checkpoints go on."""

import pytest
import torch

pytest.importorskip("lightning.pytorch")

from spikingjelly.activation_based import neuron

from sj_prune import PruningWrapper
from sj_prune.integrations import LightningPruning
from tests.support.lightning_ranks import Classifier, Saver, loader, trainer
from tests.support.processes import run_in_ranks
from tests.support.pruning_cases import (
    assert_masked,
    criticality,
    is_stock,
    magnitude,
    rigl,
    same,
    train,
    wrapped,
)


def fit(method, folder, steps=-1, *, optimizer="sgd", path=None, **settings):
    pruning, module = LightningPruning(method), Classifier(optimizer)
    number = settings.pop("number", 8)
    run = trainer(folder, [pruning, *settings.pop("more", [])], steps, **settings)
    run.fit(module, loader(number), ckpt_path=path)
    return run, module, pruning.wrapper(module)


@pytest.mark.parametrize("kind", [criticality, magnitude, rigl])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_equals_the_plain_loop(tmp_path, kind, optimizer):
    """Lightning steps with a closure: pre-step hooks come before the backward pass."""
    _, _, model = fit(kind(), tmp_path, optimizer=optimizer)
    plain, other = wrapped(kind(), {"sgd": "sgd_momentum"}.get(optimizer, optimizer))
    train(plain, other, 8)
    assert model.step == plain.step == 8
    assert [r.to_dict() for r in model.history] == [r.to_dict() for r in plain.history]
    assert any((~mask).any() for mask in model.masks.values())
    assert same(dict(model.masks), dict(plain.masks))
    assert same(dict(model.net.state_dict()), dict(plain.net.state_dict()))
    assert model.optimizers == []  # released


def test_bf16(tmp_path):
    _, module, model = fit(criticality(), tmp_path, precision="bf16-mixed")
    assert len(model.history) == 4
    assert_masked(model)
    _, other, plain = fit(criticality(), tmp_path)
    assert not torch.equal(other.seen[-1], module.seen[-1])  # it was another precision
    assert model.sparsity()["total"] == plain.sparsity()["total"]


def test_accumulated_and_clipped_gradients(tmp_path):
    settings = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    _, _, model = fit(criticality(), tmp_path, **settings)
    assert model.step == 4
    assert [record.step for record in model.history] == [2, 4]
    assert_masked(model)


def test_sparsity_is_logged(tmp_path):
    run, _, model = fit(magnitude(), tmp_path)
    logged = float(run.callback_metrics["sparsity"])
    assert logged == pytest.approx(model.sparsity()["total"])
    assert logged > 0.5


@pytest.mark.parametrize("kind", [criticality, rigl])
def test_checkpoint_goes_on(tmp_path, kind):
    """Saved in the middle of a window, loaded into a new module: as if nothing had happened."""
    method = kind(interval=4, **({"batches": 4} if kind is criticality else {}))
    path = tmp_path / "run.ckpt"
    settings = {"number": 6, "max_epochs": 2}
    _, _, whole = fit(method, tmp_path, more=[Saver(path)], **settings)
    _, module, resumed = fit(method, tmp_path, path=path, **settings)
    assert len(module.seen) == 6
    assert resumed.step == 12
    assert [record.step for record in whole.history if record.step] == [4, 8]
    assert [r.to_dict() for r in resumed.history] == [r.to_dict() for r in whole.history]
    assert same(dict(resumed.net.state_dict()), dict(whole.net.state_dict()))


def test_second_fit_and_test_run(tmp_path):
    pruning, module = LightningPruning(magnitude()), Classifier()
    trainer(tmp_path, [pruning], 3).fit(module, loader())
    trainer(tmp_path, [pruning], 4).fit(module, loader())
    assert pruning.wrapper(module).step == 7
    other = Classifier()
    result = trainer(tmp_path, [LightningPruning(magnitude())]).test(
        other, loader(2), verbose=False
    )
    assert isinstance(other.net, PruningWrapper)
    assert result[0]["test"] > 0


def test_finalized_module_is_stock(tmp_path):
    pruning, module = LightningPruning(magnitude()), Classifier()
    trainer(tmp_path, [pruning]).fit(module, loader())
    masks = dict(pruning.wrapper(module).masks)
    net = pruning.finalize(module)
    assert module.net is net
    assert is_stock(module)
    assert type(net[2]) is neuron.LIFNode
    assert all(not net.get_submodule(name).weight[~mask].any() for name, mask in masks.items())
    with pytest.raises(TypeError, match="'net' of Classifier to be wrapped"):
        pruning.wrapper(module)


def test_nested_attribute(tmp_path):
    module = Classifier()
    module.outer = torch.nn.ModuleDict({"inner": module.net})
    del module.net
    module.__class__ = type("Nested", (Classifier,), {"net": property(lambda s: s.outer["inner"])})
    pruning = LightningPruning(magnitude(), attribute="outer.inner", log_as=None)
    run = trainer(tmp_path, [pruning])
    run.fit(module, loader())
    assert pruning.wrapper(module).step == 8
    assert "sparsity" not in run.callback_metrics


def test_mistakes_are_named(tmp_path):
    with pytest.raises(AttributeError, match=r"attribute='model' of Classifier but it has \['net'"):
        trainer(tmp_path, [LightningPruning(magnitude(), attribute="model")]).fit(
            Classifier(), loader()
        )
    module = Classifier()
    module.other = torch.nn.Linear(2, 2)
    module.configure_optimizers = lambda: torch.optim.SGD(module.other.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="none of the 1 that configure_optimizers returned"):
        trainer(tmp_path, [LightningPruning(magnitude())]).fit(module, loader())


def test_two_devices(tmp_path):
    first, second = run_in_ranks(2, "lightning_ranks", "ddp", tmp_path)
    for name in ("whole", "resumed"):
        assert first[name]["hash"] == second[name]["hash"]
        assert first[name]["step"] == 12
        assert first[name]["updates"] == 2
        assert not torch.equal(first[name]["loss"], second[name]["loss"])  # other batches
    assert first["whole"]["hash"] == first["resumed"]["hash"]
    before, after = zip(first["whole"]["counts"], second["whole"]["counts"], strict=True)
    assert before == ([12] * 3, [12] * 3)  # two batches of six on each
    assert after == ([24] * 3, [0] * 3)


def test_is_imported_when_asked_for(loaded):
    assert "sj_prune.integrations" in loaded["sj_prune.integrations"]
    assert "lightning" not in loaded["sj_prune.integrations"]
    assert "pip install lightning" in loaded["no lightning"]
