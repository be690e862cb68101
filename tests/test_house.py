"""The house: no circle of imports, few modules at the top, files that are read in one go."""

from graphlib import CycleError, TopologicalSorter

import pytest

from sj_prune.reports.catalogue import published
from tests.support.sources import SOURCES, import_graph

AT_THE_TOP = 7
LINES = 300
METHOD = 200  # of one published method
SHORTER = {"wrapper.py": 250}  # the face: what it does stands elsewhere


def circle(graph):
    """Return the modules along one circle of a graph, each imports the next; or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]  # graphlib lists the imported before the importing
    return []


@pytest.mark.parametrize(
    "back",
    [
        "from sj_prune import a",
        "from ..a import name",
        "def f():\n    from sj_prune.a import name",
        "if TYPE_CHECKING:\n    import sj_prune.a",
        "importlib.import_module('sj_prune.a')",
    ],
)
def test_reader_finds_every_circle(back):
    sources = {"a.py": "from sj_prune.room import b", "room/__init__.py": "", "room/b.py": back}
    graph = import_graph(sources)
    assert graph["sj_prune.a"] == {"sj_prune.room.b"}
    assert set(circle(graph)) == {"sj_prune.a", "sj_prune.room.b"}
    assert circle(import_graph({**sources, "room/b.py": "import torch"})) == []


def test_circle_through_what_a_package_lists():
    sources = {"a.py": "from sj_prune.room import name", "room/__init__.py": "from .b import name"}
    found = circle(import_graph({**sources, "room/b.py": "import sj_prune.a"}))
    assert set(found) == {"sj_prune.a", "sj_prune.room", "sj_prune.room.b"}


def test_no_circle_of_imports():
    graph = import_graph({file: path.read_text() for file, path in SOURCES.items()})
    assert sum(map(len, graph.values())) > len(graph)  # it was read
    found = circle(graph)
    assert found == [], " imports ".join(found)


def test_few_modules_at_the_top():
    top = [file for file in SOURCES if "/" not in file]
    assert len(top) <= AT_THE_TOP, top


@pytest.mark.parametrize("file", SOURCES)
def test_file_is_short(file):
    lines = len(SOURCES[file].read_text().splitlines())
    assert lines <= SHORTER.get(file, LINES), f"{file}: split it"


def test_file_of_a_method_is_shorter():
    for kind in published():
        file = f"{kind.__module__.removeprefix('sj_prune.').replace('.', '/')}.py"
        assert len(SOURCES[file].read_text().splitlines()) <= METHOD, f"{file}: split it"
