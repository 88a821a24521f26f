"""The re-ranking reward (paper §3.6; GR2's conditional format reward).

Contract: pure functions of ranks. R_rank = (rank_before − rank_after) / K for the target; the
format reward α counts only where the rank strictly improved or a first place was kept, so copying
the input order earns nothing; an invalid or over-long output earns −1. Not here: parsing
(`prompts`), groups and advantages (`policy`).
"""

from collections.abc import Sequence

INVALID = -1.0


def reward(
    order: Sequence[int], failures: Sequence[str], target: int, k: int, alpha: float
) -> float:
    """Reward of one output; `target` is the target's position in the shown list.

    >>> reward([2, 0, 1], (), 2, 3, .2), reward([0, 1, 2], (), 2, 3, .2)
    (0.8666666666666667, 0.0)
    >>> reward([0, 1, 2], (), 0, 3, .2), reward([0, 0, 1], ("duplicate", "missing"), 2, 3, .2)
    (0.2, -1.0)
    """
    if failures:
        return INVALID
    after = list(order).index(target)
    gained = (target - after) / k
    return gained + (alpha if gained > 0 or target == after == 0 else 0.0)


def overlong_penalty(length: int, limit: int, cache: int) -> float:
    """DAPO's soft over-long shaping: 0 up to limit − cache, then linear down to −1 at the limit.

    >>> [overlong_penalty(n, 100, 20) for n in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    free = limit - cache
    if length <= free:
        return 0.0
    return max(-1.0, (free - length) / cache) if cache else -1.0
