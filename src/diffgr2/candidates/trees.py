"""The strongest tutor: boosted trees (LightGBM) that read exactly what a prompt shows.

Contract: `fit` learns a listwise softmax from lists with gains, in folds of users: the trees of a
fold never saw a list of its users, so every list has scores out of fold, and who is in no fold the
mean of all. A candidate's score depends on its own buckets alone, so any part of a list has the
scores of the whole. MISSING is missing: a share of the lists is learned once more with evidence
hidden, so that a candidate without some of its evidence is judged as that. `contributions` are
exact TreeSHAP, in the units of the score; with the mean of all candidates they add up to it.
Scores are log-odds: a difference of 1 is a factor e in the chance to be chosen. How many trees is
told by the held-out users of all folds. Same data and seed give the same bits. Not here: raw values
(`lambdamart`), which lists (`stages.tutor`). Fitting needs the extra `lambdamart`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.candidates.lambdamart import Lists
from diffgr2.candidates.lists import fold_of_users
from diffgr2.candidates.scorers import nothing_behind, shares, weighted
from diffgr2.errors import DataError
from diffgr2.streams import generator
from diffgr2.types import MISSING

FILE = "trees.safetensors"
READ = {"feature_pre_filter": False, "verbose": -1}
FOLDS = 5
NO_FOLD = -1
FEWEST = 100
"""Lists that trees want; a scorecard learns from fewer."""
ROUNDS, PATIENCE = 400, 30
AGAIN, HIDDEN = 0.3, 0.3
"""Share of lists that are learned once more, and the chance of their evidence to be hidden then."""

GROWN: dict[str, Any] = {
    "num_leaves": 8,
    "min_data_in_leaf": 50,
    "lambda_l2": 5.0,
    "learning_rate": 0.1,
    "feature_fraction": 0.5,
    "metric": "none",
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
"""Chosen out of fold on two catalogues; twice or half of any of them is worth the same."""

TOGETHER = 200
"""Lists read at once."""


def values_of(buckets_XF: np.ndarray) -> np.ndarray:
    """Buckets as numbers, missing ones as NaN."""
    return np.where(buckets_XF == MISSING, np.float32(np.nan), buckets_XF).astype(np.float32)


@dataclass(frozen=True)
class Forest:
    """Trees as tables: a tree asks little of a few fields, so it knows few kinds of candidate.

    These are its cells; which one a candidate is in is a sum over fields. Reading them needs no
    LightGBM.
    """

    cell_TFV: np.ndarray  # int32, what a field's level adds to the number of the cell
    first_T: np.ndarray  # int32, number of the tree's first cell
    value_C: np.ndarray  # float64, what a cell is worth
    moved_CF: np.ndarray  # float32, what each field has moved the worth by (TreeSHAP)

    @staticmethod
    def of(booster: Any, n_levels: int) -> Forest:
        """The tables of a LightGBM model over levels 0 … n_levels − 1, the last one MISSING."""
        fields, trees = booster.num_feature(), booster.dump_model()["tree_info"]
        cell_TFV = np.zeros((len(trees), fields, n_levels), np.int32)
        values, moved, first = [], [], np.zeros(len(trees), np.int32)
        for number, tree in enumerate(trees):
            cells_XF, cell_TFV[number] = _cells(tree["tree_structure"], fields, n_levels)
            one = {"start_iteration": number, "num_iteration": 1, "num_threads": 1}
            told_XF = booster.predict(cells_XF, pred_contrib=True, **one)
            first[number] = sum(map(len, values))
            values.append(told_XF.sum(1))
            moved.append(told_XF[:, :-1].astype(np.float32))
        return Forest(cell_TFV, first, np.concatenate(values), np.concatenate(moved))

    def beside(self, weight_FV: np.ndarray) -> Forest:
        """The mean of these trees and a scorecard, whose fields are trees of one question each."""
        fields, levels = weight_FV.shape
        own, level_V = np.arange(fields), np.arange(levels)
        cell_TFV = np.zeros((fields, *weight_FV.shape), np.int32)
        cell_TFV[own, own] = level_V
        moved_CF = np.zeros((fields * levels, fields), np.float32)
        moved_CF[own[:, None] * levels + level_V, own[:, None]] = weight_FV
        return Forest(
            np.concatenate([self.cell_TFV, cell_TFV]),
            np.concatenate([self.first_T, len(self.value_C) + own * levels]).astype(np.int32),
            np.concatenate([self.value_C, weight_FV.ravel()]) / 2,
            np.concatenate([self.moved_CF, moved_CF]) / 2,
        )

    def _cell_of(self, level_XF: np.ndarray) -> np.ndarray:
        """Which cell of each tree every candidate is in (T, X)."""
        cell_TX = np.repeat(self.first_T[:, None], len(level_XF), 1)
        for field in range(level_XF.shape[1]):
            asks_T = self.cell_TFV[:, field].any(1)
            cell_TX[asks_T] += self.cell_TFV[asks_T, field][:, level_XF[:, field]]
        return cell_TX

    def score(self, level_XF: np.ndarray) -> np.ndarray:
        return self.value_C[self._cell_of(level_XF)].sum(0)

    def contributions(self, level_XF: np.ndarray) -> np.ndarray:
        cell_TX, moved_XF = self._cell_of(level_XF), np.zeros(level_XF.shape)
        for field in range(level_XF.shape[1]):
            asks_T = self.cell_TFV[:, field].any(1)
            moved_XF[:, field] = self.moved_CF[cell_TX[asks_T], field].sum(0, np.float64)
        return moved_XF


def _cells(node: dict[str, Any], fields: int, n_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """A candidate for each kind that a tree tells apart (X, F), and what makes a cell's number."""
    splits: dict[int, list[dict[str, Any]]] = {}
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if "split_feature" in node:
            splits.setdefault(node["split_feature"], []).append(node)
            waiting += [node["left_child"], node["right_child"]]
    cell_FV, kinds, stride = np.zeros((fields, n_levels), np.int32), [], 1
    for field, own in splits.items():
        left_VS = np.stack([_goes_left(split, n_levels) for split in own], 1)
        _, example, kind_V = np.unique(left_VS, axis=0, return_index=True, return_inverse=True)
        cell_FV[field] = stride * kind_V.ravel()
        stride *= len(example)
        kinds.append(np.where(example == n_levels - 1, np.nan, example))
    cells_XF = np.zeros((stride, fields))
    # The first field's number changes fastest, as the strides say.
    for field, column in zip(splits, np.meshgrid(*kinds[::-1], indexing="ij")[::-1], strict=True):
        cells_XF[:, field] = column.ravel()
    return cells_XF, cell_FV


def _goes_left(split: dict[str, Any], n_levels: int) -> np.ndarray:
    """Which levels a split sends to the left."""
    left_V = np.arange(n_levels) <= split["threshold"]
    left_V[-1] = split["default_left"] if split["missing_type"] == "NaN" else left_V[0]
    return left_V


@dataclass(frozen=True)
class Trees:
    """A forest per fold; `fold_U` says which one never saw a user, NO_FOLD: none has to."""

    forests: tuple[Forest, ...]
    fold_U: np.ndarray

    def score(
        self, buckets_LKF: np.ndarray, user_L: np.ndarray, there_LK: np.ndarray | None = None
    ) -> np.ndarray:
        """float32 (L, K); NaN for what is no candidate."""
        score_LK = np.zeros(buckets_LKF.shape[:2])
        for rows, forest, share in self._parts(user_L):
            found_X = forest.score(self._levels(buckets_LKF[rows]))
            score_LK[rows] += share * found_X.reshape(-1, buckets_LKF.shape[1])
        return nothing_behind(score_LK.astype(np.float32), there_LK)

    def contributions(self, buckets_LKF: np.ndarray, user_L: np.ndarray) -> np.ndarray:
        """What each field adds to each candidate's score, float32 (L, K, F)."""
        moved_LKF = np.zeros(buckets_LKF.shape)
        for rows, forest, share in self._parts(user_L):
            found_XF = forest.contributions(self._levels(buckets_LKF[rows]))
            moved_LKF[rows] += share * found_XF.reshape(-1, *buckets_LKF.shape[1:])
        return moved_LKF.astype(np.float32)

    def beside(self, weight_FV: np.ndarray) -> Trees:
        """The mean of every fold's trees and one scorecard (`LinearScorer.weight_FV`)."""
        return replace(self, forests=tuple(forest.beside(weight_FV) for forest in self.forests))

    def _levels(self, buckets_LKF: np.ndarray) -> np.ndarray:
        """(X, F), the last level MISSING."""
        last = self.forests[0].cell_TFV.shape[2] - 1
        return np.minimum(buckets_LKF, last).reshape(-1, buckets_LKF.shape[-1])

    def _parts(self, user_L: np.ndarray) -> Iterator[tuple[np.ndarray, Forest, float]]:
        """(some lists, a forest that reads them, its share in their scores)."""
        fold_L = self.fold_U[user_L]
        for fold, forest in enumerate(self.forests):
            for of, share in ((fold, 1.0), (NO_FOLD, 1.0 / len(self.forests))):
                rows = np.flatnonzero(fold_L == of)
                for start in range(0, len(rows), TOGETHER):
                    yield rows[start : start + TOGETHER], forest, share

    def save(self, path: Path) -> None:
        arrays = {
            f"{n}/{fold}": a for fold, f in enumerate(self.forests) for n, a in vars(f).items()
        }
        save_arrays(path, fold_U=self.fold_U, **arrays)

    @staticmethod
    def load(path: Path) -> Trees:
        arrays, names = load_arrays(path), [field.name for field in fields_of(Forest)]
        folds = range(sum(name.startswith("first_T/") for name in arrays))
        forests = [Forest(**{name: arrays[f"{name}/{fold}"] for name in names}) for fold in folds]
        return Trees(tuple(forests), arrays["fold_U"])


@dataclass(frozen=True)
class _Listwise:
    """Softmax over each list, for LightGBM: of flat scores of candidates the loss and its slopes.

    A row of `share_LK` sums to what its list counts.
    """

    valid_LK: np.ndarray
    share_LK: np.ndarray

    @classmethod
    def of(cls, lists: Lists) -> _Listwise:
        share_LK = shares(np.where(lists.valid_LK, lists.gains_LK, 0.0))
        if lists.weight_LK is not None:
            share_LK = weighted(share_LK, lists.weight_LK)
        return cls(lists.valid_LK, share_LK)

    def _logp(self, score_X: np.ndarray) -> np.ndarray:
        score_LK = np.full(self.valid_LK.shape, -np.inf)
        score_LK[self.valid_LK] = score_X
        score_LK -= score_LK.max(1, keepdims=True)
        return score_LK - np.log(np.exp(score_LK).sum(1, keepdims=True))

    def slopes(self, score_X: np.ndarray, _: Any) -> tuple[np.ndarray, np.ndarray]:
        p_LK, counts_L1 = np.exp(self._logp(score_X)), self.share_LK.sum(1, keepdims=True)
        slope_LK, bend_LK = counts_L1 * p_LK - self.share_LK, counts_L1 * p_LK * (1.0 - p_LK)
        return slope_LK[self.valid_LK], bend_LK[self.valid_LK]

    def loss(self, score_X: np.ndarray, _: Any) -> tuple[str, float, bool]:
        logp_LK = np.where(self.share_LK > 0, self._logp(score_X), 0.0)
        return "softmax", -float((self.share_LK * logp_LK).sum()) / len(logp_LK), False


def fit(
    lists: Lists,
    n_buckets: int,
    n_users: int,
    *,
    seed: int,
    threads: int = 0,
    held_U: np.ndarray | None = None,
) -> tuple[Trees, dict[str, Any]]:
    """Trees of all folds and how they came out; users in `held_U` are in no fold and teach nothing.

    `lists.raw_LKF` are buckets. Lists without any gain above 0 teach nothing.
    """
    held_U = np.zeros(n_users, bool) if held_U is None else held_U
    fold_U = np.where(held_U, NO_FOLD, fold_of_users(n_users, FOLDS, seed)).astype(np.int8)
    lists = lists.take(~held_U[lists.user_L]).taught()
    if len(lists) < FEWEST:
        raise DataError(
            f"traces.tutor: trees want {FEWEST} lists that hold their target, of these there are "
            f"{len(lists)} (traces.tutor: scorer learns from fewer)"
        )
    fold_L = fold_U[lists.user_L]
    grown, best, losses, counts = [], [], [], []
    for fold in range(FOLDS):
        held = lists.take(fold_L == fold)
        grown.append(_grown(lists.take(fold_L != fold), seed, threads, held=held))
        if 0 < len(held) < len(lists):
            best.append(grown[-1].best_iteration)
            losses.append(float(grown[-1].best_score["held"]["softmax"]))
            counts.append(len(held))
    # One number of trees for all, or scores of different folds were not on one scale.
    rounds = max(round(float(np.mean(best))), 1) if best else 1
    for fold, booster in enumerate(grown):
        if booster.num_trees() < rounds and (fold_L != fold).any():
            grown[fold] = _grown(lists.take(fold_L != fold), seed, threads, rounds=rounds)
    loss = float(np.average(losses, weights=counts)) if losses else float("nan")
    gain_F = np.sum([booster.feature_importance("gain", rounds) for booster in grown], axis=0)
    forests = [Forest.of(_first(booster, rounds), n_buckets + 1) for booster in grown]
    told = {"rounds": rounds, "lists": len(lists), "loss": loss, "gain_F": gain_F}
    return Trees(tuple(forests), fold_U), told


def _first(booster: Any, rounds: int) -> Any:
    """The first trees of a model."""
    import lightgbm

    return lightgbm.Booster(model_str=booster.model_to_string(num_iteration=rounds))


def _grown(
    learned: Lists, seed: int, threads: int, *, held: Lists | None = None, rounds: int = 1
) -> Any:
    """So many trees of these lists; with lists held out, some more than are best for those."""
    import lightgbm

    both = _with_hidden(learned, seed)
    given = {**GROWN, "objective": _Listwise.of(both).slopes, "seed": seed, "num_threads": threads}
    data, checked = _dataset(both), {}
    if held is not None and len(held) and len(learned):
        rounds, checked = ROUNDS, {"valid_sets": [_dataset(held, data)], "valid_names": ["held"]}
        checked["feval"] = _Listwise.of(held).loss
        checked["callbacks"] = [lightgbm.early_stopping(PATIENCE, verbose=False)]
    return lightgbm.train(given, data, num_boost_round=rounds, **checked)


def _dataset(lists: Lists, like: Any = None) -> Any:
    import lightgbm

    values_XF = values_of(lists.raw_LKF[lists.valid_LK])
    return lightgbm.Dataset(values_XF, np.zeros(len(values_XF)), reference=like, params=READ)


def _with_hidden(lists: Lists, seed: int) -> Lists:
    """The lists, and some of them once more with some of their evidence missing."""
    rng = generator(seed, "tutor", "hidden")
    blind = lists.take(rng.random(len(lists)) < AGAIN)
    lost_LKF = rng.random(blind.raw_LKF.shape, np.float32) < HIDDEN
    raw_LKF = np.where(lost_LKF, np.uint8(MISSING), blind.raw_LKF)
    return Lists.join([lists, replace(blind, raw_LKF=raw_LKF)])
