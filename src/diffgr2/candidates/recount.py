"""What is counted of a shop, counted anew after purchases and items came: evidence and retriever.

Contract: `recounted(index, shop…)` is the index that `EvidenceIndex` would build of the same
purchases, but for what is kept on purpose: bucket edges, the number of users that scales `lift`,
vectors of items that were there, what a word of a title weighs; and what is counted of a new item
that nobody bought yet is left open. What counted counts, and so do all new purchases; purchases
that a run kept apart to test on stay apart, so that nothing changes but by the news. With
`keep_last` all purchases count but every user's last ones (2: as in a run, 0: all). `retrained`
gives the retriever's scores: counts anew, or for new items of SASRec embeddings by ridge regression
on text vectors. `refitted` fits edges anew on lists like those of training. Pure: nothing that was
given changes. Not here: files and the join of purchases (`data.arrivals`), the bundle
(`stages.refresh`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from diffgr2.candidates.attention import AttentionScores
from diffgr2.candidates.attributes import Attributes
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.kinds import ItemKnn, Popularity
from diffgr2.candidates.lists import MIN_HISTORY
from diffgr2.candidates.pairs import DAY, PairCounts, first_purchases
from diffgr2.candidates.retrieval import Retriever, prefixes, top_k
from diffgr2.streams import permutation
from diffgr2.types import Catalogue, Histories

RIDGES = 10.0 ** np.arange(-3, 4)
"""Strengths of the penalty that the regression chooses from, relative to the vectors' spread."""

POSITIONS = range(1, 5)
"""Places before a user's end whose lists edges are fitted on: without any news these come nearest
to the edges of a run, whose training lists are cross-fitted (4.7 % of the demo's buckets move)."""

Scores = AttentionScores | ItemKnn | Popularity


# ------------------------------------------------------------------------------------- evidence


def users_of(histories: Histories) -> np.ndarray:
    """The user of every purchase."""
    return np.repeat(np.arange(histories.n_users, dtype=np.int64), histories.lengths_U)


def counted_purchases(
    pairs: PairCounts, histories: Histories, new_N: np.ndarray, keep_last: int | None
) -> Histories:
    """The purchases that count from now on, of every user."""
    user_N = users_of(histories)
    if keep_last is not None:
        keep_N = np.arange(len(user_N)) < (histories.offsets_U1[1:] - keep_last)[user_N]
    elif not len(pairs.key_M):  # nobody bought anything before
        keep_N = new_N
    else:
        # What counted, and what is new; what a run kept apart to test on stays apart.
        key_N = user_N * pairs.n_items + histories.items_N
        at_N = np.minimum(pairs.key_M.searchsorted(key_N), len(pairs.key_M) - 1)
        counted_N = (histories.items_N < pairs.n_items) & (pairs.key_M[at_N] == key_N)
        # One that stayed apart may be of an item that the user bought again, which counts.
        counted_N &= histories.timestamps_N // DAY >= pairs.day_M[at_N]
        keep_N = new_N | counted_N
    lengths_U = np.bincount(user_N[keep_N], minlength=histories.n_users)
    offsets_U1 = np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64)
    parts = (histories.items_N[keep_N], histories.timestamps_N[keep_N])
    return Histories(offsets_U1, *parts, histories.n_items)


def recounted_pairs(
    pairs: PairCounts, histories: Histories, new_N: np.ndarray, keep_last: int | None
) -> PairCounts:
    """The counts with the new purchases; of users without any they stay, whatever they count."""
    n, counted = histories.n_items, counted_purchases(pairs, histories, new_N, keep_last)
    if keep_last is not None:
        return PairCounts.build(counted, pairs.window, pairs.kinds)
    touched_U = np.bincount(users_of(histories)[new_N], minlength=histories.n_users) > 0
    user_M, item_M = np.divmod(pairs.key_M, pairs.n_items)
    stays_M, users = ~touched_U[user_M], np.flatnonzero(touched_U)
    key_M, *rest = first_purchases(prefixes(counted, users, counted.lengths_U[users]))
    key_M = users[key_M // n] * n + key_M % n
    old = (user_M * n + item_M, pairs.position_M, pairs.day_M)
    parts = [
        np.concatenate([one[stays_M], two]) for one, two in zip(old, (key_M, *rest), strict=True)
    ]
    order_M = np.argsort(parts[0], kind="stable")
    key_M, position_M, day_M = (part[order_M] for part in parts)
    return PairCounts.counted(n, pairs.window, pairs.kinds, key_M, position_M, day_M)


def recounted(
    index: EvidenceIndex,
    histories: Histories,
    catalogue: Catalogue,
    vectors_IE: np.ndarray,
    new_N: np.ndarray,
    keep_last: int | None = None,
) -> EvidenceIndex:
    """See the module's docstring; `vectors_IE` are all items' text vectors, unit or zero."""
    attributes = Attributes.build(catalogue, vectors_IE)
    titles = None if index.titles is None else index.titles.worded(catalogue.titles)
    pairs = recounted_pairs(index.pairs, histories, new_N, keep_last)
    late = index.late_from
    if late is None and len(catalogue) > index.pairs.n_items:
        late = index.pairs.n_items
    given = {"pairs": pairs, "attributes": attributes, "titles": titles, "late_from": late}
    return replace(index, **given)


def refitted(
    index: EvidenceIndex,
    histories: Histories,
    retriever: Retriever,
    k: int,
    most: int,
    seed: int,
) -> tuple[EvidenceIndex, int]:
    """The index with edges of now, and the lists they were fitted on (0: the edges stay).

    Lists like those of training: users' histories before late purchases, ranked by the retriever,
    where that purchase is among the first k; the user's own ones are left out of the counts.
    """
    users = permutation(histories.n_users, seed, "refresh", "edges")[:most]
    ends = [histories.lengths_U[users] - n for n in POSITIONS]
    user_L, end_L = np.tile(users, len(POSITIONS)), np.concatenate(ends)
    user_L, end_L = user_L[end_L >= MIN_HISTORY], end_L[end_L >= MIN_HISTORY]
    queries = prefixes(histories, user_L, end_L)
    items_LK, scores_LK = top_k(retriever, queries, min(k, histories.n_items))
    target_L = histories.items_N[histories.offsets_U1[user_L] + end_L]
    hit = (items_LK == target_L[:, None]).any(1)
    if not hit.any():
        return index, 0
    index = replace(index, n_users=histories.n_users)
    queries = prefixes(histories, user_L[hit], end_L[hit])
    asked = histories.timestamps_N[histories.offsets_U1[user_L] + end_L][hit]
    given = (items_LK[hit], scores_LK[hit], user_L[hit], None, asked)
    features_LKF = index.features(queries, *given)
    fresh_FB = index.with_edges(features_LKF.reshape(-1, features_LKF.shape[-1])).edges_FB
    # A shop's own values and scores came with lists of its own; SASRec's scores have not changed.
    scaled = isinstance(retriever, AttentionScores) or index.own_scores
    kept_F = np.array([not f.counted or (scaled and f.name == "gap") for f in index.fields])
    edges_FB = np.where(kept_F[:, None], index.edges_FB, fresh_FB)
    return replace(index, edges_FB=edges_FB), int(hit.sum())


@dataclass(frozen=True)
class Sample:
    """Lists of some users as they were, to see what moved."""

    users: np.ndarray
    queries: Histories
    items_LK: np.ndarray
    scores_LK: np.ndarray

    @classmethod
    def of(cls, histories: Histories, retriever: Retriever, k: int, n: int, seed: int) -> Sample:
        """The best k unseen items for up to n users."""
        users = np.flatnonzero(histories.lengths_U)
        users = users[permutation(len(users), seed, "refresh", "sample")[:n]]
        queries = prefixes(histories, users, histories.lengths_U[users])
        return cls(users, queries, *top_k(retriever, queries, min(k, histories.n_items)))

    def buckets(self, index: EvidenceIndex) -> np.ndarray:
        """Evidence of these lists by an index, u8 (L, K, F)."""
        features_LKF = index.features(self.queries, self.items_LK, self.scores_LK, self.users)
        return index.buckets(features_LKF)


# ------------------------------------------------------------------------------------ retriever


def bought_by(pairs: PairCounts, n_users: int) -> Histories:
    """What each user's counted purchases are, without their order."""
    user_M, item_M = np.divmod(pairs.key_M, pairs.n_items)
    lengths_U = np.bincount(user_M, minlength=n_users)
    offsets_U1 = np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64)
    nothing_N = np.zeros(len(item_M), np.int64)
    return Histories(offsets_U1, item_M.astype(np.int32), nothing_N, pairs.n_items)


def retrained(
    retriever: Scores, old: EvidenceIndex, new: EvidenceIndex, n_users: tuple[int, int]
) -> tuple[Scores, str]:
    """The retriever of the grown catalogue, and in words how it came about.

    `n_users` are those before and after. A counting retriever is counted anew only if it counts
    what the evidence counts; one that counts something else keeps its counts.
    """
    if isinstance(retriever, AttentionScores):
        return _embedded(retriever, old, new)
    kind = type(retriever)
    before = kind.build(bought_by(old.pairs, n_users[0]))
    if all(np.array_equal(a, b) for a, b in zip(_arrays(before), _arrays(retriever), strict=True)):
        return kind.build(bought_by(new.pairs, n_users[1])), f"{kind.kind}, counted anew"
    more = new.pairs.n_items - old.pairs.n_items
    arrays = {**retriever.arrays(), "count_I": np.pad(retriever.count_I, (0, more))}
    if isinstance(retriever, ItemKnn):
        arrays["indptr"] = np.pad(retriever.indptr, (0, more), mode="edge")
    told = f"{kind.kind}, as it was: it counts something else than the evidence"
    return kind(**arrays), told


def _arrays(counted: ItemKnn | Popularity) -> list[np.ndarray]:
    return list(counted.arrays().values())


def _embedded(
    retriever: AttentionScores, old: EvidenceIndex, new: EvidenceIndex
) -> tuple[AttentionScores, str]:
    """New items get the embeddings that their texts suggest; all others stay, bit for bit."""
    n, known_IC = old.pairs.n_items, retriever.arrays["items.weight"]
    more = new.pairs.n_items - n
    if not more:
        return retriever, "sasrec, as it was"
    # Embeddings of items that nobody bought were never trained.
    taught = (old.pairs.buyers_I > 0) & old.attributes.vectors_IE.any(1)
    vectors_IE = new.attributes.vectors_IE[n:]
    fresh_NC, explained = suggested(old.attributes.vectors_IE[taught], known_IC[taught], vectors_IE)
    arrays = {**retriever.arrays, "items.weight": np.concatenate([known_IC, fresh_NC])}
    told = f"sasrec, {more} embeddings from texts (which explain {explained:.0%} of those it has)"
    return AttentionScores(new.pairs.n_items, retriever.config, arrays), told


def suggested(x_ID: np.ndarray, y_IC: np.ndarray, x_ND: np.ndarray) -> tuple[np.ndarray, float]:
    """Ridge regression of y on x: values for new rows, and the share explained of left-out ones.

    The penalty is the one of `RIDGES` that explains left-out rows best; where even that explains
    nothing, or nothing is known, new rows get the mean. A zero row of x has no words: the mean too.
    """
    if not len(x_ID):
        return np.zeros((len(x_ND), y_IC.shape[1]), np.float32), 0.0
    mean_D, mean_C = x_ID.mean(0, dtype=np.float64), y_IC.mean(0, dtype=np.float64)
    left_IR, size_R, right_RD = np.linalg.svd(x_ID - mean_D, full_matrices=False)
    y_IC = y_IC - mean_C
    turned_RC, spread = left_IR.T @ y_IC, max(float((size_R**2).mean()), 1e-12)
    best, explained, total = None, 0.0, max(float((y_IC**2).sum()), 1e-12)
    for ridge in RIDGES * spread:
        kept_R = size_R**2 / (size_R**2 + ridge)
        # One fit gives what every row would be without itself.
        own_I1 = ((left_IR**2) @ kept_R + 1.0 / len(x_ID))[:, None]
        rest_IC = (y_IC - left_IR @ (kept_R[:, None] * turned_RC)) / np.maximum(1.0 - own_I1, 1e-6)
        share = 1.0 - float((rest_IC**2).sum()) / total
        if share > explained:
            best, explained = ridge, share
    fresh_NC = np.repeat(mean_C[None], len(x_ND), 0)
    if best is not None:
        weight_RC = (size_R / (size_R**2 + best))[:, None] * turned_RC
        told = x_ND.any(1)
        fresh_NC[told] += (x_ND[told] - mean_D) @ right_RD.T @ weight_RC
    return fresh_NC.astype(np.float32), explained
