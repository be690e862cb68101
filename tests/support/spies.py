"""Scores that show what they say."""

from dataclasses import replace

from sj_prune.methods.parts import reads_of

__all__ = ["Spy", "spied_growth"]


class Spy:
    """A score that says and reads what another one does, and shows it: ``note(layer, value)``."""

    def __init__(self, score, note):
        self.score, self.note = score, note

    @property
    def reads(self):
        return reads_of(self.score)

    def __call__(self, layer):
        value = self.score(layer)
        self.note(layer, value)
        return value


def spied_growth(plan, note):
    """Return a plan whose growth score shows what it says."""
    return replace(plan, grow=replace(plan.grow, score=Spy(plan.grow.score, note)))
