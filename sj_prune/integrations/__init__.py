"""Other people's training loops; each is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sj_prune.integrations.lightning_callback import LightningPruning

__all__ = ["LightningPruning"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in __all__:
        from sj_prune.integrations import lightning_callback

        return lightning_callback.LightningPruning
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
