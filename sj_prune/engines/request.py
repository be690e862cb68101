"""The engine that the user asks for."""

from __future__ import annotations

import os

NAMES = ("cupy", "cpp", "torch")


def requested() -> str:
    """Return ``SJ_PRUNE_ENGINE``, "auto" by default.

    Raises:
        ValueError: for anything but a known name.
    """
    name = os.environ.get("SJ_PRUNE_ENGINE", "auto")
    if name not in ("auto", *NAMES):
        raise ValueError(
            f"Expected SJ_PRUNE_ENGINE to be one of {('auto', *NAMES)} but got {name!r}"
        )
    return name
