"""The table of methods, read from their classes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from typing import Any, cast

from sj_prune import methods
from sj_prune.masks.bindings import Hidden
from sj_prune.masks.schedule import Schedule
from sj_prune.methods.parts import FILL
from sj_prune.methods.plan import Plan
from sj_prune.reports.tables import table

HEADERS = ("method", "structure", "criterion", "growth", "schedule", "source", "defaults")
_ARXIV = r"arXiv \d{4}\.\d{5}"
_IN_BRACKETS = rf"\(([^()]*(?:{_ARXIV}|\b(?:19|20)\d\d\b)[^()]*)\)"
# What every method has: columns of their own, or given with a run.
_NOT_SHOWN = ("structure", "start", "begin", "end", "interval")


def published() -> Iterator[type[methods.Method]]:
    """Yield the classes of `sj_prune.methods` that make a plan, by name."""
    for name in sorted(methods.__all__, key=str.lower):
        kind = getattr(methods, name)
        known = isinstance(kind, type) and issubclass(kind, methods.Method)
        if known and kind.plan is not methods.Method.plan:
            yield kind


def methods_table(markdown: bool = False) -> str:
    """Return one line a method: its parts, the paper, and its settings by default.

    Args:
        markdown: as a table of GitHub's, instead of plain text.
    """
    return table(HEADERS, [_row(kind) for kind in published()], markdown)


def _row(kind: type[methods.Method]) -> list[str]:
    plan = _by_default(kind)
    return [
        kind.__name__,
        type(plan.structure).__name__.lower(),
        _criterion(plan),
        _growth(plan),
        "emergent" if plan.emergent else _words(plan.schedule),
        _source(kind),
        ", ".join(
            f"{field.name}={field.default!r}"
            for field in fields(kind)
            if field.name not in _NOT_SHOWN and field.default is not None
        ),
    ]


def _by_default(kind: type[methods.Method]) -> Plan:
    make, end = cast("Callable[..., methods.Method]", kind), 10**6
    if not issubclass(kind, methods.ScheduledMethod):
        return make().plan()
    try:
        return make(end=end).plan()
    except (TypeError, ValueError):  # an epoch, whose steps the user gives: any number will do
        return make(end=end, interval=1000).plan()


def _criterion(plan: Plan) -> str:
    if isinstance(plan.binding, Hidden):
        return "hidden: " + _words(plan.binding.transform)
    return _words(plan.drop)


def _growth(plan: Plan) -> str:
    grow = plan.grow
    if grow is None:
        return "none"
    if isinstance(grow.fraction, Schedule):
        share = f", {grow.fraction.initial:g} to {grow.fraction.final:g} of {grow.of}"
    else:
        share = "" if grow.fraction == FILL else f", {grow.fraction:g} of {grow.of}"
    return _words(grow.score) + share


def _words(part: Any) -> str:  # noqa: ANN401
    """Return the name of a part in words, with what a partial gives its function."""
    if isinstance(part, partial):
        given = ", ".join(f"{key}={value!r}" for key, value in part.keywords.items())
        return f"{_words(part.func)} ({given})"
    name: str = getattr(part, "name", getattr(part, "__name__", type(part).__name__))
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.split(".")[-1])
    return re.sub(r"[_:]", " ", words).lower()


def _source(kind: type) -> str:
    """Return the paper as the docstring of the class or its module names it; "-" without one."""
    mine = kind.__doc__ or ""
    for text in (mine.split("\n\n")[0], sys.modules[kind.__module__].__doc__ or "", mine):
        for pattern in (_IN_BRACKETS, rf"({_ARXIV})"):
            if found := re.search(pattern, " ".join(text.split())):
                return found[1]
    return "-"
