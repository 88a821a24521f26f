"""The torch backend's session: rows of any decoder share forwards over one cache.

Contract: see `backend`. A batch gives what single rows give, up to rounding. Not here: what is done
with the answers (`decode`), the forward itself (`forward`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffgr2.errors import DecodeError
from diffgr2.model.backend import BROKEN, NO_TOKEN, NOTHING_BANNED, Chosen, Span, View, check_room
from diffgr2.model.forward import KVCache, LeanModel
from diffgr2.model.view import NumpyView, drawn

FEW = 2**25
"""So many log-probabilities are fetched from a device as a whole: small vocabularies'."""


class TorchView:
    """See `backend.View`; what is large stays on the device."""

    def __init__(self, logp_TV: Tensor) -> None:
        self._logp_TV = logp_TV

    def __len__(self) -> int:
        return len(self._logp_TV)

    def among(self, row_N: np.ndarray, tokens_NA: np.ndarray) -> np.ndarray:
        tokens = torch.from_numpy(tokens_NA).to(self._logp_TV.device)
        logp_NA = self._logp_TV[self._index(row_N)[:, None], tokens].cpu().numpy()
        return np.where(tokens_NA == NO_TOKEN, -np.inf, logp_NA)

    def some(self, row: int, tokens: list[int]) -> list[float]:
        return self._logp_TV[row][tokens].tolist()

    def best(self, row_N: np.ndarray, banned: np.ndarray = NOTHING_BANNED) -> Chosen:
        logp_NV = self._logp_TV[self._index(row_N)]
        if len(banned):
            logp_NV[:, torch.from_numpy(banned).to(logp_NV.device)] = -torch.inf
        raw_N, token_N = logp_NV.max(-1)
        rest_N = torch.logsumexp(logp_NV, -1) if len(banned) else torch.zeros_like(raw_N)
        logp_N = (raw_N - rest_N).cpu().numpy()
        return token_N.cpu().numpy(), logp_N, raw_N.cpu().numpy()

    def drawn(
        self,
        row_N: np.ndarray,
        temperature: float,
        uniform_N: np.ndarray,
        banned: np.ndarray = NOTHING_BANNED,
    ) -> Chosen:
        return drawn(self.rows(row_N), temperature, uniform_N, banned)

    def rows(self, row_N: np.ndarray) -> np.ndarray:
        return self._logp_TV[self._index(row_N)].cpu().numpy()

    def _index(self, row_N: np.ndarray) -> Tensor:
        return torch.from_numpy(row_N).to(self._logp_TV.device)


class TorchSession:
    """See `backend.Session`."""

    def __init__(self, model: LeanModel, mask_id: int) -> None:
        self.model, self.mask_id = model, mask_id
        self._cache: KVCache | None = None

    @torch.inference_mode()
    def add(self, prompts: Sequence[Span], slots: int) -> None:
        slots += 1  # the last slot takes what padding writes
        check_room(slots, self.model.max_positions)
        cache = KVCache.empty(self.model, len(prompts), slots)
        if max(len(span.ids) for span in prompts) > 0:
            self.model.fill(*inputs(prompts, cache, self.model))
        if self._cache is None:
            self._cache = cache
        else:
            self._cache.append_rows(cache)

    @torch.inference_mode()
    def forward(self, spans: Sequence[Span]) -> list[View]:
        assert self._cache is not None
        skipped = min(span.logits_from for span in spans)
        logits_BTV = self.model(*inputs(spans, self._cache, self.model), logits_from=skipped)
        logp_BTV = without(logits_BTV, self.mask_id)
        # A softmax over NaN, over +inf, or over nothing finite is NaN everywhere.
        if bool(torch.isnan(logp_BTV[..., 0]).any()):
            raise DecodeError(BROKEN)
        return views(logp_BTV, spans, [(row, skipped) for row in range(len(spans))])

    def keep(self, rows: Sequence[int]) -> None:
        if not rows:
            self._cache = None
        elif self._cache is not None and len(rows) < self._cache.rows:
            self._cache.select(torch.tensor(rows, device=self.model.device))


def without(logits_BTV: Tensor, mask_id: int) -> Tensor:
    """Log-probabilities in fp32, with none for the mask token."""
    logits_BTV = logits_BTV.float()
    logits_BTV[..., mask_id] = -torch.inf
    return torch.log_softmax(logits_BTV, -1)


def views(logp_BTV: Tensor, spans: Sequence[Span], at: Sequence[tuple[int, int]]) -> list[View]:
    """What each span asked for; `at` says which row is its own, and which token comes first."""
    asked = [
        (row, slice(span.logits_from - first, len(span.ids) - first))
        for span, (row, first) in zip(spans, at, strict=True)
    ]
    if logp_BTV.device.type != "cpu" and logp_BTV.numel() > FEW:
        return [TorchView(logp_BTV[own].clone()) for own in asked]
    whole = logp_BTV.cpu().numpy()  # one copy for all rows, instead of one per question
    return [NumpyView(whole[own]) for own in asked]


def inputs(
    spans: Sequence[Span], cache: KVCache, model: LeanModel
) -> tuple[Tensor, Tensor, KVCache, int | Tensor, Tensor | None, int]:
    """Arguments of one forward; a single row takes no padding (the latency path)."""
    device = model.device
    if len(spans) == 1:
        span = spans[0]
        start, length, seen = span.start, len(span.ids), max(span.hi)
        mask_BTC = None
        if min(span.hi) != seen:
            hi_T = torch.tensor(span.hi, device=device)
            mask_BTC = (model.positions[:seen] < hi_T[:, None])[None]
        ids_BT = torch.tensor([span.ids], device=device)
        position_BT = model.positions[None, start : start + length]
        return ids_BT, position_BT, cache, start, mask_BTC, seen
    length = max(len(span.ids) for span in spans)
    start_B = np.array([span.start for span in spans])
    ids = np.zeros((len(spans), length), dtype=np.int64)
    hi = np.ones((len(spans), length), dtype=np.int64)  # padding sees slot 0, nobody sees it
    for b, span in enumerate(spans):
        ids[b, : len(span.ids)] = span.ids
        hi[b, : len(span.hi)] = span.hi
    # Padding writes behind its row's span, where nothing valid stands, or into the last slot.
    slot_BT = torch.from_numpy(
        np.minimum(start_B[:, None] + np.arange(length), cache.slots - 1)
    ).to(device)
    seen = int(hi.max())
    mask_BTC = None
    if not (hi == seen).all():
        mask_BTC = model.positions[:seen] < torch.from_numpy(hi).to(device)[..., None]
    aligned = bool((start_B == start_B[0]).all()) and start_B[0] + length < cache.slots
    slot = int(start_B[0]) if aligned else slot_BT
    return torch.from_numpy(ids).to(device), slot_BT, cache, slot, mask_BTC, seen
