"""SASRec without a tensor library: the scores of a trained model, in NumPy.

Contract: `AttentionScores.load(directory)` reads what `SasRec.save` wrote, whatever does not fit
its config.json is an ArtifactError; `score_all` gives the scores of `SasRec.score_all` to 1e-5. One
history at a time: a request has one. Not here: training, and lists of many users (`sasrec`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.config import RetrieverConfig
from diffgr2.errors import ArtifactError
from diffgr2.types import Histories

EPS = 1e-5  # of torch's LayerNorm

ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
"""Abramowitz and Stegun 7.1.26: good to 1.5e-7, which is what fp32 holds."""


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution's share below it."""
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1.0 / (1.0 + np.float32(0.3275911) * z)
    tail = np.float32(ERF[-1]) * t
    for factor in ERF[-2::-1]:
        tail += np.float32(factor)
        tail *= t
    tail *= 0.5 * np.exp(-z * z)
    return x * np.where(x < 0, tail, 1.0 - tail)


@dataclass(frozen=True)
class AttentionScores:
    """The model's arrays by their names in the file."""

    n_items: int
    config: RetrieverConfig
    arrays: dict[str, np.ndarray]  # float32

    @classmethod
    def load(cls, directory: Path) -> AttentionScores:
        """See the module's docstring."""
        about: dict[str, Any] = read_json(directory / "config.json")
        n_items, config = about.pop("n_items"), RetrieverConfig.model_validate(about)
        path = directory / "model.safetensors"
        arrays = load_arrays(path)
        wanted = shapes_of(n_items, config)
        for name in sorted(wanted.keys() | arrays.keys()):
            found = arrays[name].shape if name in arrays else None
            if found != wanted.get(name):
                raise ArtifactError(f"{path}: {name} is {found}, not {wanted.get(name)}")
        return cls(n_items, config, arrays)

    def save(self, directory: Path) -> None:
        """Write what `load` and `SasRec.load` read."""
        save_arrays(directory / "model.safetensors", **self.arrays)
        about = {"n_items": self.n_items, **self.config.model_dump(mode="json")}
        write_json(directory / "config.json", about)

    def score_all(self, queries: Histories) -> np.ndarray:
        """Scores of every item for every query, f32 (L, I); all 0 for an empty history."""
        scores_LI = np.empty((queries.n_users, self.n_items), np.float32)
        for row in range(queries.n_users):
            scores_LI[row] = self.arrays["items.weight"] @ self._state(queries.of(row))
        return scores_LI

    def score_some(self, history_T: np.ndarray, items_K: np.ndarray) -> np.ndarray:
        """Scores of some items for one history, f32 (K,)."""
        return self.arrays["items.weight"][items_K] @ self._state(history_T)

    def _state(self, items_T: np.ndarray) -> np.ndarray:
        """The hidden state of the newest item, 0 without one."""
        arrays, items_T = self.arrays, items_T[-self.config.max_len :]
        if not len(items_T):
            return np.zeros(self.config.dim, np.float32)
        x_TC = arrays["items.weight"][items_T] + arrays["positions.weight"][: len(items_T)]
        x_TC = self._norm("norm_in", x_TC)
        for block in range(self.config.layers):
            last = block == self.config.layers - 1
            x_TC = self._block(f"blocks.{block}", x_TC, 1 if last else len(x_TC))
        return self._norm("norm_out", x_TC[-1])

    def _block(self, name: str, x_TC: np.ndarray, rows: int) -> np.ndarray:
        """The states of the last `rows` items; behind the last block one is enough."""
        length, width = x_TC.shape
        heads = self.config.heads
        qkv_TC = self._linear(f"{name}.qkv", self._norm(f"{name}.norm_attention", x_TC))
        q_HTE, k_HTE, v_HTE = qkv_TC.reshape(length, 3, heads, -1).transpose(1, 2, 0, 3)
        score_HRT = q_HTE[:, -rows:] @ k_HTE.swapaxes(1, 2) * np.float32((width // heads) ** -0.5)
        if rows > 1:  # the newest sees all
            score_HRT += self._later[length - rows : length, :length]
        p_HRT = np.exp(score_HRT - score_HRT.max(-1, keepdims=True))
        mixed_HRE = p_HRT @ v_HTE / p_HRT.sum(-1, keepdims=True)
        mixed_RC = mixed_HRE.transpose(1, 0, 2).reshape(rows, width)
        x_RC = x_TC[-rows:] + self._linear(f"{name}.out", mixed_RC)
        hidden = gelu(self._linear(f"{name}.up", self._norm(f"{name}.norm_ffn", x_RC)))
        return x_RC + self._linear(f"{name}.down", hidden)

    @cached_property
    def _later(self) -> np.ndarray:
        """−inf where an item stands behind the one that looks."""
        return np.triu(np.full((self.config.max_len,) * 2, -np.inf, np.float32), 1)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - np.add.reduce(x, -1, keepdims=True) / np.float32(x.shape[-1])
        square = np.add.reduce(centred * centred, -1, keepdims=True) / np.float32(x.shape[-1])
        spread = np.sqrt(square + np.float32(EPS))
        return centred / spread * self.arrays[f"{name}.weight"] + self.arrays[f"{name}.bias"]


def shapes_of(n_items: int, config: RetrieverConfig) -> dict[str, tuple[int, ...]]:
    """Every array of a model of these sizes."""
    width = config.dim
    shapes: dict[str, tuple[int, ...]] = {
        "items.weight": (n_items, width),
        "positions.weight": (config.max_len, width),
    }
    linear = {"qkv": (3, 1), "out": (1, 1), "up": (4, 1), "down": (1, 4)}
    norms = ["norm_in", "norm_out"]
    for block in range(config.layers):
        name = f"blocks.{block}"
        norms += [f"{name}.norm_attention", f"{name}.norm_ffn"]
        for part, (out, inner) in linear.items():
            shapes[f"{name}.{part}.weight"] = (out * width, inner * width)
            shapes[f"{name}.{part}.bias"] = (out * width,)
    return shapes | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
