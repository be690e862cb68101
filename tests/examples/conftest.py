"""The training scripts, imported as modules, and the shortest runs of them."""

import importlib.util

import pytest
import torch

from tests.support.example_cases import EXAMPLES

pytest.importorskip("tqdm")


def _script(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cifar():
    return _script("cifar")


@pytest.fixture(scope="session")
def tiny_imagenet():
    return _script("tiny_imagenet")


@pytest.fixture(scope="session")
def cifar10_dvs():
    return _script("cifar10_dvs")


@pytest.fixture(scope="session")
def channels():
    pytest.importorskip("matplotlib")
    return _script("channels")


@pytest.fixture(autouse=True)
def _settings_back():
    """Runs choose the number of threads and seed every generator."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
