"""The engine: one thread, one batch per decoder, rows join and leave between steps.

Contract: `submit` hands over a `Job`; its events arrive on the job's own callback, from the engine
thread, and end with exactly one `Done` or `Failed`. A cancelled job leaves before the next step.
Rows run while both the row limit and the token budget hold, in the order in which they came. When
a forward fails, every row of that batch is decoded again alone, so only a request that fails by
itself fails; readiness tells whether the last forward was good. Not here: deadlines and slots,
which belong to whoever waits (`app`), and decoding itself (`decode.engine.Batch`).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from diffgr2.decode.batch import Batch, DecodeRequest, decode, make_writer
from diffgr2.decode.writer import Writer
from diffgr2.errors import DecodeError
from diffgr2.rerank.reranker import Reranker
from diffgr2.rerank.task import RankTask
from diffgr2.serve.limits import Limits
from diffgr2.serve.telemetry import Metrics

# oneDNN keeps a compiled kernel per shape, 1,024 of them, and a server's batches come in all
# shapes: memory would grow by 40 MB before it levels off. Read once, at the first wide forward.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


@dataclass(frozen=True)
class Committed:
    """Tokens that a step committed, as (position in the response, token)."""

    window: int
    forward: int  # forwards of this output so far
    compute_s: float  # seconds of forwards that this request took part in
    tokens: list[tuple[int, int]]


@dataclass(frozen=True)
class Done:
    """All windows are decoded; the task holds the ranking."""


@dataclass(frozen=True)
class Failed:
    """The request failed by itself."""

    error: BaseException


Event = Committed | Done | Failed


@dataclass(eq=False)
class Job:
    """One request in the engine."""

    task: RankTask
    listen: Callable[[Event], None]
    streams: bool = False
    cancelled: bool = False
    ended: bool = False
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    compute_s: float = 0.0
    window: int = 0
    wanted: DecodeRequest | None = None
    row: Writer | None = None
    alone: bool = False  # a batch it was in failed: it is decoded by itself now
    told: set[int] = field(default_factory=set)  # positions streamed already

    def tell(self, event: Event) -> None:
        """Hand an event over, at most one last one."""
        if self.ended or self.cancelled:
            return
        self.ended = isinstance(event, Done | Failed)
        self.listen(event)


class Engine:
    """See the module's docstring."""

    def __init__(self, reranker: Reranker, limits: Limits, metrics: Metrics) -> None:
        self.reranker, self.limits, self.metrics = reranker, limits, metrics
        self._inbox: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._batches: dict[str, Batch] = {}
        self._jobs: dict[int, Job] = {}  # row key -> job
        self._next_key = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._probes: list[threading.Event] = []
        self.good_at = 0.0  # monotonic time of the last good forward
        self.bad = False  # a forward failed and none was good since
        self.busy_since: float | None = None  # begin of the forward that runs now
        # Asked when the metrics are read, so that they never lag behind the last answer.
        metrics.running.set_function(lambda: len(self._jobs))
        metrics.waiting.set_function(lambda: len(self._waiting))
        metrics.slots_used.set_function(self._slots_used)
        self._thread = threading.Thread(target=self._run, name="diffgr2-engine", daemon=True)

    # --------------------------------------------------------------------------- outside

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step; open jobs fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def submit(self, job: Job) -> None:
        with self._wake:
            if self._stopping:
                job.tell(Failed(DecodeError("the engine has stopped")))
                return
            self._inbox.append(job)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Take effect before the next step."""
        with self._wake:
            job.cancelled = True
            self._wake.notify()

    def probe(self, timeout_s: float) -> bool:
        """A real forward on the engine thread; whether it was good."""
        done = threading.Event()
        with self._wake:
            if self._stopping or not self._thread.is_alive():
                return False
            self._probes.append(done)
            self._wake.notify()
        return done.wait(timeout_s) and not self.bad

    @property
    def stalled(self) -> bool:
        """Whether the forward that runs now takes unreasonably long."""
        since = self.busy_since
        return since is not None and time.monotonic() - since > self.limits.stall_s

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def _slots_used(self) -> int:
        rows = [job.row for job in list(self._jobs.values())]
        return sum(row.slots for row in rows if row is not None)

    # ---------------------------------------------------------------------------- thread

    def _run(self) -> None:
        while self._collect():
            try:
                self._serve_probes()
                self._leave()
                self._join()
                for decoder in list(self._batches):
                    self._step(decoder)
            except Exception as error:  # a bug here must not leave anybody waiting for ever
                self._fail_all(error)
        self._fail_all(DecodeError("the engine has stopped"))

    def _collect(self) -> bool:
        """Take new jobs; sleep while there is nothing to do. False when it is time to end."""
        with self._wake:
            while not (self._inbox or self._waiting or self._jobs or self._probes):
                if self._stopping:
                    return False
                self._wake.wait()
            self._waiting.extend(self._inbox)
            self._inbox.clear()
            return not self._stopping

    def _leave(self) -> None:
        """Cancelled jobs leave, waiting or decoding."""
        if any(job.cancelled for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
        for batch in self._batches.values():
            keep = [not self._jobs[row.key].cancelled for row in batch.rows]
            if not all(keep):
                for row, kept in zip(batch.rows, keep, strict=True):
                    if not kept:
                        del self._jobs[row.key]
                batch.keep(keep)

    def _join(self) -> None:
        """Waiting jobs join in order, as far as rows and tokens allow."""
        joining: dict[str, list[Writer]] = {}
        used = self._slots_used()
        while self._waiting:
            job = self._waiting[0]
            if any(other.alone for other in self._jobs.values()) or (job.alone and self._jobs):
                break
            if len(self._jobs) >= self.limits.running:
                break
            if job.row is None and not self._make_row(job):
                self._waiting.popleft()
                continue
            assert job.row is not None
            if self._jobs and used + job.row.slots > self.limits.tokens:
                break
            self._waiting.popleft()
            used += job.row.slots
            self._jobs[job.row.key] = job
            if job.started_at is None:
                job.started_at = time.monotonic()
                self.metrics.queue_seconds.observe(job.started_at - job.queued_at)
            joining.setdefault(job.task.settings.decoder, []).append(job.row)
        for decoder, rows in joining.items():
            batch = self._batches.setdefault(decoder, Batch(self.reranker.model))
            self._guarded(decoder, rows, lambda batch=batch, rows=rows: batch.add(rows))

    def _make_row(self, job: Job) -> bool:
        """The row of the job's current window; False if the job is complete or failed."""
        try:
            if job.wanted is None:
                job.wanted = job.task.window()
            if job.wanted is None:
                job.tell(Done())
                return False
            key, self._next_key = self._next_key, self._next_key + 1
            job.row = make_writer(key, job.wanted, job.task.settings)
            room = self.reranker.model.max_positions
            if job.row.slots + 1 > room:
                raise DecodeError(f"the request needs {job.row.slots + 1} positions of {room}")
            return True
        except Exception as error:
            job.tell(Failed(error))
            return False

    def _step(self, decoder: str) -> None:
        batch = self._batches[decoder]
        if not batch.rows:
            return
        rows, finished = list(batch.rows), []
        before = time.monotonic()
        good = self._guarded(decoder, rows, lambda: finished.extend(batch.step()))
        if not good:
            return
        seconds = time.monotonic() - before
        self.metrics.step_seconds.labels(decoder).observe(seconds)
        for row in rows:
            job = self._jobs[row.key]
            job.compute_s += seconds
            self._stream(job, row)
        for row in finished:
            self._finish(self._jobs.pop(row.key), row)

    def _guarded(self, decoder: str, rows: list[Writer], work: Callable[[], object]) -> bool:
        """Run a forward; when it fails, every row of the batch starts again alone."""
        self.busy_since = time.monotonic()
        try:
            work()
        except Exception as error:
            self.bad = True
            self.metrics.engine_errors.labels(type(error).__name__).inc()
            batch = self._batches.pop(decoder, None)
            affected = {row.key for row in [*rows, *(batch.rows if batch else [])]}
            self._restart(
                [self._jobs.pop(key) for key in sorted(affected & set(self._jobs))], error
            )
            return False
        finally:
            self.busy_since = None
        self.metrics.forwards.labels(decoder).inc()
        self.bad, self.good_at = False, time.monotonic()
        return True

    def _restart(self, jobs: list[Job], error: Exception) -> None:
        """A job that was alone has failed by itself; the others get a second try, alone."""
        again = []
        for job in jobs:
            if job.alone:
                job.tell(Failed(error))
            else:
                job.row, job.alone = None, True
                again.append(job)
        self._waiting.extendleft(reversed(again))

    def _stream(self, job: Job, row: Writer) -> None:
        if not job.streams:
            return
        tokens = [(at, token) for at, token in row.fresh() if at not in job.told]
        job.told.update(at for at, _ in tokens)
        if tokens:
            job.tell(Committed(job.window, row.nfe, job.compute_s, tokens))

    def _finish(self, job: Job, row: Writer) -> None:
        """A window is decoded; the next one waits first in line."""
        try:
            trajectory = row.result()
            job.task.take(trajectory)
        except Exception as error:
            job.tell(Failed(error))
            return
        decoder = job.task.settings.decoder
        self.metrics.tokens.labels(decoder).inc(len(trajectory.tokens_T))
        self.metrics.denoise_steps.labels(decoder).observe(trajectory.nfe)
        self.metrics.per_forward.labels(decoder).observe(trajectory.tpf)
        job.row, job.wanted, job.alone = None, None, False
        job.window += 1
        job.told.clear()
        if self._make_row(job):
            self._waiting.appendleft(job)

    def _serve_probes(self) -> None:
        with self._wake:
            probes, self._probes = self._probes, []
        if not probes:
            return
        settings = self.reranker.settings({"decoder": "ar", "max_tokens": 1})
        self.busy_since = time.monotonic()
        try:
            prompt = [self.reranker.vocab.end_id]
            decode(self.reranker.model, [DecodeRequest(prompt)], settings)
            self.bad, self.good_at = False, time.monotonic()
        except Exception as error:
            self.bad = True
            self.metrics.engine_errors.labels(type(error).__name__).inc()
        finally:
            self.busy_since = None
        for probe in probes:
            probe.set()

    def _fail_all(self, error: Exception) -> None:
        with self._wake:
            jobs = [*self._jobs.values(), *self._waiting, *self._inbox]
            probes, self._probes = self._probes, []
            self._jobs.clear()
            self._waiting.clear()
            self._inbox.clear()
        self._batches.clear()
        self.bad = True
        for job in jobs:
            job.tell(Failed(error))
        for probe in probes:
            probe.set()
