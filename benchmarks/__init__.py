"""Measurements; scripts, but for the package benchmarks/accuracy."""
