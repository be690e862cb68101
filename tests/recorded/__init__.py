"""Runs recorded to the bit, and checkpoints of the tree as it was: a rewrite changes neither."""
