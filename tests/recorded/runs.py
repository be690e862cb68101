"""Record the bits of many short runs, to show that a rewrite of the library changes none.

::

    python tests/recorded/runs.py OLD.json --tree OLD_TREE
    python tests/recorded/runs.py NEW.json
    python tests/recorded/compare.py OLD.json NEW.json

Both on one machine: another processor rounds otherwise.
"""

import argparse
import importlib
import json
import logging
import os
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, help="JSON file to write the digests to")
    parser.add_argument("--tree", type=Path, default=ROOT, help="whose sj_prune is run")
    parser.add_argument("--only", default="", help="regular expression that names have to contain")
    parser.add_argument("--checkpoints", type=Path, help="write checkpoints here instead")
    parser.add_argument("--times", action="store_true", help="say what took longest")
    return parser.parse_args()


def _say(text):
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _prepare(tree):
    """Set engine, threads and paths before anything is imported."""
    os.environ["SJ_PRUNE_ENGINE"] = "torch"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    # The runs of this tree, with the library of that one.
    sys.path.insert(0, str(ROOT))
    importlib.import_module("tests.recorded")
    sys.path[0] = str(tree.resolve())
    import torch

    import sj_prune

    torch.set_num_threads(1)
    logging.getLogger("sj_prune").setLevel(logging.ERROR)  # small networks give many warnings
    home = Path(sj_prune.__file__).resolve().parent.parent
    if home != tree.resolve():
        raise SystemExit(f"Expected sj_prune of {tree.resolve()} but got that of {home}")
    _say(f"sj_prune of {home}, torch {torch.__version__}")


def _run_all(only):
    from tests.recorded.scenarios import run, scenarios

    found, times, raised = {}, {}, []
    for name, scenario in scenarios().items():
        if re.search(only, name) is None:
            continue
        start = time.perf_counter()
        found[name], error = run(scenario)
        times[name] = time.perf_counter() - start
        if error is not None:
            raised.append(f"{name}: {error}")
    return found, times, raised


def main():
    given = _arguments()
    _prepare(given.tree)
    if given.checkpoints is not None:
        from tests.recorded.saved_states import write

        write(given.checkpoints)
        return
    if given.out is None:
        raise SystemExit("Expected OUT.json, the file to write the digests to")
    found, times, raised = _run_all(given.only)
    given.out.write_text(json.dumps(found, indent=0) + "\n")
    for line in raised:
        _say(f"ended by an error, which is recorded: {line}")
    if given.times:
        for name in sorted(times, key=times.get, reverse=True)[:15]:
            _say(f"{times[name]:6.2f} s {name}")
    moments = sum(map(len, found.values()))
    _say(f"{len(found)} runs, {moments} moments, {sum(times.values()):.0f} s")


if __name__ == "__main__":
    main()
