"""The honest rival: LambdaMART (LightGBM) on the raw values that a prompt shows in buckets.

Contract: `fit` learns from lists with gains and gives scores, higher is better. Labels are the
gains themselves, a group is a list of any length, NaN is missing, categories are categories. A
small fixed grid is tuned on lists that train nothing: rounds by early stopping, and of the settings
the smallest trees that cannot be told from the best (paired, one standard error). Where those lists
are few, held-out fifths of the training lists join them. Same data, seed and grid give the same
bits. Not here: the values (`index`), which lists and by which metric (`stages.rival`). Needs the
extra `lambdamart`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from diffgr2.candidates.lists import fold_of_users

GRID = [
    {"num_leaves": leaves, "min_data_in_leaf": least}
    for leaves, least in product((4, 8, 16), (100, 20))
]
"""What is tried, the smallest trees first."""

FIXED = {
    "objective": "lambdarank",
    "learning_rate": 0.05,
    "lambda_l2": 1.0,
    "metric": "ndcg",
    "eval_at": [10],
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
ROUNDS, PATIENCE = 600, 60
FEWEST = 1_000
"""Lists that a choice needs; below, it is made on training lists out of fold as well."""
FOLDS = 5


@dataclass(frozen=True)
class Lists:
    """Lists as trees meet them; a candidate where `valid_LK` is false is padding."""

    raw_LKF: np.ndarray  # float32, NaN = missing
    valid_LK: np.ndarray  # bool
    gains_LK: np.ndarray  # what each candidate's outcome is worth
    user_L: np.ndarray
    weight_LK: np.ndarray | None = None  # how much more an outcome counts than another

    def __len__(self) -> int:
        return len(self.raw_LKF)

    @property
    def teaches(self) -> np.ndarray:
        """Which hold something worth more than the rest."""
        return (self.gains_LK * self.valid_LK).max(1, initial=0.0) > 0

    def take(self, which: np.ndarray | slice) -> Lists:
        given: dict[str, Any] = {n: a if a is None else a[which] for n, a in vars(self).items()}
        return Lists(**given)

    def taught(self) -> Lists:
        """Those that teach."""
        return self.take(self.teaches)

    @staticmethod
    def join(parts: Sequence[Lists]) -> Lists:
        columns = {name: [vars(part)[name] for part in parts] for name in vars(parts[0])}
        bare = any(array is None for array in columns["weight_LK"])
        kept = {name: a for name, a in columns.items() if not (bare and name == "weight_LK")}
        return Lists(**{name: np.concatenate(arrays) for name, arrays in kept.items()})


Worth = Callable[[np.ndarray, Lists], np.ndarray]
"""What scores (L, K) are worth on each of these lists."""


@dataclass(frozen=True)
class LambdaMart:
    """The trees, and how they were chosen."""

    booster: Any
    rounds: int
    setting: dict[str, int]
    tuned_on: int  # lists

    def score(self, raw_LKF: np.ndarray, valid_LK: np.ndarray) -> np.ndarray:
        """float32 (L, K); padding has the least score of all."""
        score_LK = np.full(valid_LK.shape, -np.inf, np.float32)
        if valid_LK.any():
            score_LK[valid_LK] = self.booster.predict(raw_LKF[valid_LK], num_iteration=self.rounds)
        return score_LK

    def importance(self, names: Sequence[str]) -> dict[str, float]:
        """Each field's share of the loss that the trees took away."""
        gain_F = self.booster.feature_importance("gain", iteration=self.rounds)
        share_F = gain_F / max(float(gain_F.sum()), 1e-12)
        return {name: round(float(share), 4) for name, share in zip(names, share_F, strict=True)}


def fit(
    train: Lists,
    select: Lists,
    worth: Worth,
    *,
    categories: Sequence[int] = (),
    seed: int,
    threads: int = 0,
) -> LambdaMart:
    """Trees from `train`, tuned by `worth` on `select`; numbers in `categories` are names.

    Lists without any gain above 0 teach nothing and choose nothing.
    """
    train, select = train.taught(), select.taught()
    gains = (lists.gains_LK.ravel() for lists in (train, select))
    worth_G = np.unique(np.concatenate([np.zeros(1), *gains]))
    common = {**FIXED, "seed": seed, "num_threads": threads, "label_gain": worth_G.tolist()}
    grower = _Grower(common, worth_G, list(categories))
    whole = [(train, select)]
    plans = whole if len(select) >= FEWEST else _folds(train, select, seed)
    best = _chosen([_tried(grower, setting, plans, worth) for setting in GRID])
    if plans is whole:
        return LambdaMart(best.boosters[0], best.rounds, best.setting, len(best.value_L))
    booster = grower.grown(train, best.setting, best.rounds)
    return LambdaMart(booster, best.rounds, best.setting, len(best.value_L))


@dataclass(frozen=True)
class _Grower:
    """Lists in, trees out."""

    common: dict[str, Any]
    worth_G: np.ndarray  # the gains there are, increasing from 0; a label is a place in it
    categories: list[int]

    def dataset(self, lists: Lists, like: Any = None) -> Any:
        import lightgbm

        label_LK = np.searchsorted(self.worth_G, np.maximum(lists.gains_LK, 0.0))
        weight_LK = lists.weight_LK
        if weight_LK is not None:
            weight_LK = np.where(lists.gains_LK > 0, weight_LK, 1.0)
        return lightgbm.Dataset(
            lists.raw_LKF[lists.valid_LK],
            label_LK[lists.valid_LK],
            weight=None if weight_LK is None else weight_LK[lists.valid_LK],
            group=lists.valid_LK.sum(1),
            reference=like,
            categorical_feature=self.categories,
        )

    def grown(self, lists: Lists, setting: dict[str, int], rounds: int) -> Any:
        import lightgbm

        given = {**self.common, **setting}
        return lightgbm.train(given, self.dataset(lists), num_boost_round=max(rounds, 1))

    def stopped(self, lists: Lists, held: Lists, setting: dict[str, int]) -> tuple[Any, int]:
        """Trees and how many of them are best for the lists held out."""
        import lightgbm

        data = self.dataset(lists)
        booster = lightgbm.train(
            {**self.common, **setting},
            data,
            num_boost_round=ROUNDS,
            valid_sets=[self.dataset(held, data)],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )
        return booster, max(booster.best_iteration, 1)


@dataclass(frozen=True)
class _Tried:
    """What a setting was worth on lists that its trees did not see."""

    setting: dict[str, int]
    boosters: list[Any]
    rounds: int
    value_L: np.ndarray


def _tried(
    grower: _Grower, setting: dict[str, int], plans: list[tuple[Lists, Lists]], worth: Worth
) -> _Tried:
    boosters, rounds, values = [], [], []
    for learned, held in plans:
        booster, best = grower.stopped(learned, held, setting)
        trees = LambdaMart(booster, best, setting, len(held))
        values.append(worth(trees.score(held.raw_LKF, held.valid_LK), held))
        boosters.append(booster)
        rounds.append(best)
    return _Tried(setting, boosters, round(float(np.mean(rounds))), np.concatenate(values))


def _chosen(tried: list[_Tried]) -> _Tried:
    """The first, which has the smallest trees, that the best is not surely better than."""
    best = max(tried, key=lambda one: float(one.value_L.mean()))
    for one in tried:
        less_L = best.value_L - one.value_L
        if less_L.mean() <= less_L.std() / np.sqrt(len(less_L)):
            return one
    return best


def _folds(train: Lists, select: Lists, seed: int) -> list[tuple[Lists, Lists]]:
    """A fifth of all users' lists each, and the training lists of the others."""
    every = Lists.join([train, select])
    trains_L = np.arange(len(every)) < len(train)
    number_L = np.unique(every.user_L, return_inverse=True)[1]
    fold_L = fold_of_users(int(number_L.max(initial=0)) + 1, FOLDS, seed)[number_L]
    plans = [
        (every.take(trains_L & (fold_L != fold)), every.take(fold_L == fold))
        for fold in range(FOLDS)
    ]
    return [plan for plan in plans if len(plan[0]) and len(plan[1])] or [(train, every)]
