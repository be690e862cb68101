"""What README and docs/ show runs as printed."""

import socket

import pytest
import torch.distributed as dist

from tests.support.pages import PAGES, ROOT, blocks, run_page

WITH_PYTHON = [page for page in PAGES if any(blocks(page, "python"))]


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
