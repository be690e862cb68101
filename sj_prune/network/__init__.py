"""KNOW: layers, norms, neurons behind a weight, inputs, and which channels live and die together."""
