"""The evidence of whole splits, counted some lists at a time.

Contract: `raw_columns` puts every split's evidence before it is bucketed, as the recipe wants it
counted, into files, so that memory holds one chunk of lists or one field, whatever their number;
`raw_values` gives what a caller keeps of it, list by list. `levels` turns such a file into buckets.
A list's evidence does not depend on the lists beside it, so chunks change nothing. Not here: what
one list's evidence is (`candidates.index`, `candidates.moments`), edges and scorers (`evidence`).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.moments import TimedCounts, features_at, moments_of
from diffgr2.candidates.pieces import Columns, Pieces
from diffgr2.candidates.retrieval import chunks, prefixes
from diffgr2.config import Recipe
from diffgr2.data.store import Dataset
from diffgr2.errors import DataError
from diffgr2.types import CandidateLists

KNOWN = ("train", "validation")
"""The splits whose outcomes may be learned from."""

LISTS_AT_ONCE = 1 << 15
"""Lists whose evidence is held at a time, and scored."""

Chunk = Callable[[CandidateLists, np.ndarray | None], np.ndarray]
"""Evidence (C, K, F) of some lists, given what they bring of their own."""

Made = Callable[[str, slice, np.ndarray], np.ndarray]
"""What is kept of the evidence (C, K, F) of these lists of a split."""


def raw_values(
    recipe: Recipe,
    index: EvidenceIndex,
    dataset: Dataset,
    lists: dict[str, CandidateLists],
    made: Made,
    work: Path | None,
) -> dict[str, np.ndarray]:
    """What is `made` of every split's evidence before it is bucketed, counted as the recipe wants
    it; with a directory in files of it, mapped."""
    count, asked = counter(recipe, index, dataset, lists, work)
    found = {}
    for split, own in asked.items():
        pieces = Pieces(None if work is None else work / f"values_{split}.bin")
        for at, value_CKF in counted(count, own):
            pieces.add(made(split, at, value_CKF))
        nothing = np.empty((0, own.k, len(index.fields)), np.float32)
        found[split] = pieces.whole(made(split, slice(0, 0), nothing))
    return found


def raw_columns(
    recipe: Recipe,
    index: EvidenceIndex,
    dataset: Dataset,
    lists: dict[str, CandidateLists],
    values: dict[str, np.ndarray],
    work: Path,
    *,
    timed: bool,
) -> dict[str, Columns]:
    """The same in files of `work`; without `timed` as if no list had a moment."""
    count, asked = counter(recipe, index, dataset, lists, work)
    if not timed:
        count, asked = plain_counter(index, dataset), lists
    found = {}
    for split, own in asked.items():
        path = work / f"raw_{split}{'' if timed else '_untimed'}.bin"
        path.unlink(missing_ok=True)  # of a run that was cut off
        found[split] = Columns(path, len(own), own.k, len(index.fields))
        for at, value_CKF in counted(count, own, values.get(split)):
            found[split].put(at.start, value_CKF)
    return found


def counted(
    count: Chunk, lists: CandidateLists, own_LKG: np.ndarray | None = None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Evidence (C, K, F) of all lists, some at a time, and which they are."""
    for at in chunks(len(lists), LISTS_AT_ONCE):
        part = lists.take(np.arange(at.start, at.stop))
        yield at, count(part, None if own_LKG is None else own_LKG[at])


def counter(
    recipe: Recipe,
    index: EvidenceIndex,
    dataset: Dataset,
    lists: dict[str, CandidateLists],
    work: Path | None,
) -> tuple[Chunk, dict[str, CandidateLists]]:
    """What counts some lists' evidence as the recipe wants it, and the lists that it can be asked
    about: these, with a moment each where moments matter."""
    histories = dataset.histories
    if recipe.evidence.moment:
        moments = [moments_of(histories, own) for own in lists.values()]
        if not histories.timestamps_N.any() or (np.concatenate(moments) <= 0).any():
            raise DataError("evidence.moment: needs a time for every purchase and every list")
    if not recipe.lists.point_in_time:
        return plain_counter(index, dataset), lists
    if not histories.timestamps_N.any():
        told = "needs interactions with times (data.interactions); leave it out without them"
        raise DataError(f"lists.point_in_time: {told}")
    if recipe.lists.file is None:  # a list's moment is when its target was bought
        counts = histories.train_part()
        lists = {s: replace(own, moment=moments_of(histories, own)) for s, own in lists.items()}
    else:
        if any(own.moment is None or (own.moment < 0).any() for own in lists.values()):
            raise DataError("lists.point_in_time: needs a time for every list (columns.moment)")
        # What came with lists has no times, and is nobody's purchase at any moment.
        user_N = np.repeat(np.arange(histories.n_users), histories.lengths_U)
        timed_U = np.bincount(user_N, histories.timestamps_N > 0, histories.n_users) > 0
        every = np.arange(histories.n_users)
        counts = prefixes(histories, every, np.where(timed_U, histories.lengths_U, 0))
    timed = TimedCounts.build(counts, recipe.evidence.history, index.pairs.kinds, work)
    return lambda part, own_LKG: features_at(index, timed, histories, part, own_LKG), lists


def plain_counter(index: EvidenceIndex, dataset: Dataset) -> Chunk:
    """Counts without moments."""
    return lambda part, own_LKG: untimed_values(index, dataset, part, own_LKG)


def untimed_values(
    index: EvidenceIndex, dataset: Dataset, lists: CandidateLists, own_LKG: np.ndarray | None
) -> np.ndarray:
    """The evidence before it is bucketed; the lists' users are in the index and leave themselves
    out."""
    queries = prefixes(dataset.histories, lists.user_L, lists.end_L)
    moment_L = moments_of(dataset.histories, lists)
    given = (lists.items_LK, lists.scores_LK, lists.owner_L, own_LKG, moment_L)
    return index.features(queries, *given)


def known_of(values: dict[str, np.ndarray], learned: dict[str, np.ndarray]) -> np.ndarray:
    """These columns of the candidates that are learned from, (X, F)."""
    known = [values[split][:, : learned[split].shape[1]][learned[split]] for split in KNOWN]
    return np.concatenate(known)


def known_columns(
    values: dict[str, Columns], learned: dict[str, np.ndarray]
) -> Iterator[np.ndarray]:
    """Field by field what the candidates that are learned from have."""
    for f in range(values[KNOWN[0]].fields):
        fields = {split: values[split].field(f)[..., None] for split in KNOWN}
        yield known_of(fields, learned)[:, 0]


def levels(index: EvidenceIndex, values: dict[str, Columns]) -> dict[str, np.ndarray]:
    """Every split's buckets, mapped; the values they are of are not kept."""
    found = {}
    for split, columns in values.items():
        pieces = Pieces(columns.path.with_suffix(".levels"))
        for value_CKF in columns.parts(LISTS_AT_ONCE):
            pieces.add(index.buckets(value_CKF))
        found[split] = pieces.whole(np.empty((0, columns.k, columns.fields), np.uint8))
        columns.path.unlink(missing_ok=True)
    return found
