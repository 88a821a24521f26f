"""Entries of several tokens that must spell different candidates.

Contract: given what is committed of J entries, `spellings` says which candidates [J, C] each entry
may still become without excluding every way to complete them all; a bipartite matching decides, and
no sequence is searched. With semantic IDs this is the trie of the remaining candidates. Not here:
where the entries stand (`grammar`).
"""

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, maximum_bipartite_matching

UNKNOWN = -1
"""Stands for a token that is not committed."""


def consistent(entry_JN: np.ndarray, choices_CN: np.ndarray) -> np.ndarray:
    """Which candidates [J, C] agree with each entry's committed tokens."""
    known_J1N = entry_JN[:, None, :] != UNKNOWN
    return ((entry_JN[:, None, :] == choices_CN[None]) | ~known_J1N).all(-1)


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
    match_C = maximum_bipartite_matching(csr_array(square_CC), perm_type="column")
    if (match_C < 0).any():
        return np.zeros_like(fits_JC)
    passes_CC = np.zeros_like(square_CC)
    passes_CC[match_C] = square_CC
    _, part_C = connected_components(csr_array(passes_CC), connection="strong")
    return fits_JC & (part_C[None, :] == part_C[match_C[: len(fits_JC)]][:, None])
