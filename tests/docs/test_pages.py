"""What README and docs/ show runs as printed."""

import re
import shlex
import socket

import pytest
import torch.distributed as dist

from tests.support.pages import PAGES, ROOT, blocks, run_page

SCRIPT = re.compile(r"(examples|benchmarks)/[\w/]+\.py")
WITH_PYTHON = [page for page in PAGES if any(b.language == "python" for b in blocks(page))]


def name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def _as_torchrun(monkeypatch):
    """The environment of the one process of a torchrun, should a page ask for it; no windows."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    for key, value in {**process, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(key, str(value))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
@pytest.mark.usefixtures("_as_torchrun")
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(page)


def commands(page):
    """Return the commands of a page's shell blocks that run one of our scripts, in words."""
    code = "\n".join(block.code for block in blocks(page) if block.language in ("bash", "sh"))
    lines = code.replace("\\\n", " ").splitlines()
    found = [shlex.split(line.rpartition("&&")[2], comments=True) for line in lines]
    return [words for words in found if any(SCRIPT.fullmatch(word) for word in words)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_name_scripts_and_options_that_are_there(page):
    for words in commands(page):
        (script,) = (ROOT / word for word in words if SCRIPT.fullmatch(word))
        text = "".join(p.read_text() for p in (script, *script.parent.glob("common/*.py")))
        after = words[words.index(script.relative_to(ROOT).as_posix()) :]
        options = [word for word in after if word.startswith("--")]
        assert [option for option in options if f'"{option}"' not in text] == []
