"""Small generated recordings, shared by the tests of the event pipeline."""

import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from sj_prune.data import ClosedLoop, generate_dvs, synthetic_images
from tests.support.data_cases import NAMES, PER_CLASS


@pytest.fixture(scope="session")
def short():
    """A path of a tenth of the cost."""
    return ClosedLoop(amplitude=4.0, loops=1, steps=12, duration=50_000)


@pytest.fixture(scope="session")
def pictures():
    return synthetic_images(PER_CLASS, classes=len(NAMES), size=16, seed=3)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory, pictures, short):
    """A generated data set; read only."""
    images, labels = pictures
    root = tmp_path_factory.mktemp("recordings")
    return generate_dvs(root, images, labels, class_names=NAMES, motion=short)


@pytest.fixture
def copy(tmp_path, recordings):
    """A data set of one's own with events and without frames."""
    for name in ("extract", "events_np"):
        shutil.copytree(recordings / name, tmp_path / "own" / name)
    return tmp_path / "own"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and its URL on this machine: downloads without a network."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
    thread = Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
