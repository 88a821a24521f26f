"""The batching engine: writers of any decoder share forwards, each at its own pace.

Contract: `decode` returns one Trajectory per request, in order, whatever the batch size; a batch
gives what single decoding gives. `Batch` is the same machine with joining and leaving exposed:
`add` prefills new writers, `step` runs one forward for all, finished ones leave. Randomness comes
from each writer's own stream, so it does not depend on who shares the batch. Not here: what a
writer does with its distributions (`ar`, `block`, `verify`), queues and deadlines (`serve`).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

import numpy as np

from diffgr2.decode.ar import ArWriter
from diffgr2.decode.block import BlockWriter
from diffgr2.decode.choice import Choices, among
from diffgr2.decode.grammar import row_of_places
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.verify import VerifyWriter
from diffgr2.decode.writer import Writer
from diffgr2.errors import DecodeError
from diffgr2.model.backend import Backend, Session, Span, View
from diffgr2.types import Trajectory

RIDE = 1 << 24
"""Scores of attention up to which prompts ride with the first forward; more take pieces."""

ALIKE = 12
"""Tokens at the beginning that prompts must share for their common part to be computed once."""

FULL = 8
"""Requests that a lane has at least."""

WRITERS = {"ar": ArWriter, "block": BlockWriter, "verify": VerifyWriter}


def make_writer(key: int, request: DecodeRequest, settings: DecodeSettings) -> Writer:
    """A writer of the decoder that the settings name."""
    if not request.prompt:
        raise DecodeError("prompt is empty")
    return WRITERS[settings.decoder](key, request, settings)


class Batch:
    """Writers under way and their session, one row each."""

    def __init__(self, model: Backend) -> None:
        self.model = model
        self.writers: list[Writer] = []
        self._session: Session | None = None
        self._unread: list[int] = []  # of each writer's prompt, how much is in the cache; [] = all

    def add(self, writers: Sequence[Writer]) -> None:
        """Let new writers join; none may be done already.

        Where nobody waits, short prompts ride with the first forward; else they are prefilled.
        """
        if not writers:
            return
        self._begin()
        if self._session is None:
            self._session = self.model.session(writers[0].settings.mask_id)
        longest = max(len(w.prompt) for w in writers)
        known = [writer.prefill for writer in writers]
        if not self.writers and len(writers) * longest**2 <= RIDE:
            known = self._unread = _shared(writers)
        prompts = [_prompt(*pair) for pair in zip(writers, known, strict=True)]
        self._session.add(prompts, max(w.slots for w in writers))
        self.writers.extend(writers)

    def _begin(self) -> None:
        """Prefill prompts that were to ride with a forward, because others join before it."""
        if self._unread and self._session is not None:
            pairs = zip(self.writers, self._unread, strict=True)
            self._session.forward([_prompt(w, w.prefill, known) for w, known in pairs])
        self._unread = []

    def step(self) -> list[Writer]:
        """One forward for all writers; returns those that finished, which have left."""
        if not self.writers:
            return []
        assert self._session is not None
        spans = [writer.plan() for writer in self.writers]
        if self._unread:
            parts = zip(self.writers, self._unread, spans, strict=True)
            spans = [_after(_prompt(w, w.prefill, known), span) for w, known, span in parts]
            self._unread = []
        views = self._session.forward(spans)
        _tell(self.writers, views)
        for writer, view in zip(self.writers, views, strict=True):
            writer.update(view)
        done = [writer for writer in self.writers if writer.done]
        if done:
            self.keep([not writer.done for writer in self.writers])
        return done

    def keep(self, mask: Sequence[bool]) -> None:
        """Let the others leave (finished or cancelled)."""
        index = [i for i, kept in enumerate(mask) if kept]
        self.writers = [self.writers[i] for i in index]
        self._unread = [self._unread[i] for i in index] if self._unread else []
        if self._session is not None:
            self._session.keep(index)
        if not index:
            self._session = None


def _tell(writers: Sequence[Writer], views: Sequence[View]) -> None:
    """Answer what writers will ask first, all at once: NumPy's calls cost more than its work."""
    told: list[tuple[Writer, View, np.ndarray, slice]] = []
    sets: list[list[int]] = []
    scales: list[np.ndarray] = []
    for writer, view in zip(writers, views, strict=True):
        asked = writer.question() if len(writers) > 1 else None
        options = writer.guide.sets(asked[1]) if asked and writer.guide is not None else None
        if asked is not None and options is not None:
            told.append((writer, view, asked[0], slice(len(sets), len(sets) + len(options[0]))))
            sets += options[0]
            scales.append(options[1])
    if not sets:
        return
    tokens_NA = row_of_places(sets)
    parts = [view.among(row_N, tokens_NA[at]) for _, view, row_N, at in told]
    found = among(np.concatenate(parts), tokens_NA, np.concatenate(scales))
    for writer, _, _, at in told:
        columns = (found.token_N, found.logp_N, found.sure_N, found.level_N)
        writer.told = Choices(*(column[at] for column in columns))


def _prompt(writer: Writer, end: int, start: int = 0) -> Span:
    """A piece of what must be in the cache before a writer's first plan."""
    ids, hi = writer.prompt[start:end], writer.prefill_hi()[start:end]
    return Span(ids, start, hi, max(len(ids) - 1, 0))


def _after(prompt: Span, span: Span) -> Span:
    """A span with what comes before it."""
    known = span.start - prompt.start
    ids, hi = prompt.ids[:known] + span.ids, prompt.hi[:known] + span.hi
    return Span(ids, prompt.start, hi, known + span.logits_from)


def _shared(writers: Sequence[Writer]) -> list[int]:
    """How many tokens of each prompt are another's first ones, too, and see nothing behind them.

    Samples of one prompt have all in common, views and windows of one request the history.
    """
    known = [0] * len(writers)
    families: dict[tuple[int, ...], list[int]] = {}
    for at, writer in enumerate(writers):
        families.setdefault(tuple(writer.prompt[:ALIKE]), []).append(at)
    for family in families.values():
        if len(family) > 1:
            first, last = (pick([writers[at].prompt for at in family]) for pick in (min, max))
            alike = [a == b for a, b in zip(first, last, strict=False)]  # in the others, too
            common = alike.index(False) if False in alike else len(alike)
            for at in family:  # the last token may stand in the first span, too
                hi, known[at] = writers[at].prefill_hi(), min(common, len(writers[at].prompt) - 1)
                while known[at] and hi[known[at] - 1] > known[at]:
                    known[at] -= 1
    return known


def decode(
    model: Backend,
    requests: Sequence[DecodeRequest],
    settings: DecodeSettings,
    *,
    batch: int = 64,
    on_done: Callable[[int], None] | None = None,
) -> list[Trajectory]:
    """Decode all requests; writers that finish make room for waiting ones.

    A model's lanes run side by side, each with its share of the requests and of the batch, so that
    who shares a forward with whom does not depend on the clock.
    """
    lanes = max(1, min(model.lanes, len(requests) // FULL))
    shares = [list(range(lane, len(requests), lanes)) for lane in range(lanes)]
    done, turn, stopped = {}, Lock(), Event()

    def run(share: list[int]) -> None:
        for writer in _decoded(model, requests, share, settings, -(-batch // lanes)):
            with turn:
                if stopped.is_set():
                    return
                done[writer.key] = writer.result()
                if on_done is not None:
                    on_done(writer.key)

    if lanes == 1:
        run(shares[0])
    else:
        with ThreadPoolExecutor(lanes, "lane") as pool:
            try:
                list(pool.map(run, shares))
            except BaseException:
                stopped.set()  # the others need not end what nobody will read
                raise
    return [done[key] for key in range(len(requests))]


def _decoded(
    model: Backend,
    requests: Sequence[DecodeRequest],
    share: Sequence[int],
    settings: DecodeSettings,
    batch: int,
) -> Iterator[Writer]:
    """The writers of these requests, as they finish."""
    waiting, running = list(reversed(share)), Batch(model)
    while waiting or running.writers:
        # Prefill in groups: waiting for a quarter of the batch to leave keeps forwards wide.
        free = batch - len(running.writers)
        if waiting and free >= max(1, batch // 4):
            joining = [waiting.pop() for _ in range(min(free, len(waiting)))]
            writers = [make_writer(i, requests[i], settings) for i in joining]
            yield from (writer for writer in writers if writer.done)  # nothing was to decide
            running.add([writer for writer in writers if not writer.done])
        yield from running.step()
