"""From masks to a smaller network: proved equal, with its optimizer, saved and built again."""

from sj_prune.compaction.errors import CompactionError
from sj_prune.compaction.network import compact
from sj_prune.compaction.optimizer import compact_with_optimizer
from sj_prune.compaction.record import architecture, load_compact, rebuild, save_compact
from sj_prune.compaction.trial import couple_checked

__all__ = [
    "CompactionError",
    "architecture",
    "compact",
    "compact_with_optimizer",
    "couple_checked",
    "load_compact",
    "rebuild",
    "save_compact",
]
