"""Listwise scorers over evidence buckets: the rival without a language model, and its tutor.

Contract: a scorer sees `buckets_LKF` (u8), exactly what a prompt shows, and gives `score_LK`;
higher is better. `fit(kind, ...)` learns from lists that hold their target. `linear` is an additive
scorecard, one weight per field and bucket, whose `contributions` say which evidence moved a
decision; `mlp` also sees the list's mean; `gbdt` is boosted trees on candidates, a ceiling that is
scored but not stored. Same data and seed give the same bits. Not here: fields and buckets
(`evidence`), test metrics (`evaluate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.errors import ArtifactError
from diffgr2.streams import generator, torch_generator
from diffgr2.types import MISS

KINDS = ("linear", "mlp", "gbdt")


class Scorer(Protocol):
    """Rates candidates from their buckets."""

    def score(self, buckets_LKF: np.ndarray) -> np.ndarray: ...


def cell_index(buckets_LKF: np.ndarray, n_buckets: int) -> np.ndarray:
    """Number of each (field, bucket) cell: field * n_buckets + bucket."""
    fields = np.arange(buckets_LKF.shape[-1], dtype=np.int64) * n_buckets
    return buckets_LKF.astype(np.int64) + fields


def softmax_rows(score_LK: np.ndarray) -> np.ndarray:
    """Softmax over candidates."""
    e_LK = np.exp(score_LK - score_LK.max(1, keepdims=True))
    return e_LK / e_LK.sum(1, keepdims=True)


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
        rows_L = np.arange(n_lists)
        # Counts of the targets' cells do not change with the weights.
        target_C = np.bincount(cell_LKF[rows_L, hit_L].ravel(), minlength=cells)

        def objective(weight_C: np.ndarray) -> tuple[float, np.ndarray]:
            score_LK = weight_C[cell_LKF].sum(-1)
            p_LK = softmax_rows(score_LK)
            loss = -np.log(np.maximum(p_LK[rows_L, hit_L], 1e-300)).sum()
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
        return LinearScorer(_array(path, "weight_FB"))


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
class MlpScorer:
    """A small network with a linear scorecard as its skip connection."""

    net: _MlpNet
    n_buckets: int

    @staticmethod
    def fit(
        buckets_LKF: np.ndarray,
        hit_L: np.ndarray,
        n_buckets: int,
        seed: int,
        *,
        hidden: int = 32,
        epochs: int = 12,
        batch: int = 256,
        lr: float = 3e-3,
        weight_decay: float = 0.05,
    ) -> MlpScorer:
        """Listwise softmax, AdamW, linear decay of the rate."""
        net = _MlpNet(buckets_LKF.shape[-1] * n_buckets, hidden, seed)
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
        cell = torch.from_numpy(cell_index(buckets_LKF, n_buckets))
        target = torch.from_numpy(hit_L.astype(np.int64))
        steps = epochs * -(-len(target) // batch)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / (steps + 1))
        for epoch in range(epochs):
            order = torch.from_numpy(
                generator(seed, "scorer", "order", epoch).permutation(len(target))
            )
            for rows in order.split(batch):
                loss = F.cross_entropy(net(cell[rows]), target[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
        return MlpScorer(net.eval(), n_buckets)

    @torch.no_grad()
    def score(self, buckets_LKF: np.ndarray) -> np.ndarray:
        cell = torch.from_numpy(cell_index(buckets_LKF, self.n_buckets))
        parts = [self.net(part) for part in cell.split(8192)]
        return torch.cat(parts).numpy() if parts else np.zeros(buckets_LKF.shape[:2], np.float32)

    def save(self, path: Path) -> None:
        arrays = {k: v.numpy() for k, v in self.net.state_dict().items()}
        save_arrays(path, n_buckets=np.array([self.n_buckets]), **arrays)

    @staticmethod
    def load(path: Path) -> MlpScorer:
        arrays = load_arrays(path)
        try:
            n_buckets = int(arrays.pop("n_buckets")[0])
            cells, hidden = arrays["cells.weight"].shape
            net = _MlpNet(cells, hidden, 0)
            net.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()})
        except (KeyError, RuntimeError) as error:
            raise ArtifactError(f"{path}: not an mlp scorer ({error})".splitlines()[0]) from None
        return MlpScorer(net.eval(), n_buckets)


@dataclass(frozen=True)
class GbdtScorer:
    """Boosted trees on single candidates (is it the target?); lives in memory only."""

    predict: Callable[[np.ndarray], np.ndarray]

    @staticmethod
    def fit(buckets_LKF: np.ndarray, hit_L: np.ndarray, seed: int) -> GbdtScorer:
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
        return GbdtScorer(trees.decision_function)

    def score(self, buckets_LKF: np.ndarray) -> np.ndarray:
        flat = buckets_LKF.reshape(-1, buckets_LKF.shape[-1])
        return self.predict(flat).reshape(buckets_LKF.shape[:2]).astype(np.float32)


def fit(
    kind: str, buckets_LKF: np.ndarray, hit_L: np.ndarray, n_buckets: int, *, l2: float, seed: int
) -> Scorer:
    """Fit one kind on the lists that hold their target."""
    rows = hit_L != MISS
    buckets_LKF, hit_L = buckets_LKF[rows], hit_L[rows]
    if kind == "linear":
        return LinearScorer.fit(buckets_LKF, hit_L, n_buckets, l2)
    if kind == "mlp":
        return MlpScorer.fit(buckets_LKF, hit_L, n_buckets, seed)
    return GbdtScorer.fit(buckets_LKF, hit_L, seed)


def rank_of_target(score_LK: np.ndarray, hit_L: np.ndarray) -> np.ndarray:
    """0-based rank of the target after sorting by score; ties keep the floor's order."""
    own_L1 = np.take_along_axis(score_LK, hit_L[:, None], 1)
    before_LK = np.arange(score_LK.shape[1]) < hit_L[:, None]
    return ((score_LK > own_L1) | ((score_LK == own_L1) & before_LK)).sum(1)


def hit_metrics(rank_L: np.ndarray) -> dict[str, float]:
    """R@1, R@3, NDCG@3 of 0-based ranks on the hit population."""
    gain_L = np.where(rank_L < 3, 1.0 / np.log2(rank_L + 2.0), 0.0)
    return {
        "r@1": float((rank_L < 1).mean()),
        "r@3": float((rank_L < 3).mean()),
        "ndcg@3": float(gain_L.mean()),
    }


def _array(path: Path, name: str) -> np.ndarray:
    arrays = load_arrays(path)
    if name not in arrays:
        raise ArtifactError(f"{path}: array {name} is missing")
    return arrays[name]
