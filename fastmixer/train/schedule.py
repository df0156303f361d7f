"""The learning rate of each step: up from zero over the warm-up, then constant, or down to the minimum.

Knows only numbers of steps. Source of the cosine: Loshchilov and Hutter 2017 (arXiv 1608.03983).
"""

import math

SCHEDULES = ("cosine", "linear", "constant")


def learning_rate_at(
    step: int, *, steps: int, peak: float, minimum: float = 0.0, warmup: int = 0, schedule: str = "cosine"
) -> float:
    """The learning rate of step 0..steps-1: peak * (step + 1) / warmup in the warm-up, then by schedule to minimum.

    Raises ValueError for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    left = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done
    return minimum + (peak - minimum) * left
