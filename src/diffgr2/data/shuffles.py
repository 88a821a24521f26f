"""Rows of one time in drawn order, for millions of users.

Contract: `shuffled(n, spans_S2, names, *parts)` is where each of n rows comes from: every span
[start, end) is permuted within itself, the spans of one user one after the other, by the stream of
(parts, user), as `generator(*parts, user).permutation(length)` does it. A user's order depends on
nothing but the seed, the name and the lengths of the user's own spans. Not here: which rows are
tied (`split`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from diffgr2.streams import generator, keys_of, words

LONG = 64  # draws of a user from which on a generator costs less than passes over all users
SPARE = 8  # words beyond one and a half for each draw: enough for nearly everybody
AT_ONCE = 1 << 16  # spans


def shuffled(n: int, spans_S2: np.ndarray, names: Sequence[str], *parts: str | int) -> np.ndarray:
    """The sources of all rows; `names` are the spans' users."""
    source_N, begin = np.arange(n), 0
    while begin < len(names):
        end = min(begin + AT_ONCE, len(names))
        while end < len(names) and names[end] == names[end - 1]:
            end += 1  # a user's spans share a stream
        _shuffle(source_N, spans_S2[begin:end], names[begin:end], parts)
        begin = end
    return source_N


def _shuffle(
    source_N: np.ndarray, spans_S2: np.ndarray, names: Sequence[str], parts: tuple[str | int, ...]
) -> None:
    """Some whole users' spans, in place: all users' first numbers, then all second ones, ..."""
    first_U = np.flatnonzero([True, *(one != other for one, other in pairwise(names))])
    end_U = np.append(first_U[1:], len(names))
    start_S, last_S = spans_S2[:, 0], spans_S2[:, 1] - spans_S2[:, 0] - 1
    need_U = np.add.reduceat(last_S, first_U)
    left_U = np.where(need_U < LONG, SPARE + need_U + need_U // 2, 0)
    word_W = words(keys_of([names[at] for at in first_U.tolist()], *parts), left_U)
    word_U = np.cumsum(left_U) - left_U
    span_U, last_U = first_U.copy(), last_S[first_U]
    open_U, served_U = np.arange(len(first_U)), np.zeros(len(first_U), bool)
    while len(open_U := open_U[left_U[open_U] > 0]):
        # From its last row up, each changes places with one of those from the first to itself,
        # found by as many bits as that takes; a number that is too large is drawn again.
        last = last_U[open_U]
        at = word_W[word_U[open_U]] & ((1 << np.frexp(last)[1]) - 1)
        word_U[open_U] += 1
        left_U[open_U] -= 1
        took = open_U[at <= last]
        begin = start_S[span_U[took]]
        here, there = begin + last[at <= last], begin + at[at <= last]
        source_N[here], source_N[there] = source_N[there], source_N[here]
        last_U[took] -= 1
        ended = took[last_U[took] == 0]
        span_U[ended] += 1
        served_U[ended] = span_U[ended] == end_U[ended]
        ended = ended[~served_U[ended]]
        last_U[ended] = last_S[span_U[ended]]
        open_U = open_U[~served_U[open_U]]
    for user in np.flatnonzero(~served_U).tolist():
        stream = generator(*parts, names[int(first_U[user])])
        for start, end in spans_S2[first_U[user] : end_U[user]].tolist():
            source_N[start:end] = start + stream.permutation(end - start)
