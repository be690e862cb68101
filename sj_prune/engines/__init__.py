"""Engines: who runs the multi-step pass.

An engine is a module-like object with ``forward`` and ``backward``; `choose` picks one for a call.
``SJ_PRUNE_ENGINE`` = auto | cupy | cpp | torch forces one; a forced engine that cannot serve a call
is an error, an unforced one falls back to torch and says so once.
"""

from sj_prune.engines.choice import Engine, check_without_closed_form, choose

__all__ = ["Engine", "check_without_closed_form", "choose"]
