"""What a plan sees of a wrapped network's layers, its scores, and what its parts do to a layer."""

from sj_prune.methods import NetView
from sj_prune.methods.plan import plan_of
from sj_prune.run.views import view

__all__ = [
    "choose",
    "drop_score",
    "forget",
    "grow_score",
    "layer_view",
    "observe",
    "penalize",
    "sums",
    "tie_score",
]


def layer_view(model, name):
    """Return what the plan of a wrapper sees of a layer now."""
    return view(model.net, model.session.run, name)


def drop_score(method, layer):
    """Return what a method drops a layer's units by."""
    return plan_of(method).drop(begun(method, layer))


def begun(method, layer):
    """Return a layer that has what a method's penalties keep of it from the beginning."""
    for penalty in plan_of(method).penalties:
        for key, value in (penalty.keeps(layer) if penalty.keeps else {}).items():
            layer.state.setdefault(key, value)
    return layer


def grow_score(method, layer):
    """Return what a method grows a layer's units by, or None."""
    grow = plan_of(method).grow
    return None if grow is None else grow.score(layer)


def tie_score(method, layer):
    """Return what decides between equal growth scores of a layer, or None."""
    grow = plan_of(method).grow
    return grow.ties(layer) if grow is not None and callable(grow.ties) else None


def sums(method, layer):
    """Return what a method's scores add up in a layer, at 0."""
    return {k: v for score in plan_of(method).accumulating for k, v in score.sums(layer).items()}


def observe(method, layer):
    """Let a method's scores add up what they see of a layer."""
    for score in plan_of(method).accumulating:
        score.add(layer)


def forget(method, layer):
    """Set what a method's scores have added up to 0."""
    for key in sums(method, layer):
        layer.state[key].zero_()


def penalize(method, layer):
    """Add a method's gradient terms to those of a layer."""
    for penalty in plan_of(method).penalties:
        if penalty.gradient is not None:
            penalty.gradient(begun(method, layer))


def choose(method, layer, dropped, step):
    """Let a method's penalties prepare in a step in which an update would drop these units."""
    net = NetView(
        names=(layer.name,),
        layer={layer.name: begun(method, layer)}.__getitem__,
        step=step,
        memory={},
        would_drop=lambda score=None, keep=None: {layer.name: dropped},
        learning_rate=lambda name: 0.0,
        synops=lambda: None,
    )
    for penalty in plan_of(method).penalties:
        if penalty.prepare is not None:
            penalty.prepare(net)
