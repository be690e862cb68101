"""Parts in any combination: they prune exactly as they say, or are refused with the reason."""

import copy
from functools import partial

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sj_prune import PruningWrapper
from sj_prune.masks import (
    ERK,
    NM,
    AtUpdates,
    Channels,
    Constant,
    Cosine,
    Cubic,
    Global,
    Hidden,
    Linear,
    OneShot,
    Sleep,
    Strict,
    Uniform,
    Unstructured,
)
from sj_prune.methods import FILL, Dense, FromZeros, Growth, Penalty, Plan, RandomMasks
from sj_prune.methods.admm import MeanSpike
from sj_prune.methods.cqp import CriticalMagnitude
from sj_prune.methods.fpgm import distance_to_others
from sj_prune.methods.gradr import Rewired
from sj_prune.methods.lamp import adaptive_magnitude
from sj_prune.methods.parts import (
    Statistic,
    awake_score,
    channel_norm,
    function_name,
    gamma_magnitude,
    gate_gradient,
    gradient_magnitude,
    magnitude,
    noise,
)
from sj_prune.methods.stds import SoftThreshold
from sj_prune.methods.svs import of_mean
from sj_prune.methods.taylor import SquaredGate
from tests.support.channel_cases import channel_net
from tests.support.pruning_cases import build, same, snapshot, train

STEPS = 5
DROPS = (
    magnitude,
    noise,
    adaptive_magnitude,
    gradient_magnitude,
    gamma_magnitude,
    distance_to_others,
    partial(channel_norm, p=2),
    CriticalMagnitude("criticality_max"),
    Statistic("firing_rate"),
    Statistic(function_name(of_mean)),
    SquaredGate(),
)
GROWS = (
    noise,
    magnitude,
    gradient_magnitude,
    gate_gradient,
    awake_score,
    Statistic("criticality_max", relative=True),
)
ALLOCATIONS = (Global(), Uniform(), Uniform(first_dense=True), ERK())
WHEN = {"interval": 2, "begin": 0, "end": 4}


@st.composite
def growths(draw):
    fraction = st.sampled_from((FILL, 0.2, 0.5, Cosine(final=0.0, initial=0.4, **WHEN)))
    return Growth(
        draw(st.sampled_from(GROWS)),
        draw(fraction),
        of=draw(st.sampled_from(("kept", "all", "before", "zero"))),
        initial=draw(st.sampled_from((0.0, 0.0, 0.01))),
        ties=draw(st.sampled_from((None, magnitude, "all"))),
        across_layers=draw(st.booleans()),
        keeps_value=draw(st.booleans()),
        skips_step=draw(st.booleans()),
        grace=draw(st.sampled_from((0, 0, 1))),
    )


@st.composite
def parts(draw):
    """Return the parts of a plan, senseless or not."""
    final = draw(st.sampled_from((0.3, 0.5, 0.7)))
    kind = draw(st.sampled_from((Cubic, Linear, Constant, OneShot)))
    when = {"end": 4} if kind is OneShot else WHEN
    structure = st.sampled_from((Unstructured(), Channels(), Channels(multiple=2), NM(1, 2)))
    hidden = draw(st.sampled_from((None,) * 6 + (Rewired(), SoftThreshold())))
    bindings = (Strict(), Strict(), Sleep("restore"), Sleep("zero"), AtUpdates())
    starts = (Dense(), Dense(), RandomMasks(), RandomMasks(0.25), FromZeros())
    penalties = (
        (),
        (Penalty(spikes=MeanSpike(0.1)),),
        (Penalty(proximal=lambda layer, lr: layer.weight.mul_(1 - lr * 0.1)),),
    )
    return {
        "schedule": kind(final=final, **when),
        "drop": None if hidden else draw(st.sampled_from(DROPS)),
        "grow": None if hidden else draw(st.none() | growths()),
        "structure": draw(structure),
        "allocation": draw(
            st.sampled_from((Global(), Uniform(), Uniform(first_dense=True), ERK()))
        ),
        "binding": Hidden(hidden) if hidden else draw(st.sampled_from(bindings)),
        "start": draw(st.sampled_from(starts)),
        "penalties": draw(st.sampled_from(penalties)),
    }


def made(function):
    """Return what a function returns, or None if it refuses with a reason."""
    try:
        return function()
    except (ValueError, RuntimeError) as error:
        if not str(error).startswith("Expected "):
            raise
        return None


def ready(plan):
    """Return a wrapper around a network, attached, and its optimizer."""
    net = channel_net() if plan.structure.needs_forward else build()
    model = PruningWrapper(net, plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model.attach(optimizer), optimizer


def exact(plan):
    """Tell whether the counts of the last update are those of the schedule."""
    ties = plan.grow is not None and plan.grow.ties == "all"
    multiple = getattr(plan.structure, "multiple", 1)
    return not (plan.emergent or ties or multiple > 1 or isinstance(plan.start, FromZeros))


def run(model, optimizer, saved=None, start=1):
    """Train to the end; what is saved in step 3 goes into `saved`."""

    def after(k):
        if k == 3 and saved is not None:
            saved.update(copy.deepcopy({"m": model.state_dict(), "o": optimizer.state_dict()}))

    train(model, optimizer, STEPS + 1 - start, start=start, after=after)
    return model


def check(plan, model):
    """Compare counts, blocks and weights with what the parts say."""
    masks = model.masks
    assert all(torch.isfinite(p).all() for p in model.parameters())
    if exact(plan):
        units = sum(masks.units().values())
        reached = round((1 - plan.schedule.final) * units)
        start = getattr(plan.start, "sparsity", None) or 0.0
        if plan.grow is None:  # what the start pruned does not come back
            reached = min(reached, round((1 - start) * units))
        assert sum(masks.kept_units().values()) == reached
    if isinstance(plan.structure, NM) and exact(plan):
        for mask in masks.values():
            assert (mask.unflatten(1, (-1, 2)).sum(2) == 1).all()
    if not isinstance(plan.binding, AtUpdates):
        for name, mask in masks.items():
            assert not masks.weight(name)[~mask].any()


@given(parts())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_parts_prune_exactly_or_are_refused(found):
    plan = made(lambda: Plan(**found))
    first = None if plan is None else made(lambda: ready(plan))
    saved = {}
    if first is None or made(lambda: run(*first, saved)) is None:
        return
    check(plan, first[0])
    model, optimizer = ready(plan)
    model.load_state_dict(saved["m"])
    optimizer.load_state_dict(saved["o"])
    run(model, optimizer, start=4)
    assert same(first[0].masks.masks, model.masks.masks)
    assert same(snapshot(first[0].net), snapshot(model.net))
