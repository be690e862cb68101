"""The matrix: every method with every loop, and every option of it."""

from functools import partial

from tests.recorded.digest import Recorder, error_of
from tests.recorded.endings import ENDINGS, PRUNED, compacted
from tests.recorded.going_on import GOING_ON
from tests.recorded.loops import LOOPS, Case
from tests.recorded.methods import AT_ONCE, CHANNELS, METHODS, OTHER_NETS, VARIANTS
from tests.recorded.saved_states import continued, names


def _add(found, title, loop, name, net="residual", **settings):
    case = partial(Case, METHODS[name], net, settings=settings)
    found[title] = lambda record: loop(case(record=record))


def _training(name):
    """Return the runs of one method: all loops, other networks, its options."""
    found, loops = {}, {**LOOPS, **GOING_ON, **ENDINGS}
    for loop, run in loops.items():
        _add(found, f"{name}/{loop}", run, name)
    for net in OTHER_NETS[name]:
        for loop in ("sgd", "adam", "resumed-5", "by-hand-alone"):
            _add(found, f"{name}/{net}/{loop}", loops[loop], name, net)
    for variant, settings in VARIANTS[name].items():
        for loop in ("sgd", "resumed-5-adam"):
            _add(found, f"{name}/{variant}/{loop}", loops[loop], name, **settings)
    return found


def scenarios():
    """Return name -> function of a `Recorder`."""
    found = {}
    for name in METHODS:
        found.update(_training(name))
    for name in CHANNELS:
        _add(found, f"{name}/compacted", compacted, name)
    for name in AT_ONCE:
        for budget, run in PRUNED.items():
            _add(found, f"{name}/prune/{budget}", run, name)
    for name in names():
        found[f"{name}/checkpoint"] = partial(continued, name)
    return found


def run(scenario):
    """Return the events of one scenario; an error that ends it is one of them."""
    record = Recorder()
    try:
        scenario(record)
    except Exception as error:  # noqa: BLE001 (whatever it is, it has to stay the same)
        record.add("raised", **error_of(error))
        return record.events, f"{type(error).__name__}: {error}"
    return record.events, None
