"""The torch backend's session on accelerators: forwards of few shapes, replayed as CUDA graphs.

Contract: see `backend`; what it answers is what `session.TorchSession` answers, up to rounding. A
small model's forward is some fifty kernels that take less time than starting them; a graph starts
them all at once. It wants the same memory and the same shapes every time, so a session borrows a
`Slab` (a cache that stays where it is, with its graphs) from its model, pads its inputs to a shape
of `SIZES`, and says in tensors what is written and seen where. A shape is recorded when it comes
for the third time: what is used once is not worth recording. Where there are no CUDA graphs (tests
on CPUs) the same forwards run as they are. Not here: the forward itself (`forward`).

Letters: as in `forward`; P places of rows in a slab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffgr2.errors import DecodeError
from diffgr2.model.backend import BROKEN, Span, View, check_room
from diffgr2.model.forward import KVCache, LeanModel
from diffgr2.model.pools import Pool
from diffgr2.model.session import inputs, views, without

SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""What rows and tokens of a forward are padded to; above, multiples of the last."""

COARSE = 16
"""Distributions are computed from a multiple of so many tokens on."""

SLOTS = 64
"""Caches, and how much of them a forward looks at, are multiples of so many slots."""

OFTEN = 3
"""A shape that comes so often is recorded."""

WIDE = 4096
"""Tokens of a forward from which on its kernels outlast their start: it runs as it is, unpadded."""

IDS, SLOT, HI = range(3)
"""What stands in a forward's numbers: tokens, where they are written, how far they see."""


def padded(n: int) -> int:
    """The least of SIZES that holds n."""
    return next((size for size in SIZES if size >= n), -(-n // SIZES[-1]) * SIZES[-1])


def _at(placed: tuple[int, Span]) -> int:
    return placed[0]


@dataclass(frozen=True)
class _Recorded:
    """A graph, what it writes, and the memory that lives as long as it."""

    graph: torch.cuda.CUDAGraph
    logp_BTV: Tensor
    pool: Pool


@dataclass
class _Shape:
    """A forward of one shape: its numbers, and how it is run again."""

    numbers: Tensor  # int64 [3, B, T], on the device
    came: int = 0
    graph: _Recorded | None = None


class Slab(KVCache):
    """A cache that stays where it is, and the forwards over it."""

    def __init__(self, model: LeanModel, rows: int, slots: int) -> None:
        empty = KVCache.empty(model, rows, slots)
        super().__init__(empty.keys, empty.values)
        self.shapes: dict[tuple[int, ...], _Shape] = {}

    @torch.inference_mode()
    def clear(self) -> None:
        """Zeros everywhere: what is unseen is multiplied by zero, which NaN would survive."""
        for array in (*self.keys, *self.values):
            array.zero_()

    def part(self, begin: int, end: int) -> KVCache:
        """Some of its rows as a cache; the same memory."""
        rows = slice(begin, end)
        return KVCache([key[rows] for key in self.keys], [value[rows] for value in self.values])

    @torch.inference_mode()
    def move(self, target: int, source: int, other: Slab | None = None) -> None:
        """A row becomes as another one is, of this slab or of a smaller one."""
        origin = self if other is None else other
        for own, given in ((self.keys, origin.keys), (self.values, origin.values)):
            for array, old in zip(own, given, strict=True):
                array[target, :, : old.shape[2]] = old[source]


def borrowed(model: LeanModel, rows: int, slots: int) -> Slab:
    """The model's smallest spare slab that has the room, or a new one."""
    fit = [slab for slab in model.spare if slab.rows >= rows and slab.slots >= slots]
    if not fit:
        return Slab(model, padded(rows), min(-(-slots // SLOTS) * SLOTS, model.max_positions))
    slab = min(fit, key=lambda slab: slab.rows * slab.slots)
    model.spare.remove(slab)
    slab.clear()
    return slab


class StaticSession:
    """See `backend.Session`."""

    def __init__(self, model: LeanModel, mask_id: int) -> None:
        self.model, self.mask_id = model, mask_id
        self._slab: Slab | None = None
        self._place: list[int] = []  # of each row, where it lies

    def __del__(self) -> None:
        self.keep(())

    @torch.inference_mode()
    def add(self, prompts: Sequence[Span], slots: int) -> None:
        slots += 1  # the last slot takes what padding writes
        check_room(slots, self.model.max_positions)
        kept, rows = len(self._place), len(self._place) + len(prompts)
        slab = self._with_room(rows, slots)
        if max(len(span.ids) for span in prompts) > 0:
            self.model.fill(*inputs(prompts, slab.part(kept, rows), self.model))
        self._place += range(kept, rows)

    def _with_room(self, rows: int, slots: int) -> Slab:
        old = self._slab
        if old is not None and old.rows >= rows and old.slots >= slots:
            return old
        slots = slots if old is None else max(slots, old.slots)
        slab = self._slab = borrowed(self.model, rows, slots)
        if old is not None:
            for place in self._place:
                slab.move(place, place, old)
            self.model.spare.append(old)
        return slab

    @torch.inference_mode()
    def forward(self, spans: Sequence[Span]) -> list[View]:
        slab = self._slab
        assert slab is not None
        first = min(span.logits_from for span in spans)
        if len(spans) * max(len(span.ids) for span in spans) >= WIDE:
            in_place = [span for _, span in sorted(zip(self._place, spans, strict=True), key=_at)]
            given = inputs(in_place, slab.part(0, len(spans)), self.model)
            logp_BTV = without(self.model(*given, logits_from=first), self.mask_id)
        else:
            first = first // COARSE * COARSE
            logp_BTV = self._run(slab, *self._numbers(spans, slab), first)
        if bool(torch.isnan(logp_BTV[: len(spans), :, 0]).any()):
            self._slab, self._place = None, []  # nobody shall meet what stands there
            raise DecodeError(BROKEN)
        return views(logp_BTV, spans, [(place, first) for place in self._place])

    def _numbers(self, spans: Sequence[Span], slab: Slab) -> tuple[np.ndarray, int]:
        """What the forward is told, [3, B, T], padded; and how many slots it looks at."""
        rows = min(padded(len(spans)), slab.rows)
        length = padded(max(len(span.ids) for span in spans))
        numbers = np.zeros((3, rows, length), dtype=np.int64)
        numbers[SLOT] = slab.slots - 1  # padding writes where nobody looks
        numbers[HI] = 1  # and sees slot 0
        for b, span in zip(self._place, spans, strict=True):
            n = len(span.ids)
            numbers[IDS, b, :n] = span.ids
            numbers[SLOT, b, :n] = range(span.start, span.start + n)
            numbers[HI, b, :n] = span.hi
        return numbers, min(-(-int(numbers[HI].max()) // SLOTS) * SLOTS, slab.slots)

    def _run(self, slab: Slab, numbers: np.ndarray, seen: int, first: int) -> Tensor:
        """Log-probabilities from `first` on; a recorded shape's last until its next forward."""
        masked = self.model.gate_id is not None and bool((numbers[IDS] == self.model.gate_id).any())
        key = (self.mask_id, *numbers.shape[1:], seen, first, masked)
        given = torch.from_numpy(numbers)
        if key not in slab.shapes:
            slab.shapes[key] = _Shape(torch.empty_like(given, device=self.model.device))
        shape = slab.shapes[key]
        shape.numbers.copy_(given)
        shape.came += 1
        if shape.graph is None and (shape.came < OFTEN or self.model.device.type != "cuda"):
            return self._answer(slab, shape.numbers, seen, first, masked)
        if shape.graph is None:
            torch.cuda.synchronize()
            graph, pool = torch.cuda.CUDAGraph(), self.model.pools.get()
            with torch.cuda.graph(graph, pool=pool.handle):
                logp_BTV = self._answer(slab, shape.numbers, seen, first, masked)
            shape.graph = _Recorded(graph, logp_BTV, pool)
        shape.graph.graph.replay()
        return shape.graph.logp_BTV

    def _answer(self, slab: Slab, numbers: Tensor, seen: int, first: int, masked: bool) -> Tensor:
        rows = numbers.shape[1]
        mask_BTC = self.model.positions[:seen] < numbers[HI][..., None]
        given = (numbers[SLOT], slab.part(0, rows), numbers[SLOT], mask_BTC, seen)
        how = {"logits_from": first, "masked": masked}
        return without(self.model(numbers[IDS], *given, **how), self.mask_id)

    def keep(self, rows: Sequence[int]) -> None:
        self._place = [self._place[row] for row in rows]
        if self._slab is None:
            return
        if not rows:
            self.model.spare.append(self._slab)
            self._slab = None
            return
        free = sorted(set(range(len(rows))) - set(self._place))
        for row, place in enumerate(self._place):
            if place >= len(rows):
                self._place[row] = free.pop()
                self._slab.move(self._place[row], place)
