"""KNOW: layers, norms, neurons behind a weight, inputs, and channels that live and die together."""
