"""The permutation rule: inside the answer, a candidate can be committed once.

Contract: given where the answer's entries lie, `allowed_choices` and `allowed_tokens` say what each
masked entry position may still take, and `settle` removes, from the positions about to commit,
those that would leave no permutation: of positions that want the same candidate in one step only
the surest commits, the others look again in the next step. No forward is added and no sequence is
searched; with entries of several tokens (semantic IDs) the same rule works on the prefixes of the
remaining candidates, and a bipartite matching keeps every entry completable. Not here: where the
marker is (`grammar`), which positions are sure enough (`accept`).
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, maximum_bipartite_matching

from diffgr2.decode.grammar import AnswerGrammar

UNKNOWN = -1


@dataclass(frozen=True)
class AnswerState:
    """Entries of an answer as far as they are committed: `entry_KN` holds tokens or UNKNOWN."""

    grammar: AnswerGrammar
    start: int  # where the answer begins, in response positions
    entry_KN: np.ndarray


def answer_state(grammar: AnswerGrammar, start: int, tokens_T: np.ndarray) -> AnswerState:
    """Read the committed entries out of a response (UNKNOWN = masked or not reached)."""
    slots_KN = grammar.slots(start)
    inside_KN = slots_KN < len(tokens_T)
    entry_KN = np.where(inside_KN, tokens_T[np.minimum(slots_KN, len(tokens_T) - 1)], UNKNOWN)
    return AnswerState(grammar, start, entry_KN)


def consistent(entry_KN: np.ndarray, choices_CN: np.ndarray) -> np.ndarray:
    """Which candidates [K, C] agree with each entry's committed tokens."""
    known_K1N = entry_KN[:, None, :] != UNKNOWN
    return ((entry_KN[:, None, :] == choices_CN[None]) | ~known_K1N).all(-1)


def completable(fits_KC: np.ndarray) -> bool:
    """Whether the entries can still become distinct candidates, all of them."""
    match_K = maximum_bipartite_matching(csr_array(fits_KC), perm_type="column")
    return bool((match_K >= 0).all())


def admissible(fits_KC: np.ndarray) -> np.ndarray | None:
    """Which (entry, candidate) pairs belong to some permutation [K, C]; None if there is none.

    Given one perfect matching, a pair lies in another one exactly if its candidate and the one now
    matched to its entry are in one strongly connected component of "could pass its entry on to".
    """
    match_K = maximum_bipartite_matching(csr_array(fits_KC), perm_type="column")
    if (match_K < 0).any():
        return None
    passes_CC = np.zeros_like(fits_KC)
    passes_CC[match_K] = fits_KC
    _, part_C = connected_components(csr_array(passes_CC), connection="strong")
    return fits_KC & (part_C[None, :] == part_C[match_K][:, None])


def allowed_choices(state: AnswerState) -> np.ndarray:
    """Which candidates [K, C] each entry may still become without excluding every permutation.

    If the committed tokens exclude every permutation already, the unused candidates that agree.
    """
    choices_KN = state.grammar.choices_KN
    if choices_KN.shape[1] == 1:
        entry_K = state.entry_KN[:, 0]
        open_C = (choices_KN[:, :1] != entry_K[None, :]).all(1)
        agrees_KC = entry_K[:, None] == choices_KN[None, :, 0]
        return np.where((entry_K == UNKNOWN)[:, None], open_C[None, :], agrees_KC)
    fits_KC = consistent(state.entry_KN, choices_KN)
    pairs_KC = admissible(fits_KC)
    if pairs_KC is not None:
        return pairs_KC
    full_K = (state.entry_KN != UNKNOWN).all(1)
    unused_KC = fits_KC & ~fits_KC[full_K].any(0)
    return np.where(unused_KC.any(1, keepdims=True), unused_KC, fits_KC)


def allowed_tokens(state: AnswerState, may_KC: np.ndarray, j: int, n: int) -> np.ndarray:
    """Tokens that entry j may take at its position n, given `allowed_choices`."""
    return np.unique(state.grammar.choices_KN[may_KC[j], n])


def settle(state: AnswerState, wanted: list[tuple[float, int, int, int]]) -> list[tuple[int, int]]:
    """Of (confidence, entry, position in entry, token), those that commit: (entry, position).

    The surest go first; one that would leave the answer without a permutation waits. If the
    committed entries already exclude every permutation (a raw prefix did it), all pass.
    """
    choices = state.grammar.choices_KN
    entry_KN, single = state.entry_KN.copy(), choices.shape[1] == 1
    broken = not single and not completable(consistent(entry_KN, choices))
    kept: list[tuple[int, int]] = []
    for _, j, n, token in sorted(wanted, key=lambda w: (-w[0], w[1], w[2])):
        trial_KN = entry_KN.copy()
        trial_KN[j, n] = token
        if single:  # the matching is plain uniqueness
            fits = token not in entry_KN
        else:
            fits = broken or completable(consistent(trial_KN, choices))
        if fits:
            entry_KN = trial_KN
            kept.append((j, n))
    return kept
