"""The messages of docs/troubleshooting.md are those of the library."""

import ast
import re

import pytest

from tests.support.pages import ROOT
from tests.support.sources import SOURCES

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
LISTED = re.findall(r"^\| `(.+?)` \|", PAGE, re.M)


def texts():
    """Return every text of the library, `…` for what is filled in."""
    found = []
    for path in SOURCES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[.\d]*[sdgf]", "…", node.value).replace("%%", "%"))
    return "\n".join(found)


@pytest.fixture(scope="module")
def library():
    return texts()


@pytest.mark.parametrize("message", LISTED)
def test_message_is_the_librarys(message, library):
    pieces = [re.escape(piece) for piece in re.split("…", message)]
    assert re.search("[^\n]*".join(pieces), library), "the library says otherwise: change the page"


def test_messages_are_read():
    assert len(LISTED) > 60
