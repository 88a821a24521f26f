"""A shop's own lists as candidate lists: which of them train, and what may be known.

Contract: `parts_of` says of each list whether it trains, validates or tests: at random by list
(shares, or one of `folds`; the same for every seed and order of the file), by time (shares of the
latest, or cut-off moments; lists of one moment stay together), or by user (each one's last list is
a test list, the last but one of three a validation list). `own_split` makes a split's
`CandidateLists`, cut to the longest that a prompt holds, and their features. `known_part` is what
anything counted or learned besides the lists may know of the interactions: of a person with lists
held back what stands before the first of them, and by time nothing from the first cut-off on. Not
here: the file (`data.own_rows`), evidence at a list's own moment (`moments`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffgr2.candidates.retrieval import prefixes
from diffgr2.data.lines import BadLine
from diffgr2.data.own_store import OwnLists
from diffgr2.data.values import milliseconds
from diffgr2.errors import ConfigError, DataError
from diffgr2.own import ListsConfig
from diffgr2.streams import permutation
from diffgr2.types import PADDING, CandidateLists, Histories

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)


def parts_of(own: OwnLists, config: ListsConfig) -> np.ndarray:
    """The number of each list's split in `SPLITS`, int8 (L)."""
    parts = {"list": _by_list, "time": _by_time, "user": _by_user}[config.split](own, config)
    count = np.bincount(parts, minlength=3).tolist()
    if not all(count):
        told = ", ".join(f"{n} {name}" for n, name in zip(count, SPLITS, strict=True))
        hint = {
            "list": "more lists, or larger shares, are needed",
            "time": "the cut-offs leave a part without lists",
            "user": "users with three lists are needed, or split: list",
        }
        raise DataError(f"lists.split: {config.split} gives {told} lists ({hint[config.split]})")
    return parts.astype(np.int8)


def _by_list(own: OwnLists, config: ListsConfig) -> np.ndarray:
    n = len(own)
    place_L = np.empty(n, np.int64)  # of each list in an order that no file and no seed decides
    place_L[np.argsort(np.array(own.names))] = permutation(n, "lists", "split")
    if config.folds is None:
        tested_L = place_L < round(n * _share(config.test))
    else:
        tested_L = place_L % config.folds == config.fold
    order = np.argsort(np.where(tested_L, n, place_L))
    left = n - int(tested_L.sum())
    whole = n if config.folds is None else left
    parts_L = np.where(tested_L, TEST, TRAIN)
    parts_L[order[: min(round(whole * _share(config.validation)), left)]] = VALIDATION
    return parts_L


def _share(part: float | str) -> float:
    assert isinstance(part, float)  # the recipe's schema says so
    return part


def cut_offs(own: OwnLists, config: ListsConfig) -> tuple[int, int]:
    """(first validation moment, first test moment), seconds; only for split: time."""
    if own.moment != "time" or (own.moment_L < 0).any():
        raise DataError(
            f"lists.split: time needs a time for every list (moments: {own.moment}, "
            f"{int((own.moment_L < 0).sum())} lists without)"
        )
    if isinstance(config.validation, str) and isinstance(config.test, str):
        first, second = (_moment(key, getattr(config, key)) for key in ("validation", "test"))
        if first >= second:
            raise ConfigError("lists.validation: has to lie before lists.test")
        return first, second
    moment_L = np.sort(own.moment_L)
    tested = _share(config.test)
    held = tested + _share(config.validation)
    last = len(moment_L) - 1
    first, second = (
        moment_L[min(round(last * (1.0 - share)) + 1, last)] for share in (held, tested)
    )
    return int(first), int(second)


def _moment(key: str, text: str | float) -> int:
    try:
        return milliseconds(text, key) // 1000
    except BadLine as bad:
        raise ConfigError(f"lists.{key}: {bad} (got {text!r})") from None


def _by_time(own: OwnLists, config: ListsConfig) -> np.ndarray:
    first, second = cut_offs(own, config)
    return np.where(
        own.moment_L >= second, TEST, np.where(own.moment_L >= first, VALIDATION, TRAIN)
    )


def _by_user(own: OwnLists, config: ListsConfig) -> np.ndarray:
    order = np.lexsort((np.arange(len(own)), own.end_L, own.moment_L, own.person_L))
    person = own.person_L[order]
    _, start, count = np.unique(person, return_index=True, return_counts=True)
    parts_L = np.full(len(own), TRAIN)
    parts_L[order[(start + count - 1)[count > 1]]] = TEST
    parts_L[order[(start + count - 2)[count > 2]]] = VALIDATION
    return parts_L


# ------------------------------------------------------------------------------- what may be known


def known_part(
    own: OwnLists, histories: Histories, parts_L: np.ndarray, config: ListsConfig
) -> Histories:
    """Histories as long as the dataset's, by person; a person's other rows are empty."""
    row_U, end_U = np.arange(histories.n_users), histories.lengths_U.copy()
    end_U[np.setdiff1d(own.user_L, own.person_L)] = 0
    held = np.flatnonzero(parts_L != TRAIN)
    # Of each person the earliest list that is held back, written last.
    late = held[np.lexsort((held, own.end_L[held], own.moment_L[held]))[::-1]]
    row_U[own.person_L[late]], end_U[own.person_L[late]] = own.user_L[late], own.end_L[late]
    known = prefixes(histories, row_U, end_U)
    if config.split == "time":
        keep_N = known.timestamps_N < cut_offs(own, config)[0]
        user_N = np.repeat(np.arange(known.n_users), known.lengths_U)[keep_N]
        count_U = np.bincount(user_N, minlength=known.n_users)
        offsets_U1 = np.concatenate([[0], np.cumsum(count_U)]).astype(np.int64)
        items_N, times_N = known.items_N[keep_N], known.timestamps_N[keep_N]
        known = Histories(offsets_U1, items_N, times_N, histories.n_items)
    return known


# --------------------------------------------------------------------------------------- the lists


def shown_at(own: OwnLists, which: np.ndarray, k_max: int) -> np.ndarray:
    """At which place each candidate of these lists was shown, int32 (L, K); 0 where it was not."""
    assert own.shown_N is not None
    column_K, length_L1 = np.arange(k_max), np.diff(own.offsets_L1)[which][:, None]
    at_LK = np.where(column_K < length_L1, own.offsets_L1[which][:, None] + column_K, 0)
    return np.where(column_K < length_L1, own.shown_N[at_LK], 0).astype(np.int32)


def own_split(
    own: OwnLists, parts_L: np.ndarray, split: str, k_max: int
) -> tuple[CandidateLists, np.ndarray, np.ndarray]:
    """A split's lists, their features (L, K, G), and which of all lists they are."""
    which = np.flatnonzero(parts_L == SPLITS.index(split))
    column_K = np.arange(k_max)
    start_L1, length_L1 = own.offsets_L1[which][:, None], np.diff(own.offsets_L1)[which][:, None]
    there_LK = column_K < length_L1
    at_LK = np.where(there_LK, start_L1 + column_K, 0)

    def wide(values: np.ndarray, fill: Any) -> np.ndarray:
        return np.where(there_LK, values[at_LK], fill).astype(values.dtype)

    scores_LK = wide(own.score_N, 0.0)  # NaN stays: no score is not the score 0
    feature_LKG = own.feature_NG[at_LK]
    feature_LKG[~there_LK] = np.nan
    several = bool((own.person_L != own.user_L).any())
    lists = CandidateLists(
        split,
        own.user_L[which],
        own.end_L[which],
        own.target_L[which],
        wide(own.item_N, PADDING),
        scores_LK,
        wide(own.gain_N, 0.0),
        own.person_L[which] if several else None,
        own.moment_L[which] if own.moment == "time" else None,
    )
    return lists, feature_LKG, which
