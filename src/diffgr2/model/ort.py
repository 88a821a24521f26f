"""The ONNX Runtime backend: CPUs' way to the model, in NumPy and a compiled graph.

Contract: see `backend`. `OrtBackend` holds the graphs of `graph` and compiles each when it is first
needed: one for single rows, one for batches. The cache enters either as it lies (`cache`), and only
new entries are written back. Rows that join with equal prompts have them computed once. A batch
gives what single rows give, up to rounding. Not here: making graphs (`graph`), and what is
done with the answers (`decode`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import cast

import numpy as np
import onnxruntime as ort

from diffgr2.errors import CheckpointError, DecodeError, first_line
from diffgr2.model.backend import BROKEN, Session, Span, View, check_room
from diffgr2.model.cache import KeyValues
from diffgr2.model.view import NumpyView

WIDE = 24
"""New tokens of a row from which on rows are computed one by one."""

SHORT = 8
"""New tokens whose masks are kept."""

PIECE = 512
"""Tokens of a prompt that one forward takes."""

SMALL = 16_000_000
"""Weights up to which threads within a forward cost more than they give."""

TINY = 250_000
"""Weights up to which Python does most of the work, one thread at a time: lanes bring nothing."""

BFLOAT16 = 16
"""ONNX's number of that type, whose bits come as uint16."""


@dataclass(frozen=True)
class Facts:
    """What a session must know of a model."""

    layers: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    weights: int  # numbers in its matrices


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
        small = facts.weights <= SMALL
        self.lanes = threads if small and facts.weights > TINY else 1
        self.threads = 1 if small else threads
        self.facts = facts
        self._source, self._weights = source, weights or {}
        self._compiled: dict[bool, ort.InferenceSession] = {}
        self._compiling = Lock()
        layers, kinds = range(facts.layers), ("key", "value")
        self._outputs = ["logp", *(f"new_{kind}_{n}" for n in layers for kind in kinds)]
        self.past = [f"past_{kind}_{n}" for n in layers for kind in kinds]
        self.positions = np.arange(facts.max_positions, dtype=np.int64)
        self._seen = np.zeros(facts.max_positions, dtype=np.float32)
        self._steps: dict[int, np.ndarray] = {}

    @property
    def max_positions(self) -> int:
        return self.facts.max_positions

    def session(self, mask_id: int) -> Session:
        return OrtSession(self, mask_id)

    def compiled(self, single: bool) -> ort.InferenceSession:
        """The runtime's form of a graph."""
        with self._compiling:
            if single not in self._compiled:
                self._compiled[single] = _compile(self._source(single), self.threads, self._weights)
            return self._compiled[single]

    def answers(self, single: bool, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """A graph's outputs."""
        return cast(list[np.ndarray], self.compiled(single).run(self._outputs, feed))

    def everything(self, length: int) -> np.ndarray:
        """The bias [1, 1, 1, length] of a token that sees all."""
        return self._seen[:length].reshape(1, 1, 1, length)

    def causal(self, start: int, length: int) -> np.ndarray:
        """The bias [1, 1, length, start + length] of a few tokens that see none of the next."""
        if length not in self._steps:
            steps_TA = np.zeros((1, 1, length, self.max_positions + length), dtype=np.float32)
            steps_TA[..., self.max_positions :] = np.triu(np.full((length, length), -np.inf), 1)
            self._steps[length] = steps_TA
        return self._steps[length][..., self.max_positions - start :]


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
        self._cache = KeyValues(facts.layers, facts.kv_heads, facts.head_dim)

    def add(self, prompts: Sequence[Span], slots: int) -> None:
        check_room(slots, self._backend.max_positions)
        cache = self._cache
        before = cache.rows
        cache.grow(len(prompts), slots)
        computed: dict[tuple[int, ...], int] = {}
        for row, prompt in enumerate(prompts, before):
            same = computed.setdefault((*prompt.ids, *prompt.hi), row)
            if same < row and prompt.ids:
                cache.copy(row, same)
                continue
            for piece in _pieces(prompt):
                self._one(row, piece)

    def forward(self, spans: Sequence[Span]) -> list[View]:
        parts = self._run(spans)
        # A softmax over NaN, over +inf, or over nothing finite is NaN everywhere.
        if any(np.isnan(logp_RV[:, 0]).any() for logp_RV in parts):
            raise DecodeError(BROKEN)
        return [NumpyView(logp_RV) for logp_RV in parts]

    def keep(self, rows: Sequence[int]) -> None:
        self._cache.keep(rows)

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
        elif length <= SHORT and span.hi == list(range(start + 1, seen + 1)):
            bias = backend.causal(start, length)
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
        feed |= zip(backend.past, self._cache.tokens(row, start), strict=True)
        logp_1RV, *new = backend.answers(True, feed)
        self._cache.put(row, start, new)
        return logp_1RV[0]

    def _many(self, spans: Sequence[Span]) -> list[np.ndarray]:
        backend, past = self._backend, self._cache.slots
        first = min(span.logits_from for span in spans)
        length = max(len(span.ids) for span in spans)
        ids_BT = np.zeros((len(spans), length), dtype=np.int64)
        hi_BT = np.zeros((len(spans), length), dtype=np.int64)
        start_B1 = np.empty((len(spans), 1), dtype=np.int64)
        at = self._cache.place
        for b, span in zip(at, spans, strict=True):
            ids_BT[b, : len(span.ids)] = span.ids
            hi_BT[b, : len(span.hi)] = span.hi
            start_B1[b] = span.start
        place_BT = start_B1 + backend.positions[:length]
        seen_BTA = np.empty((len(spans), length, past + length), dtype=bool)
        known_BT = np.minimum(hi_BT, start_B1)
        np.less(backend.positions[:past], known_BT[..., None], out=seen_BTA[..., :past])
        np.less(place_BT[:, None], hi_BT[..., None], out=seen_BTA[..., past:])
        seen_BTA[..., past] |= hi_BT == 0  # padding sees something, nobody sees it
        feed = {
            "ids": ids_BT,
            "position": np.minimum(place_BT, backend.max_positions - 1),
            "bias": _bias(seen_BTA)[:, None],
            "first": np.array([first], dtype=np.int64),
            "past": np.array([past], dtype=np.int64),
            "ban": self._ban_V,
        }
        feed |= zip(backend.past, self._cache.arrays, strict=True)
        logp_BRV, *new = backend.answers(False, feed)
        row_N, time_N = np.nonzero(hi_BT)
        fresh = [array[row_N, time_N] for array in new]
        self._cache.scatter(row_N, place_BT[row_N, time_N], fresh)
        return [
            logp_BRV[b, span.logits_from - first : len(span.ids) - first]
            for b, span in zip(at, spans, strict=True)
        ]


def _pieces(prompt: Span) -> Iterator[Span]:
    """A prompt in pieces whose masks stay small; what sees ahead stays whole."""
    length = len(prompt.ids)
    causal = all(hi == at + 1 for at, hi in enumerate(prompt.hi))
    size = PIECE if causal else max(length, 1)
    for at in range(0, length, size):
        ids = prompt.ids[at : at + size]
        yield Span(ids, prompt.start + at, prompt.hi[at : at + size], len(ids) - 1)


def _bias(seen: np.ndarray) -> np.ndarray:
    """What is added to attention's scores."""
    return np.where(seen, np.float32(0), np.float32(-np.inf))
