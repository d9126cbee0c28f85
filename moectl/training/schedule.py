"""Learning rate and loss weights as pure functions of the step: nothing to save, nothing that resuming could get wrong.

Steps count from 0; the learning rate of step s is used for the update that makes step s + 1.
"""

from __future__ import annotations

import math

from moectl.training.options import TrainOptions


def learning_rate(options: TrainOptions, step: int) -> float:
    """Linear warm-up, then cosine (arXiv 1608.03983) or warm-up-stable-decay (arXiv 2404.06395)."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    fall = options.lr - options.min_lr
    if options.schedule == "cosine":
        done = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
        return options.min_lr + fall * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    decay_steps = max(1, min(round(options.decay_fraction * options.steps), options.steps - options.warmup_steps))
    left = (options.steps - step) / decay_steps
    return options.min_lr + fall * min(1.0, max(0.0, left))


def mtp_weight(options: TrainOptions, step: int) -> float:
    """Weight of the multi-token-prediction loss."""
    return options.mtp_weight if step < options.mtp_late_fraction * options.steps else options.mtp_weight_late
