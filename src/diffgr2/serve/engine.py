"""The engine: one thread that decodes and nothing else; outputs join and leave between steps.

Contract: `submit` hands over a `Job`; its events arrive on the job's own callback, from the engine
thread, and end with exactly one `Decoded` or `Failed`. A cancelled job
leaves before the next step. Jobs run while both the limit on their number and the token budget
hold, in the order in which they came (`first` ones before the others). An `Order` becomes jobs only
when there is room for them, so that the prompts of all that wait are written in one go; its turn is
that of its arrival, beside jobs too. When a
forward fails, every job of that batch is decoded again alone, so only a request that fails by
itself fails; readiness tells whether the last forward was good. Not here: prompts and answers
(`rerank`), deadlines and slots, which belong to whoever waits (`ranking`), and decoding itself
(`decode.batch`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from diffgr2.decode.batch import Batch, decode, make_writer
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.writer import Writer
from diffgr2.errors import DecodeError
from diffgr2.model.backend import Backend
from diffgr2.serve.jobs import Committed, Decoded, Failed, Job, Order
from diffgr2.serve.limits import Limits
from diffgr2.serve.telemetry import Metrics


class Engine:
    """See the module's docstring; `probe` is a prompt whose decoding shows that the model works."""

    def __init__(
        self,
        model: Backend,
        probe: tuple[DecodeRequest, DecodeSettings],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.model, self.limits, self.metrics = model, limits, metrics
        self._probe = probe
        self._inbox: deque[Job] = deque()
        self._orders: deque[Order] = deque()
        self._waiting: deque[Job] = deque()
        self._writing = 0  # orders that become jobs now: in no queue, and yet to do
        self._batches: dict[str, Batch] = {}
        self._jobs: dict[int, Job] = {}  # the writer's key -> job
        self._next_key = 0
        self._wake = threading.Condition()
        self._stopping = False
        self._probes: list[threading.Event] = []
        self._told: Callable[[], object] = lambda: None
        self.good_at = 0.0  # monotonic time of the last good forward
        self.bad = False  # a forward failed and none was good since
        self.busy_since: float | None = None  # begin of the forward that runs now
        self._thread = threading.Thread(target=self._run, name="diffgr2-engine", daemon=True)

    # --------------------------------------------------------------------------- outside

    def start(self, told: Callable[[], object] | None = None) -> None:
        """`told` is called on the engine's thread when it has told what there is for now."""
        self._told = told or self._told
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step; open jobs fail."""
        self.end()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def end(self) -> None:
        """End the thread soon, without waiting for it: nobody uses this engine any more."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def submit(self, job: Job) -> None:
        with self._wake:
            if self._stopping:
                job.tell(Failed(DecodeError("the engine has stopped")))
                return
            self._inbox.append(job)
            self._wake.notify()

    def order(self, order: Order) -> None:
        """Its jobs are made once there is room for them, those of many orders together."""
        with self._wake:
            if not self._stopping:
                self._orders.append(order)
                self._wake.notify()
                return
        order.fail(DecodeError("the engine has stopped"))

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

    @property
    def running(self) -> int:
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._orders) + self._writing

    @property
    def load(self) -> int:
        """How much there is to do."""
        return len(self._inbox) + self.waiting + self.running

    @property
    def slots_used(self) -> int:
        """Cache slots of all outputs under way."""
        writers = [job.writer for job in list(self._jobs.values())]
        return sum(writer.slots for writer in writers if writer is not None)

    # ---------------------------------------------------------------------------- thread

    def _run(self) -> None:
        while self._collect():
            try:
                self._serve_probes()
                self._leave()
                self._write()
                self._join()
                self._told()
                for decoder in list(self._batches):
                    self._step(decoder)
                    self._told()
            except Exception as error:  # a bug here must not leave anybody waiting for ever
                self._fail_all(error)
        self._fail_all(DecodeError("the engine has stopped"))

    def _collect(self) -> bool:
        """Take new jobs; sleep while there is nothing to do. False when it is time to end."""
        with self._wake:
            while not (self._inbox or self._orders or self._waiting or self._jobs or self._probes):
                if self._stopping:
                    return False
                self._wake.wait()
            self._waiting.extendleft([job for job in self._inbox if job.first][::-1])
            self._waiting.extend(job for job in self._inbox if not job.first)
            self._inbox.clear()
            return not self._stopping

    def _write(self) -> None:
        """Orders become jobs, no more than could join now, and wait where they came."""
        if not self._orders:
            return
        oldest = self._orders[0].arrived
        ahead = sum(job.turn <= oldest for job in self._waiting)
        room = self.limits.running - len(self._jobs) - ahead
        self._writing = max(0, min(room, len(self._orders)))
        orders = [self._orders.popleft() for _ in range(self._writing)]
        try:
            if orders:
                waiting = [*self._waiting, *orders[0].together(orders)]
                self._waiting = deque(sorted(waiting, key=lambda job: job.turn))
        finally:
            self._writing = 0

    def _leave(self) -> None:
        """Cancelled jobs leave, waiting or decoding, and orders that nobody waits for."""
        with self._wake:
            if any(order.over for order in self._orders):
                self._orders = deque(order for order in self._orders if not order.over)
        if any(job.cancelled for job in self._waiting):
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
        for batch in self._batches.values():
            keep = [not self._jobs[writer.key].cancelled for writer in batch.writers]
            if not all(keep):
                for writer, kept in zip(batch.writers, keep, strict=True):
                    if not kept:
                        del self._jobs[writer.key]
                batch.keep(keep)

    def _join(self) -> None:
        """Waiting jobs join in order, as far as their number and tokens allow."""
        joining: dict[str, list[Writer]] = {}
        used = self.slots_used
        while self._waiting and len(self._jobs) < self.limits.running:
            job = self._waiting[0]
            if any(other.alone for other in self._jobs.values()) or (job.alone and self._jobs):
                break
            writer = job.writer or self._writer(job)
            if writer is None:
                self._waiting.popleft()
                continue
            if self._jobs and used + writer.slots > self.limits.tokens:
                break
            self._waiting.popleft()
            self._start(job)
            if writer.done:  # its grammar left no choice
                self._stream(job, writer)
                self._finish(job, writer)
                continue
            used += writer.slots
            self._jobs[writer.key] = job
            joining.setdefault(job.settings.decoder, []).append(writer)
        for decoder, writers in joining.items():
            batch = self._batches.setdefault(decoder, Batch(self.model))
            self._guarded(decoder, writers, lambda batch=batch, new=writers: batch.add(new))

    def _start(self, job: Job) -> None:
        """A job's wait is over; of a request the first one's counts."""
        if job.started_at is None:
            job.started_at = time.monotonic()
            if job.number == 0:
                self.metrics.queue_seconds.observe(job.started_at - job.queued_at)

    def _writer(self, job: Job) -> Writer | None:
        """The job's writer; None if it cannot be decoded."""
        try:
            key, self._next_key = self._next_key, self._next_key + 1
            writer = make_writer(key, job.wanted, job.settings)
            room = self.model.max_positions
            if writer.slots + 1 > room:
                raise DecodeError(f"the request needs {writer.slots + 1} positions of {room}")
        except Exception as error:
            job.tell(Failed(error))
            return None
        job.writer = writer
        return writer

    def _step(self, decoder: str) -> None:
        batch = self._batches[decoder]
        if not batch.writers:
            return
        writers, finished = list(batch.writers), []
        before = time.monotonic()
        if not self._guarded(decoder, writers, lambda: finished.extend(batch.step())):
            return
        seconds = time.monotonic() - before
        self.metrics.step_seconds.labels(decoder).observe(seconds)
        for writer in writers:
            job = self._jobs[writer.key]
            job.compute_s += seconds
            self._stream(job, writer)
        for writer in finished:
            self._finish(self._jobs.pop(writer.key), writer)

    def _guarded(self, decoder: str, writers: list[Writer], work: Callable[[], object]) -> bool:
        """Run a forward; when it fails, every job of the batch starts again alone."""
        self.busy_since = time.monotonic()
        try:
            work()
        except Exception as error:
            self._went_wrong(error)
            batch = self._batches.pop(decoder, None)
            affected = {writer.key for writer in [*writers, *(batch.writers if batch else [])]}
            jobs = [self._jobs.pop(key) for key in sorted(affected & set(self._jobs))]
            self._restart(jobs, error)
            return False
        finally:
            self.busy_since = None
        self.metrics.forwards.labels(decoder).inc()
        self.bad, self.good_at = False, time.monotonic()
        return True

    def _went_wrong(self, error: Exception) -> None:
        self.bad = True
        self.metrics.engine_errors.labels(type(error).__name__).inc()

    def _restart(self, jobs: list[Job], error: Exception) -> None:
        """A job that was alone has failed by itself; the others get a second try, alone."""
        again = []
        for job in jobs:
            if job.alone:
                job.tell(Failed(error))
            else:
                job.writer, job.alone = None, True
                again.append(job)
        self._waiting.extendleft(reversed(again))

    def _stream(self, job: Job, writer: Writer) -> None:
        if not job.streams:
            return
        tokens = [(at, token) for at, token in writer.fresh() if at not in job.told]
        job.told.update(at for at, _ in tokens)
        if tokens:
            job.tell(Committed(writer.nfe, job.compute_s, tokens))

    def _finish(self, job: Job, writer: Writer) -> None:
        trajectory, decoder = writer.result(), job.settings.decoder
        self.metrics.tokens.labels(decoder).inc(len(trajectory.tokens_T))
        self.metrics.denoise_steps.labels(decoder).observe(trajectory.nfe)
        self.metrics.per_forward.labels(decoder).observe(trajectory.tpf)
        job.tokens = len(trajectory.tokens_T)
        job.tell(Decoded(trajectory))

    def _serve_probes(self) -> None:
        with self._wake:
            probes, self._probes = self._probes, []
        if not probes:
            return
        request, settings = self._probe
        self.busy_since = time.monotonic()
        try:
            decode(self.model, [request], settings)
            self.bad, self.good_at = False, time.monotonic()
        except Exception as error:
            self._went_wrong(error)
        finally:
            self.busy_since = None
        for probe in probes:
            probe.set()

    def _fail_all(self, error: Exception) -> None:
        with self._wake:
            jobs = [*self._jobs.values(), *self._waiting, *self._inbox]
            orders, probes, self._probes = [*self._orders], self._probes, []
            self._jobs.clear()
            self._waiting.clear()
            self._inbox.clear()
            self._orders.clear()
        self._batches.clear()
        self.bad = True
        for job in jobs:
            job.tell(Failed(error))
        for order in orders:
            order.fail(error)
        self._told()
        for probe in probes:
            probe.set()
