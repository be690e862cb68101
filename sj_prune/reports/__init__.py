"""What was done to a network and what it costs: explain, report, compare, cost."""
