"""Candidate lists that look in training as they will at test time.

Contract: `training_lists` ranks, for each user, with a model that never saw that user
(cross-fitting by user); `held_out_lists` ranks validation and test positions with the full model.
Items of the visible history never appear. A target is in its list only where the retriever put it
there, unless `with_targets` puts it into training lists (a recorded flag: the odd one out is easy
to spot and teaches the wrong thing). Stored lists may be longer than the lists that results are
about: `first_columns` cuts them. Not here: how a retriever is trained (`kinds`), and evidence
(`index`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffgr2.artifacts import mapped_arrays, save_arrays
from diffgr2.candidates.ranks import ALONE, Ranks
from diffgr2.candidates.retrieval import Retriever, prefixes, top_k
from diffgr2.errors import DataError
from diffgr2.streams import permutation
from diffgr2.types import ARRAYS, MISS, CandidateLists, Histories

MIN_HISTORY = 2  # items that training lists need before their target
SELECTION_SHARE = 10  # one user in so many


def selection_users(n_users: int) -> np.ndarray:
    """Which users (bool) choose between models and settings: the same fixed tenth in every run.

    Whatever is selected or calibrated is selected on their training and validation lists, and these
    train nothing (no scorer, no trace, no rollout), so that test lists are scored and never chosen
    on. The tenth does not follow the run's seed: runs with several seeds keep the same people back.
    """
    chosen_U = np.zeros(n_users, dtype=bool)
    chosen_U[permutation(n_users, "selection", "users")[: -(-n_users // SELECTION_SHARE)]] = True
    return chosen_U


def selected_lists(lists: CandidateLists, n_users: int) -> np.ndarray:
    """The lists (bool) of selection users."""
    return selection_users(n_users)[lists.owner_L]


def fold_of_users(n_users: int, folds: int, seed: int) -> np.ndarray:
    """A random fold number per user; sizes differ by at most one."""
    fold_U = np.empty(n_users, np.int32)
    fold_U[permutation(n_users, seed, "candidates", "folds")] = np.arange(n_users) % folds
    return fold_U


def training_positions(
    histories: Histories, users: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(user_L, end_L): the last `count` positions of these users' train parts, oldest first.

    The target is the item at `end`, inside the train part; the history is what stands before it.
    """
    last_U = histories.lengths_U[users] - 3  # the last position of the train part
    first_U = np.maximum(last_U - count + 1, MIN_HISTORY)
    number_U = np.maximum(last_U - first_U + 1, 0)
    user_L = np.repeat(users, number_U)
    start_L = np.repeat(np.cumsum(number_U) - number_U, number_U)
    end_L = np.repeat(first_U, number_U) + np.arange(len(user_L)) - start_L
    return user_L.astype(np.int32), end_L.astype(np.int32)


def ranked_lists(
    histories: Histories,
    retriever: Retriever,
    split: str,
    user_L: np.ndarray,
    end_L: np.ndarray,
    k: int,
    ranks: Ranks = ALONE,
) -> CandidateLists:
    """Lists for given positions from one retriever."""
    if histories.n_items - int(end_L.max(initial=0)) < k:
        raise DataError(
            f"candidates.k_max: {k} unseen candidates needed, but the catalogue has "
            f"{histories.n_items} items and a history of {int(end_L.max())}"
        )
    ranked = top_k(retriever, prefixes(histories, user_L, end_L), k, ranks)
    target_L = histories.items_N[histories.offsets_U1[user_L] + end_L]
    return CandidateLists(split, user_L.astype(np.int32), end_L.astype(np.int32), target_L, *ranked)


def held_out_lists(
    histories: Histories, retriever: Retriever, split: str, k: int, ranks: Ranks = ALONE
) -> CandidateLists:
    """Lists of every user for `validation` (hides two items) or `test` (hides one)."""
    hidden = {"validation": 2, "test": 1}[split]
    user_L = np.arange(histories.n_users, dtype=np.int32)
    end_L = histories.lengths_U - hidden
    return ranked_lists(histories, retriever, split, user_L, end_L, k, ranks)


def training_lists(
    histories: Histories,
    fold_U: np.ndarray,
    fit: Callable[[np.ndarray, int], Retriever],
    *,
    k: int,
    prefixes_per_user: int,
    ranks: Ranks = ALONE,
) -> CandidateLists:
    """Cross-fitted lists: `fit(users, fold)` trains on the users outside that fold."""
    parts = []
    for fold in range(int(fold_U.max()) + 1):
        retriever = fit(np.flatnonzero(fold_U != fold), fold)
        inside = np.flatnonzero(fold_U == fold)
        positions = training_positions(histories, inside, prefixes_per_user)
        parts.append(ranked_lists(histories, retriever, "train", *positions, k, ranks))
    names = [name for name in ARRAYS if name in parts[0].arrays()]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    lists = CandidateLists("train", **arrays)
    return lists.take(np.lexsort((lists.end_L, lists.user_L)))


def with_targets(lists: CandidateLists, k: int) -> CandidateLists:
    """Training lists that missed their target in the first k columns have it in the k-th.

    What stood there gives way, or changes places with a target that came later.
    """
    assert lists.split == "train", "targets are never put into validation or test lists"
    assert lists.gains is None, "what came of a shop's own list is not made up"
    items_LK, hit_L = lists.items_LK.copy(), lists.hit_L
    late_L = hit_L >= k
    items_LK[late_L, hit_L[late_L]] = items_LK[late_L, k - 1]
    missed_L = late_L | ((hit_L == MISS) & (lists.target_L != MISS))
    last_L = np.minimum(lists.length_L, k) - 1  # of a shorter list its own last column
    items_LK[missed_L, last_L[missed_L]] = lists.target_L[missed_L]
    return replace(lists, items_LK=items_LK)


def first_columns(lists: CandidateLists, k: int) -> CandidateLists:
    """The first k candidates of each list; targets behind them are missed."""
    cut = {name: a[:, :k] for name, a in lists.arrays().items() if a.ndim == 2}
    return replace(lists, **cut)


def save_lists(directory: Path, lists: CandidateLists) -> None:
    """Write `<split>.safetensors`."""
    save_arrays(directory / f"{lists.split}.safetensors", **lists.arrays())


def load_lists(directory: Path, split: str, k: int | None = None) -> CandidateLists:
    """Read what `save_lists` wrote, mapped: all columns, or the first k."""
    lists = CandidateLists(split, **mapped_arrays(directory / f"{split}.safetensors"))
    return lists if k is None else first_columns(lists, k)
