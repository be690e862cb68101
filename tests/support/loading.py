"""A program that loads the library piece by piece and prints what came with each of them."""

import importlib
import json
import sys


def error_of(function):
    try:
        function()
    except ImportError as error:
        return str(error)
    return None


def loaded():
    """Return the modules that are there behind each import, and errors without what is optional."""
    found = {}
    for name in ("sj_prune", "sj_prune.data", "sj_prune.integrations"):
        importlib.import_module(name)
        found[name] = sorted(sys.modules)
    import sj_prune.integrations
    from sj_prune import plots

    for name in ("lightning", "pytorch_lightning", "matplotlib"):
        sys.modules[name] = None
    found["no lightning"] = error_of(lambda: sj_prune.integrations.LightningPruning)
    found["no matplotlib"] = error_of(lambda: plots.accuracy_over_sparsity({"a": [(0.9, 0.7)]}))
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(loaded()))
