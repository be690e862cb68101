"""The layout's rules: who may import whom. Read from the syntax, so that lazy imports count too."""

import ast
import json
import subprocess
import sys

import pytest

from tests.support.sources import SOURCES, imports, imports_of, within

# Beside the standard library, these files import only what stands here.
ONLY = {
    # The kernel that writes into many tensors at once sees tensors alone, too.
    "masks/": ("torch", "numpy", "sj_prune.masks", "sj_prune._checks", "sj_prune.engines.fill"),
    "engines/fill.py": ("torch", "sj_prune.engines.cupy_device", "sj_prune.engines.request"),
    "engines/cupy_device.py": ("torch", "numpy", "cupy"),
    "methods/": ("torch", "sj_prune.methods", "sj_prune.masks", "sj_prune._checks"),
    "neurons/activity.py": ("torch", "sj_prune.neurons.statistics", "sj_prune.engines.collect"),
    "engines/collect.py": ("torch", "sj_prune.engines.cupy_device", "sj_prune.engines.request"),
    "neurons/statistics.py": ("torch",),
}
# These files import none of what stands here.
NEVER = {
    "neurons/": ("sj_prune.masks", "sj_prune.methods", "sj_prune.wrapper"),
}
# Only these files, or folders, import these packages.
OWNERS = {
    "spikingjelly": ("_host.py", "models/", "data/host.py"),
    "cupy": ("engines/cupy_device.py", "__main__.py"),
    "torch.distributed": ("run/processes.py",),
    "lightning": ("integrations/",),
    "pytorch_lightning": ("integrations/",),
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import cupy.cuda as c", ["cupy.cuda"]),
        ("from sj_prune import masks, methods", ["sj_prune.masks", "sj_prune.methods"]),
        ("from .base import Method", ["sj_prune.methods.base.Method"]),
        ("from .. import wrapper", ["sj_prune.wrapper"]),
        ("from ..masks import Channels", ["sj_prune.masks.Channels"]),
        ("def f():\n    import torch", ["torch"]),
        ("importlib.import_module('cupy')", ["cupy"]),
        ("print('import cupy')", []),
    ],
)
def test_reader_sees_every_form_of_import(source, expected):
    assert imports(source, "sj_prune.methods") == expected


@pytest.mark.parametrize("file", SOURCES)
def test_imports_follow_the_layout(file):
    found = [name for name in imports_of(file) if name.split(".")[0] not in sys.stdlib_module_names]
    for prefix, allowed in ONLY.items():
        if file.startswith(prefix):
            assert [n for n in found if not within(n, allowed)] == [], f"{file}: only {allowed}"
    for prefix, forbidden in NEVER.items():
        if file.startswith(prefix):
            assert [n for n in found if within(n, forbidden)] == [], f"{file}: never {forbidden}"
    for package, owners in OWNERS.items():
        if not file.startswith(owners):
            assert [n for n in found if within(n, (package,))] == [], f"only {owners} may"


@pytest.mark.parametrize("file", [file for file in SOURCES if file != "run/processes.py"])
def test_one_module_talks_to_other_processes(file):
    """``torch`` brings ``torch.distributed`` with it: it could be used without an import."""
    used = [
        ast.unparse(n)
        for n in ast.walk(ast.parse(SOURCES[file].read_text()))
        if isinstance(n, ast.Attribute)
    ]
    assert [name for name in used if within(name, ("torch.distributed",))] == []


@pytest.mark.parametrize("file", [file for file in SOURCES if file != "__main__.py"])
def test_library_does_not_print(file):
    calls = [n for n in ast.walk(ast.parse(SOURCES[file].read_text())) if isinstance(n, ast.Call)]
    lines = [call.lineno for call in calls if getattr(call.func, "id", None) == "print"]
    assert lines == [], "log to logging.getLogger('sj_prune') instead"


def test_every_folder_is_a_package():
    """An editable install finds a folder without ``__init__.py``; the wheel would lack it."""
    assert [
        file for file, path in SOURCES.items() if not (path.parent / "__init__.py").exists()
    ] == []


def test_import_is_light(loaded):
    """Importing the package pulls in neither optional nor slow packages, nor the CuPy engine."""
    unwanted = {"torchvision", "matplotlib", "sklearn", "spikingjelly.datasets", "lightning"}
    assert set(loaded["sj_prune"]) & {*unwanted, "sj_prune.engines.cupy_engine"} == set()


def test_public_names_are_what_the_package_shows():
    """Plots too; the folders that happen to be loaded are none of them."""
    code = (
        "import sys, json, sj_prune; sj_prune.plots.density_per_layer; "
        "print(json.dumps([dir(sj_prune), sj_prune.__all__, 'matplotlib' in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    shown, public, drawing = json.loads(result.stdout.splitlines()[-1])
    assert sorted(shown) == sorted(public)
    assert not drawing
