"""What the training scripts share: options, one loop, checkpoints, guards, logs."""

import os

# Before torch is loaded: its threads sleep while they wait (see quickstart.py).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for --deterministic
