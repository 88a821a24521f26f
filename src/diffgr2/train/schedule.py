"""The learning rate as a pure function of the step.

Contract: linear warm-up to `lr`, then a cosine down to `final_lr * lr`, reached at the last step.
Not here: any state; a resumed run asks for the same step and gets the same float.
"""

from __future__ import annotations

import math

from diffgr2.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of optimizer step `step`, counted from 1."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    return config.lr * (config.final_lr + (1.0 - config.final_lr) * cosine)
