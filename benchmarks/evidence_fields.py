"""Which fields of evidence carry the gain: each one dropped from all, and added to the first ten.

    python benchmarks/evidence_fields.py runs/beauty --out results/evidence.json

Contract: reads data, items and candidates of a run and counts every field that the data can tell;
fits readers of sets of fields on what a prompt shows, the buckets, out of fold by user: boosted
trees (LightGBM, a listwise loss), and the scorecard for the sets that have a name. Training and
validation lists that hold their target are judged, each by a reader that never saw its user;
training lists teach a fifth as much as validation lists. Test lists are not read. Differences have
95 % intervals over users. Not here: how much of it a language model keeps (a run with
`evidence.fields` says that).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, write_json
from diffgr2.candidates import scorers
from diffgr2.candidates.fields import COUNTED, names_of
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.lists import first_columns, fold_of_users, load_lists
from diffgr2.candidates.retrieval import prefixes
from diffgr2.choices import SHOWN
from diffgr2.config import EvidenceConfig
from diffgr2.data.store import read_dataset
from diffgr2.evaluate.significance import ratio_interval
from diffgr2.pipeline import source_commit
from diffgr2.types import MISS, ndcg_of

SPLITS = {"train": 0.2, "validation": 1.0}
"""Where lists come from, and how much each of them teaches."""
FIRST = names_of(COUNTED)[:10]
METRICS = ("R@1", "NDCG@3")
FOLDS, RESAMPLES = 5, 1_000
TREES = {
    "objective": "rank_xendcg",
    "learning_rate": 0.08,
    "num_leaves": 12,
    "min_data_in_leaf": 100,
    "lambda_l2": 1.0,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
ROUNDS = 120

Reader = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Reader]


@dataclass(frozen=True)
class Judged:
    """Lists that hold their target, in buckets of all fields."""

    names: tuple[str, ...]
    buckets_LKF: np.ndarray
    hit_L: np.ndarray
    user_L: np.ndarray
    weight_L: np.ndarray
    fold_L: np.ndarray

    @staticmethod
    def of(run: Path, k: int, buckets: int, seed: int) -> Judged:
        dataset = read_dataset(run / "data")
        histories = dataset.histories
        vectors_ID = load_arrays(run / "items" / "vectors.safetensors")["vectors_ID"]
        config = EvidenceConfig(fields=None, buckets=buckets)
        index = EvidenceIndex.build(histories.train_part(), dataset.catalogue, vectors_ID, config)
        values, lists = [], []
        for split in SPLITS:
            own = first_columns(load_lists(run / "candidates", split), k)
            own = own.take(own.hit_L != MISS)
            queries = prefixes(histories, own.user_L, own.end_L)
            values.append(index.features(queries, own.items_LK, own.scores_LK, own.owner_L))
            lists.append(own)
        whole = np.concatenate(values)
        index = index.with_edges(whole.reshape(-1, whole.shape[-1]))
        user_L = np.concatenate([own.user_L for own in lists])
        weights = [np.full(len(own), SPLITS[own.split]) for own in lists]
        return Judged(
            index.names,
            index.buckets(whole),
            np.concatenate([own.hit_L for own in lists]),
            user_L,
            np.concatenate(weights),
            fold_of_users(histories.n_users, FOLDS, seed)[user_L],
        )

    def ranks(self, names: Sequence[str], fit: Fit, seed: int) -> np.ndarray:
        """The target's place, by readers of these fields that never saw the list's user."""
        buckets_LKF = self.buckets_LKF[..., [self.names.index(name) for name in names]]
        rank_L = np.empty(len(self.hit_L), np.int64)
        for fold in range(FOLDS):
            own = self.fold_L == fold
            read = fit(buckets_LKF[~own], self.hit_L[~own], self.weight_L[~own], seed)
            rank_L[own] = scorers.rank_of_target(read(buckets_LKF[own]), self.hit_L[own])
        return rank_L


def trees(buckets_LKF: np.ndarray, hit_L: np.ndarray, weight_L: np.ndarray, seed: int) -> Reader:
    import lightgbm as lgb

    n, k, fields = buckets_LKF.shape
    target_LK = np.zeros((n, k), np.int64)
    target_LK[np.arange(n), hit_L] = 1
    data = lgb.Dataset(
        buckets_LKF.reshape(-1, fields).astype(np.float32),
        target_LK.ravel(),
        group=np.full(n, k),
        weight=np.repeat(weight_L, k),
    )
    booster = lgb.train({**TREES, "seed": seed, "num_threads": 1}, data, ROUNDS)

    def read(some_LKF: np.ndarray) -> np.ndarray:
        flat = booster.predict(some_LKF.reshape(-1, fields).astype(np.float32))
        return np.asarray(flat).reshape(some_LKF.shape[:2])

    return read


def scorecard(
    buckets_LKF: np.ndarray, hit_L: np.ndarray, weight_L: np.ndarray, seed: int, *, n: int
) -> Reader:
    share_LK = np.zeros(buckets_LKF.shape[:2])
    share_LK[np.arange(len(hit_L)), hit_L] = weight_L
    return scorers.LinearScorer.fit(buckets_LKF, share_LK, n, 1e-3).score


def values_of(ranks: Sequence[np.ndarray]) -> np.ndarray:
    """R@1 and NDCG@3 of each list, the mean of some seeds."""
    each = [np.stack([rank_L == 0, ndcg_of(rank_L, 3)], 1).astype(np.float64) for rank_L in ranks]
    return np.mean(each, axis=0)


def told(judged: Judged, value_LM: np.ndarray, base_LM: np.ndarray | None) -> dict[str, Any]:
    """Means, and differences from another set's with intervals over users."""
    means = value_LM.mean(0).round(6).tolist()
    row: dict[str, Any] = dict(zip(METRICS, means, strict=True))
    if base_LM is None:
        return row
    users, place_L = np.unique(judged.user_L, return_inverse=True)
    count_U = np.bincount(place_L, minlength=len(users))
    for m, name in enumerate(METRICS):
        diff_L = value_LM[:, m] - base_LM[:, m]
        sum_U = np.bincount(place_L, diff_L, len(users))
        ends = ratio_interval(sum_U, count_U, RESAMPLES, "evidence", "fields")
        row[f"d {name}"] = [round(float(x), 6) for x in (diff_L.mean(), *(ends or ()))]
    return row


def measured(
    judged: Judged, fit: Fit, sets: dict[str, tuple[Sequence[str], str | None]], seeds: int
) -> list[dict[str, Any]]:
    """A row per set: its name, its fields and the set that it is held against."""
    values: dict[str, np.ndarray] = {}
    rows = []
    for name, (fields, base) in sets.items():
        ranks = [judged.ranks(fields, fit, seed) for seed in range(seeds)]
        values[name] = values_of(ranks)
        row = told(judged, values[name], values[base] if base else None)
        rows.append({"name": name, "fields": len(fields), "against": base, **row})
        print(rows[-1], flush=True)
    return rows


def sets_of(every: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The named sets, and each field dropped from all or added to the first."""
    first = [name for name in FIRST if name in every]
    shown = [name for name in every if name in SHOWN]
    more = [name for name in every if name in (*shown, "before", "trend")]
    named = {"ten": (first, None), "shown": (shown, "ten"), "all": (every, "ten")}
    named |= {"shown, before and trend": (more, "shown")}
    named |= {"the same without title": ([n for n in more if n != "title"], "shown")}
    single = {f"all without {n}": ([o for o in every if o != n], "all") for n in every}
    single |= {f"ten and {n}": ([*first, n], "ten") for n in every if n not in first}
    return named, single


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="a run with its candidates")
    parser.add_argument("--buckets", type=int, default=8)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1, help="of the trees")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    judged = Judged.of(given.run, given.k, given.buckets, 0)
    named, single = sets_of(judged.names)
    card = measured(judged, partial(scorecard, n=given.buckets), named, 1)
    grown = measured(judged, trees, {**named, **single}, given.seeds)
    if given.out:
        command = f"python benchmarks/evidence_fields.py {given.run.name}"
        about = {"command": command, "buckets": given.buckets, "k": given.k, "seed": 0}
        about |= {"seeds": given.seeds, "commit": source_commit(), "n": len(judged.hit_L)}
        about |= {"data": given.run.name, "splits": SPLITS, "folds": FOLDS}
        write_json(given.out, {**about, "scorecard": card, "trees": grown})


if __name__ == "__main__":
    main()
