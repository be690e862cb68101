"""Code blocks of README and docs/, and the names that they may use without saying so.

A page's Python blocks run in their order in one namespace, as a reader would run them. What is in
`given` is made anew before each block, so a block may wrap `net` whatever the one before did to it.
Below the line "<!-- one script -->" a page is given nothing: what it needs stands on it.
"""

import ast
import contextlib
import io
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron

import sj_prune
from tests.support.pruning_cases import vary_norms

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_SCRIPT = "<!-- one script -->"
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+).*?\n(?P<code>.*?)^(?P=indent)```", re.M | re.S
)


class Block(NamedTuple):
    """A fenced block: the line that its code begins in, counted from 0."""

    language: str
    line: int
    code: str
    in_script: bool


def blocks(page):
    """Yield the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        lines = [line[len(found["indent"]) :] for line in found["code"].splitlines()]
        before = text[: found.start("code")]
        code = "\n".join(lines) + "\n"
        yield Block(found["language"], before.count("\n"), code, _SCRIPT in before)


def run_page(page):
    """Run a page's Python blocks, as a module of its name.

    What stands in a block of `text` behind one has to be what it printed, numbers apart.
    """
    module = sys.modules[page.stem] = ModuleType(page.stem)
    printed = io.StringIO()
    try:
        for block in blocks(page):
            if block.language == "text":
                assert words(printed.getvalue()) == words(block.code), f"{page}:{block.line}"
            elif block.language == "python":
                if not block.in_script:
                    vars(module).update(given(chip="speck2f" in block.code))
                # Padded, so that a traceback shows the line of the page.
                tree = ast.parse("\n" * block.line + block.code)
                with contextlib.redirect_stdout(printed := io.StringIO()), _on_this_release():
                    exec(compile(tree, str(page), "exec"), vars(module))  # noqa: S102
    finally:
        del sys.modules[page.stem]


@contextlib.contextmanager
def _on_this_release():
    """Let a block end at what needs SpikingJelly 2.0.0, on the other one: pages say what does."""
    try:
        yield
    except ImportError as error:
        if "Expected SpikingJelly 2.0.0" not in str(error):
            raise


def words(text):
    return re.findall(r"[^\W\d]{2,}", text)


def network(widths=(6, 8), size=8):
    """Return convolutions and the linear layer "classifier", for ``[T, N, 2, size, size]``."""
    net = torch.nn.Sequential()
    for i, (before, after) in enumerate(itertools.pairwise((2, *widths))):
        net.add_module(f"conv{i}", layer.Conv2d(before, after, 3, padding=1, bias=False))
        net.add_module(f"norm{i}", layer.BatchNorm2d(after))
        net.add_module(f"spike{i}", neuron.IFNode())
        net.add_module(f"pool{i}", layer.AvgPool2d(2))
        size //= 2
    net.add_module("flatten", layer.Flatten())
    net.add_module("classifier", layer.Linear(widths[-1] * size**2, 10))
    functional.set_step_mode(net, "m")
    vary_norms(net, (0.8, 1.2), (0.2, 0.6))
    return net


def given(chip=False):
    """Return the names: a small network, or one that is too large for Speck2f; data; a training."""
    size = 32 if chip else 8
    net = network((32, 64, 128, 128), size) if chip else network()
    x_seq = 4 * torch.rand(2, 4, 2, size, size)
    batches = [(x_seq, torch.randint(0, 10, (4,))) for _ in range(2)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    method = sj_prune.methods.Criticality(sparsity=0.8, regrow=0.1, interval=1, end=4)
    model = sj_prune.PruningWrapper(net, method)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def train(model):
        if isinstance(model, sj_prune.PruningWrapper) and not model.optimizers:
            model.attach(torch.optim.SGD(model.parameters(), lr=0.01))
        for x_seq, y in batches:
            functional.reset_net(model)
            F.cross_entropy(model(x_seq).mean(0), y).backward()
        for each in getattr(model, "optimizers", ()):
            each.step()

    def masks():
        return {"norm0": torch.arange(6) < 3, "norm1": torch.rand(8) < 0.5}

    return {
        **{"sj_prune": sj_prune, "torch": torch, "F": F, "functional": functional},
        **{"net": net, "x_seq": x_seq, "loader": loader, "test_loader": loader},
        **{"method": sj_prune.methods.FilterNorm() if chip else method},
        **{"model": model, "optimizer": optimizer, "first": masks(), "second": masks()},
        **{"train": train, "my_training": train, "build_network": network},
    }
