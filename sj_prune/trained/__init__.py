"""A network that is trained already: prune(), calibration, budgets."""
