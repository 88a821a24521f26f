"""Listwise scorers over evidence buckets: the rival without a language model, and its tutor.

Contract: a scorer sees `buckets_LKF` (u8), exactly what a prompt shows, and gives `score_LK`;
higher is better. `fit(kind, ...)` learns from lists that hold their target. `linear` is an additive
scorecard, one weight per field and bucket, whose `contributions` say which evidence moved a
decision; it alone is stored. `mlp` also sees the list's mean; `gbdt` is boosted trees on single
candidates (is it the target?), a ceiling. Same data and seed give the same bits. Not here: fields
and buckets (`index`), test metrics (`evaluate`).
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

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.candidates.retrieval import rank_of_target as rank_of_target
from diffgr2.streams import permutation, torch_generator
from diffgr2.types import MISS, ndcg_of


def cell_index(buckets_LKF: np.ndarray, n_buckets: int) -> np.ndarray:
    """Number of each (field, bucket) cell: field * n_buckets + bucket."""
    fields = np.arange(buckets_LKF.shape[-1], dtype=np.int64) * n_buckets
    return buckets_LKF.astype(np.int64) + fields


@dataclass(frozen=True)
class LinearScorer:
    """A scorecard: score = sum over fields of weight[field, bucket]."""

    weight_FB: np.ndarray  # float64; each field's weights have mean 0 over the fitted candidates

    @staticmethod
    def fit(buckets_LKF: np.ndarray, hit_L: np.ndarray, n_buckets: int, l2: float) -> LinearScorer:
        """Listwise softmax with L2 per weight; convex, so the optimum is the one there is."""
        n_lists, _, fields = buckets_LKF.shape
        cell_LKF = cell_index(buckets_LKF, n_buckets)
        cells = fields * n_buckets
        each_L = np.arange(n_lists)
        # Counts of the targets' cells do not change with the weights.
        target_C = np.bincount(cell_LKF[each_L, hit_L].ravel(), minlength=cells)

        def objective(weight_C: np.ndarray) -> tuple[float, np.ndarray]:
            score_LK = weight_C[cell_LKF].sum(-1)
            p_LK = softmax(score_LK, axis=1)
            loss = -np.log(np.maximum(p_LK[each_L, hit_L], 1e-300)).sum()
            mass_LKF = np.broadcast_to(p_LK[:, :, None], cell_LKF.shape)
            expected_C = np.bincount(cell_LKF.ravel(), mass_LKF.ravel(), minlength=cells)
            penalty = 0.5 * l2 * float(weight_C @ weight_C)
            return loss / n_lists + penalty, (expected_C - target_C) / n_lists + l2 * weight_C

        options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-7}
        found = minimize(objective, np.zeros(cells), jac=True, method="L-BFGS-B", options=options)
        weight_FB = found.x.reshape(fields, n_buckets)
        # Within a list only differences matter; centring makes a contribution's sign mean
        # "better or worse than the usual candidate".
        seen_FB = np.bincount(cell_LKF.ravel(), minlength=cells).reshape(fields, n_buckets)
        mean_F1 = (weight_FB * seen_FB).sum(1, keepdims=True) / seen_FB.sum(1, keepdims=True)
        return LinearScorer(weight_FB - mean_F1)

    def contributions(self, buckets_LKF: np.ndarray) -> np.ndarray:
        """What each field adds to each candidate's score (L, K, F)."""
        fields = np.arange(self.weight_FB.shape[0])
        return self.weight_FB[fields, buckets_LKF].astype(np.float32)

    def score(self, buckets_LKF: np.ndarray) -> np.ndarray:
        return self.contributions(buckets_LKF).sum(-1)

    def save(self, path: Path) -> None:
        save_arrays(path, weight_FB=self.weight_FB)

    @staticmethod
    def load(path: Path) -> LinearScorer:
        return LinearScorer(**load_arrays(path))


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

    def forward(self, cell_LKF: torch.Tensor) -> torch.Tensor:
        x_LKH = self.cells(cell_LKF).sum(2)
        context_L1H = self.context(x_LKH.mean(1, keepdim=True))
        hidden_LKH = F.relu(self.own(x_LKH) + context_L1H)
        return (self.out(hidden_LKH) + self.skip(cell_LKF).sum(2)).squeeze(-1)


@dataclass(frozen=True)
class Fitted:
    """A scorer that lives in memory only."""

    score: Callable[[np.ndarray], np.ndarray]


def fit_mlp(buckets_LKF: np.ndarray, hit_L: np.ndarray, n_buckets: int, seed: int) -> Fitted:
    """A small network: listwise softmax, AdamW, linear decay of the rate."""
    epochs, batch = 12, 256
    net = _MlpNet(buckets_LKF.shape[-1] * n_buckets, 32, seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    cell_LKF = torch.from_numpy(cell_index(buckets_LKF, n_buckets))
    target_L = torch.from_numpy(hit_L.astype(np.int64))
    steps = epochs * -(-len(target_L) // batch)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / (steps + 1))
    for epoch in range(epochs):
        order_L = torch.from_numpy(permutation(len(target_L), seed, "scorer", "order", epoch))
        for lists in order_L.split(batch):
            loss = F.cross_entropy(net(cell_LKF[lists]), target_L[lists])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()

    @torch.no_grad()
    def score(buckets_LKF: np.ndarray) -> np.ndarray:
        cell_LKF = torch.from_numpy(cell_index(buckets_LKF, n_buckets))
        return torch.cat([net(part) for part in cell_LKF.split(8192)]).numpy()

    return Fitted(score)


def fit_gbdt(buckets_LKF: np.ndarray, hit_L: np.ndarray, seed: int) -> Fitted:
    """Boosted trees."""
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
    label_LK = np.arange(buckets_LKF.shape[1]) == hit_L[:, None]
    trees.fit(buckets_LKF.reshape(-1, buckets_LKF.shape[-1]), label_LK.ravel())

    def score(buckets_LKF: np.ndarray) -> np.ndarray:
        flat_NF = buckets_LKF.reshape(-1, buckets_LKF.shape[-1])
        return trees.decision_function(flat_NF).reshape(buckets_LKF.shape[:2]).astype(np.float32)

    return Fitted(score)


KINDS = ("linear", "mlp", "gbdt")
Scorer = LinearScorer | Fitted


def fit(
    kind: str, buckets_LKF: np.ndarray, hit_L: np.ndarray, n_buckets: int, *, l2: float, seed: int
) -> Scorer:
    """Fit one kind on the lists that hold their target."""
    buckets_LKF, hit_L = buckets_LKF[hit_L != MISS], hit_L[hit_L != MISS]
    match kind:
        case "linear":
            return LinearScorer.fit(buckets_LKF, hit_L, n_buckets, l2)
        case "mlp":
            return fit_mlp(buckets_LKF, hit_L, n_buckets, seed)
        case "gbdt":
            return fit_gbdt(buckets_LKF, hit_L, seed)
    raise ValueError(f"unknown kind of scorer: {kind}")


def hit_metrics(rank_L: np.ndarray) -> dict[str, float]:
    """R@1, R@3, NDCG@3 of 0-based ranks on the hit population."""
    return {
        "r@1": float((rank_L < 1).mean()),
        "r@3": float((rank_L < 3).mean()),
        "ndcg@3": float(ndcg_of(rank_L, 3).mean()),
    }
