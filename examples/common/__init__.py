"""What the training scripts share: options, one loop, checkpoints, guards, logs."""
