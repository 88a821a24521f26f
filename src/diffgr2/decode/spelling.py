"""Entries of several tokens that must spell different candidates.

Contract: given what is committed of J entries, `spellings` says which candidates [J, C] each entry
may still become without excluding every way to complete them all; a bipartite matching decides, and
no sequence is searched. With semantic IDs this is the trie of the remaining candidates. Lists are
short, so plain loops and squared matrices do. Not here: where the entries stand (`grammar`).
"""

import numpy as np

UNKNOWN = -1
"""Stands for a token that is not committed."""

UNMATCHED = -1


def consistent(entry_JN: np.ndarray, choices_CN: np.ndarray) -> np.ndarray:
    """Which candidates [J, C] agree with each entry's committed tokens."""
    known_J1N = entry_JN[:, None, :] != UNKNOWN
    return ((entry_JN[:, None, :] == choices_CN[None]) | ~known_J1N).all(-1)


def matching(fits_JC: np.ndarray) -> np.ndarray:
    """A different candidate for each entry [J], UNMATCHED where not all can have one."""
    options = [np.flatnonzero(fits_C).tolist() for fits_C in fits_JC]
    match_J, owner = [UNMATCHED] * len(options), dict[int, int]()
    for first in range(len(options)):
        # Breadth first from an entry without a candidate to a candidate without an entry.
        reached, came_from, found = [first], dict[int, int](), UNMATCHED
        for entry in reached:
            fresh = [one for one in options[entry] if one not in came_from]
            came_from |= dict.fromkeys(fresh, entry)
            found = next((one for one in fresh if one not in owner), UNMATCHED)
            if found != UNMATCHED:
                break
            reached += [owner[one] for one in fresh]
        while found != UNMATCHED:  # each entry on the way passes its candidate on
            entry = came_from[found]
            owner[found], match_J[entry], found = entry, found, match_J[entry]
    return np.array(match_J, dtype=np.int64)


def reachable(step_XX: np.ndarray) -> np.ndarray:
    """Which nodes [X, X] each node reaches in any number of steps, itself in none."""
    reach_XX = (step_XX | np.eye(len(step_XX), dtype=bool)).astype(np.float32)
    for _ in range(max(len(step_XX) - 1, 1).bit_length()):  # each squaring doubles the steps
        reach_XX = np.minimum(reach_XX @ reach_XX, 1.0)
    return reach_XX > 0


def spellings(entry_JN: np.ndarray, choices_CN: np.ndarray) -> np.ndarray:
    """Which (entry, candidate) pairs [J, C] belong to some assignment of different candidates.

    Given one matching of all entries, a pair lies in another one exactly if exchanging along a
    cycle, or along a path that ends at an unused candidate, leads there. Candidates without an
    entry are matched to entries of their own, so that one rule covers both: a pair is admissible
    if its candidate and the one now matched to its entry are strongly connected in "could pass its
    entry on to". Nothing left (candidates spelled alike by another model) gives no pair.
    """
    fits_JC = consistent(entry_JN, choices_CN)
    spare = len(choices_CN) - len(entry_JN)
    square_CC = np.vstack([fits_JC, np.ones((spare, len(choices_CN)), dtype=bool)])
    match_C = matching(square_CC)
    if (match_C == UNMATCHED).any():
        return np.zeros_like(fits_JC)
    passes_CC = np.zeros_like(square_CC)
    passes_CC[match_C] = square_CC
    reach_CC = reachable(passes_CC)
    mutual_CC = reach_CC & reach_CC.T
    return fits_JC & mutual_CC[match_C[: len(fits_JC)]]
