"""SASRec: a small causal transformer over item ids, with the items' embeddings as its output.

Contract: `SasRec` makes hidden states of padded rows; `score_all` rates the catalogue for arbitrary
histories; `save` and `load` keep every bit. It computes where it was put (`here()`: on CUDA where
there is any). Not here: how it is trained (`fitting`), candidate lists (`lists`), other retrievers
(`kinds`), and its scores without torch (`attention`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffgr2.artifacts import load_arrays, read_json, write_json
from diffgr2.candidates.retrieval import padded_last
from diffgr2.config import RetrieverConfig
from diffgr2.streams import torch_generator
from diffgr2.types import Histories


class Noise(Protocol):
    """A source of random bytes, such as a NumPy generator."""

    def bytes(self, length: int, /) -> bytes: ...


def here() -> torch.device:
    """Where retrievers compute: a CUDA device where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dropped(x: Tensor, rate: float, source: Noise | None) -> Tensor:
    """Dropout from an explicit source, in steps of 1/256; none without a source."""
    level = min(round(rate * 256), 255)
    if source is None or level == 0:
        return x
    # Bytes are several times cheaper than one float or Bernoulli draw per element.
    noise = torch.frombuffer(bytearray(source.bytes(x.numel())), dtype=torch.uint8)
    keep = (noise >= level).view(x.shape).to(x.device)
    return x * keep * (256.0 / (256 - level))


class Block(nn.Module):
    """Pre-norm causal self-attention and a feed-forward layer."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm_attention, self.norm_ffn = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_BTC: Tensor, source: Noise | None) -> Tensor:
        rows, length, dim = x_BTC.shape
        qkv = self.qkv(self.norm_attention(x_BTC)).view(rows, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # Padding stands at the right, so the causal mask alone hides it from real positions.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = self.out(mixed.transpose(1, 2).reshape(rows, length, dim))
        x_BTC = x_BTC + dropped(mixed, self.rate, source)
        hidden = self.down(F.gelu(self.up(self.norm_ffn(x_BTC))))
        return x_BTC + dropped(hidden, self.rate, source)


class SasRec(nn.Module):
    """Item and position embeddings, blocks, a final norm; logits by the tied item embeddings."""

    def __init__(self, n_items: int, config: RetrieverConfig, seed: int = 0) -> None:
        super().__init__()
        self.n_items, self.config = n_items, config
        self.items = nn.Embedding(n_items, config.dim)
        self.positions = nn.Embedding(config.max_len, config.dim)
        self.norm_in, self.norm_out = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.dropout) for _ in range(config.layers)
        )
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 2:
                    source = torch_generator(seed, "sasrec", "init", name)
                    parameter.normal_(0.0, 0.02, generator=source)
                elif name.endswith("bias"):
                    parameter.zero_()

    def forward(
        self, items_BT: Tensor, source: Noise | None = None, table_RC: Tensor | None = None
    ) -> Tensor:
        """Hidden states of padded rows (padding at the right, any valid id).

        With a table, items are its rows.
        """
        position_T = torch.arange(items_BT.shape[1], device=items_BT.device)
        table_RC = self.items.weight if table_RC is None else table_RC
        x_BTC = self.norm_in(F.embedding(items_BT, table_RC) + self.positions(position_T))
        x_BTC = dropped(x_BTC, self.config.dropout, source)
        for block in self.blocks:
            x_BTC = block(x_BTC, source)
        return self.norm_out(x_BTC)

    @torch.no_grad()
    def score_all(self, queries: Histories) -> np.ndarray:
        """Logits of every item for every query, f32 (L, I); all 0 for an empty history."""
        return (self._newest(queries) @ self.items.weight.T).float().cpu().numpy()

    @torch.no_grad()
    def embedded(self, queries: Histories) -> np.ndarray:
        """What is multiplied with the items' vectors, f32 (L, C)."""
        return self._newest(queries).float().cpu().numpy()

    @property
    def vectors(self) -> np.ndarray:
        """The items' vectors, f32."""
        return self.items.weight.detach().cpu().numpy()

    def _newest(self, queries: Histories) -> Tensor:
        """The hidden state of each query's newest item, 0 without one."""
        length_L = np.minimum(queries.lengths_U, self.config.max_len)
        padded_LT = padded_last(queries, max(1, int(length_L.max(initial=1))), fill=0)
        device = self.items.weight.device
        state_LTC = self(torch.from_numpy(padded_LT).long().to(device))
        last_L = torch.from_numpy(np.maximum(length_L, 1) - 1).to(device)
        state_LC = state_LTC[torch.arange(len(last_L), device=device), last_L]
        return state_LC * torch.from_numpy(length_L > 0).to(device)[:, None]

    def save(self, directory: Path) -> None:
        """Write model.safetensors and config.json."""
        save_file(self.state_dict(), directory / "model.safetensors")
        about = {"n_items": self.n_items, **self.config.model_dump(mode="json")}
        write_json(directory / "config.json", about)

    @staticmethod
    def load(directory: Path) -> SasRec:
        """Read what `save` wrote."""
        about = read_json(directory / "config.json")
        model = SasRec(about.pop("n_items"), RetrieverConfig.model_validate(about))
        arrays = load_arrays(directory / "model.safetensors")
        model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
        return model.to(here()).eval()
