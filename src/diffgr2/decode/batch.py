"""The batching engine: writers of any decoder share forwards, each at its own pace.

Contract: `decode` returns one Trajectory per request, in order, whatever the batch size; a batch
gives what single decoding gives. `Batch` is the same machine with joining and leaving exposed:
`add` prefills new writers, `step` runs one forward for all, finished ones leave. Randomness comes
from each writer's own stream, so it does not depend on who shares the batch. Not here: what a
writer does with its distributions (`ar`, `block`, `verify`), queues and deadlines (`serve`).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffgr2.decode.ar import ArWriter
from diffgr2.decode.block import BlockWriter
from diffgr2.decode.draw import prepare
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.verify import VerifyWriter
from diffgr2.decode.writer import Span, View, Writer
from diffgr2.errors import DecodeError
from diffgr2.model.forward import KVCache, LeanQwen3
from diffgr2.types import Trajectory

WRITERS = {"ar": ArWriter, "block": BlockWriter, "verify": VerifyWriter}


def make_writer(key: int, request: DecodeRequest, settings: DecodeSettings) -> Writer:
    """A writer of the decoder that the settings name."""
    if not request.prompt:
        raise DecodeError("prompt is empty")
    return WRITERS[settings.decoder](key, request, settings)


class Batch:
    """Writers under way and their cache, one row each."""

    def __init__(self, model: LeanQwen3) -> None:
        self.model = model
        self.writers: list[Writer] = []
        self._cache: KVCache | None = None

    @torch.inference_mode()
    def add(self, writers: Sequence[Writer]) -> None:
        """Prefill new writers and let them join."""
        if not writers:
            return
        slots = max(w.slots for w in writers) + 1  # the last slot takes what padding writes
        room = self.model.max_positions
        if slots > room:
            raise DecodeError(f"prompt and output need {slots} positions, the model has {room}")
        cache = KVCache(self.model, len(writers), slots)
        if max(w.prefill for w in writers) > 0:
            windows = [Span(w.prompt[: w.prefill], 0, w.prefill_hi(), 0) for w in writers]
            self.model.fill(*_inputs(windows, cache, self.model))
        if self._cache is None or not self.writers:
            self._cache = cache
        else:
            self._cache.append_rows(cache)
        self.writers.extend(writers)

    @torch.inference_mode()
    def step(self) -> list[Writer]:
        """One forward for all writers; returns those that finished, which have left."""
        if not self.writers:
            return []
        assert self._cache is not None
        windows = [writer.plan() for writer in self.writers]
        skipped = min(window.logits_from for window in windows)
        logits_BTV = self.model(*_inputs(windows, self._cache, self.model), logits_from=skipped)
        logp_BTV, top_BT, top_logp_BT = prepare(logits_BTV, self.writers[0].settings.mask_id)
        for b, (writer, window) in enumerate(zip(self.writers, windows, strict=True)):
            part = slice(window.logits_from - skipped, len(window.ids) - skipped)
            writer.update(View(logp_BTV[b, part], top_BT[b, part], top_logp_BT[b, part]))
        done = [writer for writer in self.writers if writer.done]
        if done:
            self.keep([not writer.done for writer in self.writers])
        return done

    def keep(self, mask: Sequence[bool]) -> None:
        """Let the others leave (finished or cancelled)."""
        index = [i for i, kept in enumerate(mask) if kept]
        self.writers = [self.writers[i] for i in index]
        if self._cache is not None and index:
            self._cache.select(torch.tensor(index, device=self.model.device))
        elif not index:
            self._cache = None


def _inputs(
    windows: list[Span], cache: KVCache, model: LeanQwen3
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


def decode(
    model: LeanQwen3,
    requests: Sequence[DecodeRequest],
    settings: DecodeSettings,
    *,
    batch: int = 64,
    on_done: Callable[[int], None] | None = None,
) -> list[Trajectory]:
    """Decode all requests; writers that finish make room for waiting ones."""
    results: list[Trajectory | None] = [None] * len(requests)
    waiting = list(range(len(requests) - 1, -1, -1))
    running = Batch(model)
    while waiting or running.writers:
        # Prefill in groups: waiting for a quarter of the batch to leave keeps forwards wide.
        free = batch - len(running.writers)
        if waiting and free >= max(1, batch // 4):
            joining = [waiting.pop() for _ in range(min(free, len(waiting)))]
            running.add([make_writer(i, requests[i], settings) for i in joining])
        for writer in running.step():
            results[writer.key] = writer.result()
            if on_done is not None:
                on_done(writer.key)
    return [result for result in results if result is not None]
