"""The ONNX Runtime backend: CPUs' way to the model, in NumPy and a compiled graph.

Contract: see `backend`. `OrtBackend` holds the graphs of `graph` and compiles each when it is first
needed: one for single rows, one for batches. A row's keys and values lie in slots, slot-major over
the batch, so that the cache enters a forward without a copy and only new entries are written back.
A batch gives what single rows give, up to rounding. Not here: making graphs (`graph`), and what is
done with the answers (`decode`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnxruntime as ort

from diffgr2.errors import CheckpointError, DecodeError, first_line
from diffgr2.model.backend import BROKEN, Session, Span, View, check_room
from diffgr2.model.view import NumpyView

WIDE = 24
"""New tokens of a row from which on rows are computed one by one."""

PIECE = 512
"""Tokens of a prompt that one forward takes."""

BFLOAT16 = 16
"""ONNX's number of that type, whose bits come as uint16."""


@dataclass(frozen=True)
class Facts:
    """What a session must know of a model."""

    layers: int
    kv_width: int  # of one token's keys, all heads
    vocab: int
    max_positions: int


class OrtBackend:
    """See the module's docstring; `source(single)` is a graph, `weights` what it does not hold."""

    def __init__(
        self,
        facts: Facts,
        source: Callable[[bool], bytes],
        threads: int,
        weights: Mapping[str, np.ndarray] | None = None,
        name: str = "onnx",
    ) -> None:
        self.name = name
        self.facts, self.threads = facts, threads
        self._source, self._weights = source, weights or {}
        self._compiled: dict[bool, ort.InferenceSession] = {}
        self.positions = np.arange(facts.max_positions, dtype=np.int64)
        self._seen = np.zeros(facts.max_positions, dtype=np.float32)

    @property
    def max_positions(self) -> int:
        return self.facts.max_positions

    def session(self, mask_id: int) -> Session:
        return OrtSession(self, mask_id)

    def compiled(self, single: bool) -> ort.InferenceSession:
        """The runtime's form of a graph."""
        if single not in self._compiled:
            self._compiled[single] = _compile(self._source(single), self.threads, self._weights)
        return self._compiled[single]

    def answers(self, single: bool, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """A graph's outputs."""
        return cast(list[np.ndarray], self.compiled(single).run(None, feed))

    def everything(self, length: int) -> np.ndarray:
        """The bias [1, 1, 1, length] of a token that sees all."""
        return self._seen[:length].reshape(1, 1, 1, length)


def _compile(graph: bytes, threads: int, weights: Mapping[str, np.ndarray]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what is wrong is raised
    try:
        if weights:
            values = [_value(array) for array in weights.values()]
            options.add_external_initializers(list(weights), values)
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"the graph cannot be compiled ({first_line(error)})") from None


def _value(array: np.ndarray) -> ort.OrtValue:
    if array.dtype == np.uint16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


class OrtSession:
    """See `backend.Session`."""

    def __init__(self, backend: OrtBackend, mask_id: int) -> None:
        self._backend = backend
        facts = backend.facts
        self._ban_V = np.zeros(facts.vocab, dtype=np.float32)
        self._ban_V[mask_id] = -np.inf
        self._past = [
            f"past_{kind}_{number}" for number in range(facts.layers) for kind in ("key", "value")
        ]
        self._cache: list[np.ndarray] = []  # per name [slots, rows, width]
        self._rows: list[list[np.ndarray]] = []  # the same by row, seen as [1, slots, width]

    def add(self, prompts: Sequence[Span], slots: int) -> None:
        check_room(slots, self._backend.max_positions)
        old = self._cache
        size = (slots, len(prompts), self._backend.facts.kv_width)
        # Zeros: what is unseen is multiplied by a weight of zero, which NaN would survive.
        self._cache = [np.zeros(size, dtype=np.float32) for _ in self._past]
        self._settle()
        for piece in _pieces(prompts):
            self._run(piece)
        if old:
            height = max(len(old[0]), slots)
            pairs = zip(old, self._cache, strict=True)
            self._cache = [np.concatenate([_tall(a, height) for a in pair], 1) for pair in pairs]
            self._settle()

    def _settle(self) -> None:
        """Look at the cache anew."""
        rows = self._cache[0].shape[1]
        self._rows = [[a[:, b : b + 1].swapaxes(0, 1) for a in self._cache] for b in range(rows)]

    def forward(self, spans: Sequence[Span]) -> list[View]:
        parts = self._run(spans)
        # A softmax over NaN, over +inf, or over nothing finite is NaN everywhere.
        if any(np.isnan(logp_RV[:, 0]).any() for logp_RV in parts):
            raise DecodeError(BROKEN)
        return [NumpyView(logp_RV) for logp_RV in parts]

    def keep(self, rows: Sequence[int]) -> None:
        if not rows:
            self._cache, self._rows = [], []
        elif self._cache and len(rows) < self._cache[0].shape[1]:
            self._cache = [array[:, rows] for array in self._cache]
            self._settle()

    def _run(self, spans: Sequence[Span]) -> list[np.ndarray]:
        """Each row's log-probabilities from `logits_from` on; its new keys and values are kept.

        Wide rows go one by one: a row fills the processor, several do not fit its cache.
        """
        if len(spans) > 1 and max(len(span.ids) for span in spans) < WIDE:
            return self._many(spans)
        return [self._one(row, span) for row, span in enumerate(spans)]

    def _one(self, row: int, span: Span) -> np.ndarray:
        backend, start, length = self._backend, span.start, len(span.ids)
        if not length:
            return np.empty((0, backend.facts.vocab), dtype=np.float32)
        seen = start + length
        if min(span.hi) == seen:
            bias = backend.everything(seen)
            if length > 1:
                bias = np.broadcast_to(bias, (1, 1, length, seen))
        else:
            hi_T = np.array(span.hi)
            bias = _bias(backend.positions[:seen] < hi_T[:, None])[None, None]
        feed = {
            "ids": np.array([span.ids], dtype=np.int64),
            "position": backend.positions[None, start:seen],
            "bias": bias,
            "first": np.array([span.logits_from], dtype=np.int64),
            "ban": self._ban_V,
        }
        for name, array in zip(self._past, self._rows[row], strict=True):
            feed[name] = np.ascontiguousarray(array[:, :start])  # of a single row no copy
        logp_1RV, *new = backend.answers(True, feed)
        for array, fresh in zip(self._rows[row], new, strict=True):
            array[:, start:seen] = fresh
        return logp_1RV[0]

    def _many(self, spans: Sequence[Span]) -> list[np.ndarray]:
        first = min(span.logits_from for span in spans)
        length = max(len(span.ids) for span in spans)
        start_B = np.array([span.start for span in spans])
        past = int(start_B.max())
        ids_BT = np.zeros((len(spans), length), dtype=np.int64)
        hi_BT = np.zeros((len(spans), length), dtype=np.int64)
        for b, span in enumerate(spans):
            ids_BT[b, : len(span.ids)] = span.ids
            hi_BT[b, : len(span.hi)] = span.hi
        place_BT = start_B[:, None] + self._backend.positions[:length]
        seen_BTA = np.empty((len(spans), length, past + length), dtype=bool)
        known_BT = np.minimum(hi_BT, start_B[:, None])
        np.less(self._backend.positions[:past], known_BT[..., None], out=seen_BTA[..., :past])
        np.less(place_BT[:, None], hi_BT[..., None], out=seen_BTA[..., past:])
        seen_BTA[..., past] |= hi_BT == 0  # padding sees something, nobody sees it
        there_BT = hi_BT > 0
        place_BT = np.minimum(place_BT, self._backend.max_positions - 1)
        feed = {
            "ids": np.ascontiguousarray(ids_BT.T),
            "position": np.ascontiguousarray(place_BT.T),
            "bias": _bias(seen_BTA)[:, None],
            "first": np.array([first], dtype=np.int64),
            "ban": self._ban_V,
        }
        feed |= {n: array[:past] for n, array in zip(self._past, self._cache, strict=True)}
        logp_RBV, *new = self._backend.answers(False, feed)
        if there_BT.all() and (start_B == past).all():  # in step, which needs no index
            for array, fresh in zip(self._cache, new, strict=True):
                array[past : past + length] = fresh
            return self._asked(logp_RBV, spans, first)
        row_N, time_N = np.nonzero(there_BT)
        slot_N = place_BT[row_N, time_N]
        for array, fresh in zip(self._cache, new, strict=True):
            array[slot_N, row_N] = fresh[time_N, row_N]
        return self._asked(logp_RBV, spans, first)

    @staticmethod
    def _asked(logp_RBV: np.ndarray, spans: Sequence[Span], first: int) -> list[np.ndarray]:
        return [
            logp_RBV[span.logits_from - first : len(span.ids) - first, b]
            for b, span in enumerate(spans)
        ]


def _pieces(prompts: Sequence[Span]) -> Iterator[Sequence[Span]]:
    """Prompts in pieces whose masks stay small; what sees ahead stays whole."""
    longest = max(len(span.ids) for span in prompts)
    causal = all(hi == at + 1 for span in prompts for at, hi in enumerate(span.hi))
    size = PIECE if causal else max(longest, 1)
    for at in range(0, longest, size):
        yield [
            Span(ids, min(at, len(s.ids)), s.hi[at : at + size], max(len(ids) - 1, 0))
            for s in prompts
            for ids in [s.ids[at : at + size]]
        ]


def _bias(seen: np.ndarray) -> np.ndarray:
    """What is added to attention's scores."""
    return np.where(seen, np.float32(0), np.float32(-np.inf))


def _tall(array: np.ndarray, slots: int) -> np.ndarray:
    """With so many slots."""
    return np.pad(array, ((0, slots - len(array)), (0, 0), (0, 0)))
