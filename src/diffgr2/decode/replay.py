"""What was allowed when each token was committed: for scoring rollouts as they were sampled.

Contract: `decisions` walks a finished text in the order in which it was committed and gives, for
every token that was a decision, what the grammar allowed just before it: tokens of one step of
`block` are decided side by side, all others one after the other. Not here: the states of the model
in which they were decided (`stages.noisy`), probabilities (`objectives.likelihood`).
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from diffgr2.decode.grammar import Grammar, Guide, row_of_places
from diffgr2.decode.spelling import UNKNOWN
from diffgr2.types import Trajectory


@dataclass(frozen=True)
class Decisions:
    """D decisions of one text: where, and among what.

    `allowed_DA` is padded with NOTHING; in free text it is empty, and `banned_D` holds what may not
    stand there.
    """

    at_D: np.ndarray
    allowed_DA: np.ndarray
    banned_D: tuple[np.ndarray | None, ...]


def decisions(text: Trajectory, grammar: Grammar | None) -> Decisions:
    """See the module's docstring; without a grammar every token is a free decision."""
    n = len(text.tokens_T)
    if grammar is None:
        nothing = np.empty((n, 0), dtype=np.int64)
        return Decisions(np.arange(n), nothing, (np.empty(0, dtype=np.int64),) * n)
    guide = Guide(grammar, np.full(max(grammar.longest, n), UNKNOWN, dtype=np.int64))
    forced_T = text.forced_T if text.forced_T is not None else np.zeros(n, dtype=bool)
    order = np.lexsort((np.arange(n), text.step_of_T))
    found: list[tuple[int, np.ndarray | None, np.ndarray | None]] = []
    own = [int(at) for at in order if not forced_T[at]]
    sided = text.canvas_T is not None  # block: one step's tokens do not know of each other
    for _, members in groupby(own, key=lambda at: int(text.step_of_T[at]) if sided else at):
        step = list(members)
        for at in step:
            allowed = guide.allowed(at)
            found.append((at, allowed, guide.without(at) if allowed is None else None))
        for at in step:
            if guide.tokens_T[at] == UNKNOWN:  # else another of this step has settled it
                guide.commit(at, int(text.tokens_T[at]))
    sets = [allowed if allowed is not None else [] for _, allowed, _ in found]
    at_D = np.array([at for at, _, _ in found], dtype=np.int64)
    return Decisions(at_D, row_of_places(sets), tuple(banned for _, _, banned in found))
