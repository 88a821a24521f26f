"""The batching engine: rows of any decoder share forwards, each at its own pace.

Contract: `decode` returns one Trajectory per request, in order, whatever the batch size; a batch
gives what single decoding gives. `Batch` is the same machine with joining and leaving exposed:
`add` prefills new rows, `step` runs one forward for all rows, finished rows leave. Randomness comes
from each row's own stream, so it does not depend on who shares the batch. Not here: what a row does
with its distributions (`ar`, `block`, `verify`), queues and deadlines (`serve`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffgr2.decode.ar import ArWriter
from diffgr2.decode.block import BlockWriter
from diffgr2.decode.draw import prepare
from diffgr2.decode.grammar import AnswerGrammar
from diffgr2.decode.settings import DecodeSettings
from diffgr2.decode.verify import VerifyWriter
from diffgr2.decode.writer import View, Window, Writer
from diffgr2.errors import DecodeError
from diffgr2.model.forward import KVCache, LeanQwen3
from diffgr2.streams import generator
from diffgr2.types import Trajectory

WRITERS = {"ar": ArWriter, "block": BlockWriter, "verify": VerifyWriter}


@dataclass(frozen=True)
class DecodeRequest:
    """One prompt; `stream` names its random stream (sampling only)."""

    prompt: list[int]
    grammar: AnswerGrammar | None = None
    stream: tuple[str | int, ...] = ("decode",)


def make_writer(key: int, request: DecodeRequest, settings: DecodeSettings) -> Writer:
    """A row of the decoder that the settings name."""
    if not request.prompt:
        raise DecodeError("prompt is empty")
    return WRITERS[settings.decoder](
        key, request.prompt, settings, generator(*request.stream), request.grammar
    )


class Batch:
    """Rows in flight and their cache."""

    def __init__(self, model: LeanQwen3) -> None:
        self.model = model
        self.rows: list[Writer] = []
        self._cache: KVCache | None = None

    @torch.inference_mode()
    def add(self, rows: Sequence[Writer]) -> None:
        """Prefill new rows and let them join."""
        if not rows:
            return
        slots = max(row.slots for row in rows) + 1  # the last slot takes what padding writes
        if slots > self.model.max_positions:
            raise DecodeError(
                f"prompt and output need {slots} positions, the model has "
                f"{self.model.max_positions}"
            )
        cache = KVCache(self.model, len(rows), slots)
        if max(row.prefill for row in rows) > 0:
            windows = [Window(r.prompt[: r.prefill], 0, r.prefill_hi(), 0) for r in rows]
            self.model.fill(*_inputs(windows, cache, self.model))
        if self._cache is None or not self.rows:
            self._cache = cache
        else:
            self._cache.append_rows(cache)
        self.rows.extend(rows)

    @torch.inference_mode()
    def step(self) -> list[Writer]:
        """One forward for all rows; returns those that finished, which have left."""
        if not self.rows:
            return []
        assert self._cache is not None
        windows = [row.plan() for row in self.rows]
        skipped = min(window.logits_from for window in windows)
        logits_BTV = self.model(*_inputs(windows, self._cache, self.model), logits_from=skipped)
        views = _views(logits_BTV, windows, skipped, self.rows[0].settings.mask_id)
        for row, view in zip(self.rows, views, strict=True):
            row.update(view)
        done = [row for row in self.rows if row.done]
        if done:
            self.keep([not row.done for row in self.rows])
        return done

    def keep(self, mask: Sequence[bool]) -> None:
        """Let the other rows leave (finished or cancelled)."""
        index = [i for i, kept in enumerate(mask) if kept]
        self.rows = [self.rows[i] for i in index]
        if self._cache is not None:
            if index:
                self._cache.select(torch.tensor(index, device=self.model.device))
            else:
                self._cache = None


def _inputs(
    windows: list[Window], cache: KVCache, model: LeanQwen3
) -> tuple[Tensor, Tensor, KVCache, int | Tensor, Tensor | None, int]:
    """Arguments of one forward; a single row takes no padding (the latency path)."""
    device = model.device
    if len(windows) == 1:
        window = windows[0]
        start, length, seen = window.start, len(window.ids), max(window.hi)
        mask_BTC = None
        if min(window.hi) != seen:
            hi_T = torch.tensor(window.hi, device=device)
            mask_BTC = (model.positions[:seen] < hi_T[:, None])[None]
        ids_BT = torch.tensor([window.ids], device=device)
        position_BT = model.positions[None, start : start + length]
        return ids_BT, position_BT, cache, start, mask_BTC, seen
    length = max(len(window.ids) for window in windows)
    start_B = np.array([window.start for window in windows])
    ids = np.zeros((len(windows), length), dtype=np.int64)
    hi = np.ones((len(windows), length), dtype=np.int64)  # padding sees slot 0, nobody sees it
    for b, window in enumerate(windows):
        ids[b, : len(window.ids)] = window.ids
        hi[b, : len(window.hi)] = window.hi
    # Padding writes behind its row's window, where nothing valid stands, or into the last slot.
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


def _views(logits_BTV: Tensor, windows: list[Window], skipped: int, mask_id: int) -> list[View]:
    """Each row's distributions from its own `logits_from` on."""
    logp_BTV, top, top_logp = prepare(logits_BTV, mask_id)
    views = []
    for b, window in enumerate(windows):
        part = slice(window.logits_from - skipped, len(window.ids) - skipped)
        views.append(View(logp_BTV[b, part], top[b, part], top_logp[b, part]))
    return views


def decode(
    model: LeanQwen3,
    requests: Sequence[DecodeRequest],
    settings: DecodeSettings,
    *,
    batch: int = 64,
    on_done: Callable[[int], None] | None = None,
) -> list[Trajectory]:
    """Decode all requests; rows that finish make room for waiting ones."""
    results: list[Trajectory | None] = [None] * len(requests)
    waiting = list(range(len(requests) - 1, -1, -1))
    running = Batch(model)
    while waiting or running.rows:
        # Prefill in groups: waiting for a quarter of the batch to leave keeps forwards wide.
        if waiting and len(running.rows) <= batch - max(1, batch // 4):
            joining = [waiting.pop() for _ in range(min(batch - len(running.rows), len(waiting)))]
            running.add([make_writer(i, requests[i], settings) for i in joining])
        for row in running.step():
            results[row.key] = row.result()
            if on_done is not None:
                on_done(row.key)
    return [result for result in results if result is not None]
