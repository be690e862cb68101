"""Which channels of a network live and die together, found by following them through a forward."""

from sj_prune.network.coupling.groups import Coupling, Group
from sj_prune.network.coupling.tracer import couple

__all__ = ["Coupling", "Group", "couple"]
