"""Listwise scorers over evidence buckets: the rival without a language model, and its tutor.

Contract: a scorer sees `buckets_LKF` (u8), exactly what a prompt shows, and gives `score_LK`;
higher is better. `fit(kind, ...)` learns from lists that something came of, of several positives by
their share in the gains; `there_LK` says which columns of shorter lists hold candidates, and the
others have the score NaN; `weight_LK` how much more an outcome counts than another (inverse
propensities). A field that is missing is a level of its own. `linear` is an additive scorecard, one
weight per field and level, whose `contributions` say which evidence moved a decision; it alone is
stored. `mlp` also sees the list's mean; `gbdt` is boosted trees on single candidates (did something
come of it?), a ceiling. Same data and seed give the same bits. Not here: fields and buckets
(`index`), test metrics (`evaluate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import softmax
from torch import nn
from torch.nn import functional as F

from diffgr2 import blas
from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.candidates.retrieval import rank_of_target as rank_of_target
from diffgr2.streams import permutation, torch_generator
from diffgr2.types import MISSING, ndcg_of


def levels_of(buckets_LKF: np.ndarray, n_buckets: int) -> int:
    """Levels of a field: its buckets, and one more where some evidence is missing."""
    return n_buckets + int((buckets_LKF == MISSING).any())


def cell_index(buckets_LKF: np.ndarray, n_levels: int) -> np.ndarray:
    """Number of each (field, level) cell: field * n_levels + level; MISSING is the last level."""
    fields = np.arange(buckets_LKF.shape[-1], dtype=np.int64) * n_levels
    return np.minimum(buckets_LKF.astype(np.int64), n_levels - 1) + fields


@dataclass(frozen=True)
class LinearScorer:
    """A scorecard: score = sum over fields of weight[field, level]."""

    weight_FV: np.ndarray  # float64, a column per bucket, then one for MISSING (0 if never met);
    # each field's weights have mean 0 over the fitted candidates

    @staticmethod
    def fit(
        buckets_LKF: np.ndarray,
        share_LK: np.ndarray,
        n_buckets: int,
        l2: float,
        there_LK: np.ndarray | None = None,
        smooth: float = 0.0,
    ) -> LinearScorer:
        """Listwise softmax with L2 per weight, and `smooth` per difference of neighbouring buckets;
        convex, so the optimum is the one there is.

        A row of `share_LK` sums to what its list counts.
        """
        n_lists, _, fields = buckets_LKF.shape
        total_L1 = share_LK.sum(1, keepdims=True)
        alike = bool(np.abs(total_L1 - 1.0).max(initial=0.0) < 1e-6)  # then no product is needed
        levels = levels_of(buckets_LKF, n_buckets)
        cell_LKF = cell_index(buckets_LKF, levels)
        cells = fields * levels
        if there_LK is not None:  # a cell of its own for what is not there, behind all others
            cell_LKF = np.where(there_LK[:, :, None], cell_LKF, cells)
        # Counts of the targets' cells do not change with the weights.
        mass_LKF = np.broadcast_to(share_LK[:, :, None], cell_LKF.shape)
        target_C = np.bincount(cell_LKF.ravel(), mass_LKF.ravel(), minlength=cells)[:cells]
        won_LK = share_LK > 0

        def objective(weight_C: np.ndarray) -> tuple[float, np.ndarray]:
            score_LK = np.append(weight_C, 0.0)[cell_LKF].sum(-1)
            if there_LK is not None:
                score_LK[~there_LK] = -np.inf
            p_LK = softmax(score_LK, axis=1)
            loss = -(share_LK[won_LK] * np.log(np.maximum(p_LK[won_LK], 1e-300))).sum()
            p_LK = p_LK if alike else p_LK * total_L1
            mass_LKF = np.broadcast_to(p_LK[:, :, None], cell_LKF.shape)
            expected_C = np.bincount(cell_LKF.ravel(), mass_LKF.ravel(), minlength=cells)[:cells]
            penalty = 0.5 * l2 * float(weight_C @ weight_C)
            slope_C = (expected_C - target_C) / n_lists + l2 * weight_C
            if smooth:
                step_FB = np.diff(weight_C.reshape(fields, levels)[:, :n_buckets], axis=1)
                penalty += 0.5 * smooth * float(np.square(step_FB).sum())
                pull_FB = np.diff(np.pad(step_FB, ((0, 0), (1, 1))), axis=1)
                slope_C.reshape(fields, levels)[:, :n_buckets] -= smooth * pull_FB
            return loss / n_lists + penalty, slope_C

        options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-7}
        given = {"jac": True, "method": "L-BFGS-B", "options": options}
        with blas.single():  # whose own products are of ten vectors at most
            found = minimize(objective, np.zeros(cells), **given)
        weight_FV = found.x.reshape(fields, levels)
        # Within a list only differences matter; centring makes a contribution's sign mean
        # "better or worse than the usual candidate".
        seen_FV = np.bincount(cell_LKF.ravel(), minlength=cells)[:cells].reshape(fields, levels)
        mean_F1 = (weight_FV * seen_FV).sum(1, keepdims=True) / seen_FV.sum(1, keepdims=True)
        weight_FV = np.pad(weight_FV - mean_F1, ((0, 0), (0, n_buckets + 1 - levels)))
        if levels > n_buckets:
            weight_FV[seen_FV[:, -1] == 0, -1] = 0.0  # nothing was learned about its absence
        return LinearScorer(weight_FV)

    def contributions(self, buckets_LKF: np.ndarray) -> np.ndarray:
        """What each field adds to each candidate's score (L, K, F)."""
        fields, last = np.arange(self.weight_FV.shape[0]), self.weight_FV.shape[1] - 1
        return self.weight_FV[fields, np.minimum(buckets_LKF, last)].astype(np.float32)

    def score(self, buckets_LKF: np.ndarray, there_LK: np.ndarray | None = None) -> np.ndarray:
        if there_LK is not None:  # buckets behind a list's end may say anything
            buckets_LKF = np.where(there_LK[:, :, None], buckets_LKF, 0)
        return nothing_behind(self.contributions(buckets_LKF).sum(-1), there_LK)

    def save(self, path: Path) -> None:
        save_arrays(path, weight_FV=self.weight_FV)

    @staticmethod
    def load(path: Path) -> LinearScorer:
        return LinearScorer(**load_arrays(path))


def usual_levels(buckets_LKF: np.ndarray) -> np.ndarray:
    """Each field's most frequent level, u8 (F,)."""
    flat_FX = buckets_LKF.reshape(-1, buckets_LKF.shape[-1]).T
    return np.array([np.bincount(value_X).argmax() for value_X in flat_FX], np.uint8)


class _MlpNet(nn.Module):
    """One embedding per cell, summed; a hidden layer that also sees the list's mean."""

    def __init__(self, cells: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.cells = nn.Embedding(cells, hidden)
        self.own, self.context = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False)
        self.skip, self.out = nn.Embedding(cells, 1), nn.Linear(hidden, 1, bias=False)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                scale = 0.0 if name in {"skip.weight", "out.weight", "own.bias"} else 0.2
                source = torch_generator(seed, "scorer", "init", name)
                parameter.normal_(0.0, 1.0, generator=source).mul_(scale)

    def forward(self, cell_LKF: torch.Tensor, there_LK: torch.Tensor | None) -> torch.Tensor:
        x_LKH = self.cells(cell_LKF).sum(2)
        if there_LK is None:
            mean_L1H = x_LKH.mean(1, keepdim=True)
        else:
            there_LK1 = there_LK[:, :, None]
            mean_L1H = (x_LKH * there_LK1).sum(1, keepdim=True) / there_LK1.sum(1, keepdim=True)
        hidden_LKH = F.relu(self.own(x_LKH) + self.context(mean_L1H))
        score_LK = (self.out(hidden_LKH) + self.skip(cell_LKF).sum(2)).squeeze(-1)
        return score_LK if there_LK is None else score_LK.masked_fill(~there_LK, -torch.inf)


@dataclass(frozen=True)
class Fitted:
    """A scorer that lives in memory only."""

    scores: Callable[[np.ndarray, np.ndarray | None], np.ndarray]

    def score(self, buckets_LKF: np.ndarray, there_LK: np.ndarray | None = None) -> np.ndarray:
        return nothing_behind(self.scores(buckets_LKF, there_LK), there_LK)


def nothing_behind(score_LK: np.ndarray, there_LK: np.ndarray | None) -> np.ndarray:
    """NaN for what is no candidate."""
    return score_LK if there_LK is None else np.where(there_LK, score_LK, np.float32(np.nan))


def fit_mlp(
    buckets_LKF: np.ndarray,
    share_LK: np.ndarray,
    n_buckets: int,
    seed: int,
    there_LK: np.ndarray | None = None,
) -> Fitted:
    """A small network: listwise softmax, AdamW, linear decay of the rate."""
    epochs, batch, levels = 12, 256, levels_of(buckets_LKF, n_buckets)
    net = _MlpNet(buckets_LKF.shape[-1] * levels, 32, seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    usual_F = usual_levels(buckets_LKF)

    def inputs(
        buckets_LKF: np.ndarray, there_LK: np.ndarray | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if levels == n_buckets:  # nothing was missing when it learned
            buckets_LKF = np.where(buckets_LKF == MISSING, usual_F, buckets_LKF)
        if there_LK is None:
            return torch.from_numpy(cell_index(buckets_LKF, levels)), None
        held_LKF = np.where(there_LK[:, :, None], buckets_LKF, 0)
        return torch.from_numpy(cell_index(held_LKF, levels)), torch.from_numpy(there_LK)

    cell_LKF, held_LK = inputs(buckets_LKF, there_LK)
    target_L, one = torch.from_numpy(share_LK.argmax(1)), bool((share_LK.max(1) == 1).all())
    wanted_LK = torch.from_numpy(share_LK.astype(np.float32))
    steps = epochs * -(-len(target_L) // batch)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / (steps + 1))
    for epoch in range(epochs):
        order_L = torch.from_numpy(permutation(len(target_L), seed, "scorer", "order", epoch))
        for lists in order_L.split(batch):
            score_LK = net(cell_LKF[lists], None if held_LK is None else held_LK[lists])
            if one:
                loss = F.cross_entropy(score_LK, target_L[lists])
            else:
                said_LK = score_LK.log_softmax(1).clamp_min(-1e9)  # 0 · −∞ has no value
                loss = -(wanted_LK[lists] * said_LK).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()

    @torch.no_grad()
    def score(buckets_LKF: np.ndarray, there_LK: np.ndarray | None) -> np.ndarray:
        cell_LKF, held_LK = inputs(buckets_LKF, there_LK)
        parts = range(0, max(len(cell_LKF), 1), 8192)
        held = [None if held_LK is None else held_LK[at : at + 8192] for at in parts]
        cells = [cell_LKF[at : at + 8192] for at in parts]
        return torch.cat([net(*pair) for pair in zip(cells, held, strict=True)]).numpy()

    return Fitted(score)


def fit_gbdt(
    buckets_LKF: np.ndarray,
    share_LK: np.ndarray,
    seed: int,
    there_LK: np.ndarray | None = None,
    counts_LK: np.ndarray | None = None,
) -> Fitted:
    """Boosted trees; `counts_LK` is how much each candidate counts."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(
        max_iter=150,
        learning_rate=0.06,
        max_leaf_nodes=15,
        min_samples_leaf=100,
        l2_regularization=5.0,
        early_stopping=False,  # pyright: ignore[reportArgumentType]
        random_state=seed,
    )
    flat_NF, label_N = buckets_LKF.reshape(-1, buckets_LKF.shape[-1]), (share_LK > 0).ravel()
    count_N = None if counts_LK is None else counts_LK.ravel()
    if there_LK is not None:
        flat_NF, label_N = flat_NF[there_LK.ravel()], label_N[there_LK.ravel()]
        count_N = None if count_N is None else count_N[there_LK.ravel()]
    trees.fit(flat_NF, label_N, count_N)

    def score(buckets_LKF: np.ndarray, there_LK: np.ndarray | None) -> np.ndarray:
        flat_NF = buckets_LKF.reshape(-1, buckets_LKF.shape[-1])
        return trees.decision_function(flat_NF).reshape(buckets_LKF.shape[:2]).astype(np.float32)

    return Fitted(score)


KINDS = ("linear", "mlp", "gbdt")
Scorer = LinearScorer | Fitted


def shares(gains_LK: np.ndarray) -> np.ndarray:
    """What part of a list's gains each candidate has; nothing in a list that has none."""
    total_L1 = gains_LK.sum(1, keepdims=True, dtype=np.float64)
    return gains_LK / np.where(total_L1 > 0, total_L1, 1.0)


def weighted(share_LK: np.ndarray, weight_LK: np.ndarray) -> np.ndarray:
    """Shares in which an outcome counts by its weight; a list counts 1 on average."""
    share_LK = share_LK * weight_LK
    return share_LK * (len(share_LK) / max(float(share_LK.sum()), 1e-12))


def fit(
    kind: str,
    buckets_LKF: np.ndarray,
    gains_LK: np.ndarray,
    n_buckets: int,
    *,
    l2: float,
    seed: int,
    there_LK: np.ndarray | None = None,
    weight_LK: np.ndarray | None = None,
    smooth: float = 0.0,
) -> Scorer:
    """Fit one kind on the lists that something came of; `there_LK` where some are shorter."""
    rows_L = (gains_LK > 0).any(1)
    buckets_LKF, share_LK = buckets_LKF[rows_L], shares(gains_LK[rows_L])
    if weight_LK is not None:
        share_LK = weighted(share_LK, weight_LK[rows_L])
    held_LK = None if there_LK is None or there_LK.all() else there_LK[rows_L]
    match kind:
        case "linear":
            return LinearScorer.fit(buckets_LKF, share_LK, n_buckets, l2, held_LK, smooth)
        case "mlp":
            return fit_mlp(buckets_LKF, share_LK, n_buckets, seed, held_LK)
        case "gbdt":
            counts_LK = None
            if weight_LK is not None:
                counts_LK = np.where(share_LK > 0, weight_LK[rows_L], 1.0)
            return fit_gbdt(buckets_LKF, share_LK, seed, held_LK, counts_LK)
    raise ValueError(f"unknown kind of scorer: {kind}")


def hit_metrics(rank_L: np.ndarray) -> dict[str, float]:
    """R@1, R@3, NDCG@3 of 0-based ranks on the hit population."""
    return {
        "r@1": float((rank_L < 1).mean()),
        "r@3": float((rank_L < 3).mean()),
        "ndcg@3": float(ndcg_of(rank_L, 3).mean()),
    }
