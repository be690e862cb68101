"""Learning rate and losses: functions of the step and of the outputs alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def learning_rate(args, step, steps):
    """Return the rate of optimizer step `step` (from 0) of `steps`; nothing to be saved."""
    warm = round(args.warmup * steps / args.epochs)
    if step < warm:
        return args.lr * (step + 1) / warm
    if args.schedule == "cosine":
        return args.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    if args.schedule == "step":
        return args.lr * args.lr_factor ** sum(step >= part * steps for part in args.lr_steps)
    return args.lr


def loss_of(args, output, y):
    """Return the loss.

    Args:
        args: ``loss``, ``label_smoothing``, ``tet_lambda``.
        output: of every time step, ``[T, N, classes]``.
        y: labels ``[N]``.
    """
    output = output.float()  # under autocast too: a softmax wants the range
    if args.loss == "ce":
        return F.cross_entropy(output.mean(0), y, label_smoothing=args.label_smoothing)
    # TET (Deng et al., ICLR 2022): every time step has to be right, and near the threshold 1.
    each = F.cross_entropy(
        output.flatten(0, 1), y.repeat(len(output)), label_smoothing=args.label_smoothing
    )
    distance = F.mse_loss(output, torch.ones_like(output))
    return (1 - args.tet_lambda) * each + args.tet_lambda * distance
