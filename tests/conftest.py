"""What every test shares: seeds, one thread, steady examples; `gpu` tests need a device."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, settings

ROOT = Path(__file__).parents[1]

# The reference engine, so that nothing is compiled; tests/engines chooses for itself.
os.environ.setdefault("SJ_PRUNE_ENGINE", "torch")
# The same examples in every run, and time for them on a busy machine.
settings.register_profile("steady", deadline=None, derandomize=True, max_examples=50)
# A rented GPU has no minutes for smaller examples of a failure.
settings.register_profile(
    "gpu", settings.get_profile("steady"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("steady")
# Helpers assert too: a failure there shall show its values.
pytest.register_assert_rewrite("tests.support")

# Coverage looks away here. Most of what these run is not the library (compilers written in Python,
# plots, whole networks of the host), and takes up to 1.4 times as long when it is watched. So the
# figure counts what the library's own tests execute, and is the lower for it.
UNWATCHED = (
    "benchmarks",
    "examples",
    "compaction/test_compact_zoo.py",
    "deploy/test_deploy_zoo.py",
    "engines/test_cuda_compile.py",
    "neurons/test_compile.py",
    "neurons/test_layout.py",
    "test_house.py",
    "test_imports.py",
    "wrapper/test_compiled_training.py",
)


class Watch:
    """Stops coverage, if it runs, and lets it go on."""

    def __init__(self, config):
        plugin = config.pluginmanager.get_plugin("_cov")
        self.controller = plugin and plugin.cov_controller
        self.on = True

    def turn(self, on):
        if self.controller and on != self.on:
            (self.controller.resume if on else self.controller.pause)()
        self.on = on


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session):
    result = yield
    session.config.watch = Watch(session.config)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Collect unwatched, but for the library, whose lines at the top run at its import alone."""
    session.config.watch.turn(False)
    if session.config.option.dist == "no":  # else this process hands out tests: it needs no torch
        load(session.config.watch)
    return (yield)


def load(watch):
    import torch

    torch.set_num_threads(1)  # one thread a worker: there is a worker a core
    if not torch.cuda.is_available():
        # To seed devices that are not there, torch notes the whole stack: that takes longer.
        torch.cuda.manual_seed_all = torch.xpu.manual_seed_all = lambda seed: None
    importlib.import_module("spikingjelly.activation_based.functional")
    watch.turn(True)
    import sj_prune

    for module in pkgutil.walk_packages(sj_prune.__path__, "sj_prune."):
        importlib.import_module(module.name)
    watch.turn(False)


def pytest_collection_modifyitems(items):
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    file = item.path.relative_to(ROOT / "tests").as_posix()
    item.config.watch.turn(not file.startswith(UNWATCHED))


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """What `tests.support.loading` finds in a process of its own."""
    from tests.support.processes import environment, once

    def run(_):
        command = [sys.executable, "-m", "tests.support.loading"]
        done = subprocess.run(
            command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    return once(tmp_path_factory, "loaded", run)


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)
