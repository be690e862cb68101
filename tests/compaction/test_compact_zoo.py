"""Masked and compact networks are equal, for SpikingJelly's own models."""

import pytest

from sj_prune.compaction import compact, couple_checked
from tests.support import zoo
from tests.support.compaction_cases import (
    assert_awake,
    assert_equal,
    awake,
    mask_at_random,
    parameters,
)


def prove(name, seed, density):
    net, x = zoo.build(name, seed)
    assert_awake(awake(net, x, seed), x)
    dense = parameters(net)
    coupling = couple_checked(net, (x,))
    assert mask_at_random(net, x, seed, density, coupling)
    small = compact(net, x)
    assert parameters(small) < dense
    assert_equal(net, small, x)
    return coupling


@pytest.mark.parametrize("name", zoo.QUICK)
def test_one_of_every_family(name):
    prove(name, 0, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_model(name, density):
    prove(name, int(density * 10), density)


def stays(name):
    net, x = zoo.build(name)
    return couple_checked(net, (x,))


@pytest.mark.parametrize("name", [n for n in zoo.QUICK if "former" in n])
def test_what_is_pruned_of_transformers(name):
    """MLP hidden channels and stem stages are free; attention's own channels stay, with reasons."""
    found = stays(name)
    free = {layer for group in found.groups for layer in group.producers}
    assert any("mlp.fc1" in layer for layer in free)
    assert any(layer.startswith("patch_embed") for layer in free)
    projections = [layer for layer in found.frozen if any(k in layer for k in ("qk", "q_conv"))]
    assert projections
    assert found.frozen["head"] == "it is an output of the network"


@pytest.mark.skipif(not zoo.MODERN, reason="0.0.0.0.14 has no transformers")
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("SpikeDrivenTransformer", "patch_embed.final_stage.0"),
        ("QKFormer", "patch_embed1.conv3"),
        ("MaxFormer_cifar", "patch_embed3.conv2"),
    ],
)
def test_embeddings_whose_attention_divides_their_width_stay(name, layer):
    assert stays(name).frozen[layer].startswith("its width is written into the forward")


@pytest.mark.parametrize("name", ["spiking_resnet12", "sew_resnet12_ADD"])
def test_residual_networks_are_free_but_for_the_classifier(name):
    assert stays(name).frozen == {"fc": "it is an output of the network"}
