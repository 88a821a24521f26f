"""A batch on this machine: worker processes that take shares from one command.

Contract: `run` hands shares to `workers` processes, one at a time each, until all stand, and calls
`done` with every entry. A worker that dies costs the share that it had, which goes to another; one
that cannot begin ends the batch with what it said. When the command dies, its workers end with
their present share. Not here: what a share is (`job`), how it is ranked (`work`), other machines
(`on_ray`).

    python -m diffgr2.bulk.processes OUTPUT NAME    # a worker: shares on stdin, entries on stdout
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

from diffgr2.bulk.job import Share
from diffgr2.errors import (
    ArtifactError,
    CheckpointError,
    ConfigError,
    DataError,
    Diffgr2Error,
    MissingExtraError,
)
from diffgr2.model.backends import cores

DEATHS = 40  # at one share: what kills so often is no row
STARTS = 3  # of one worker without a word

Done = Callable[[dict[str, Any]], None]


class Hand:
    """One worker process, as the command sees it."""

    def __init__(self, output: str, name: str, threads: int) -> None:
        self.name, self.share, self.ready = name, None, False
        env = {**os.environ, "DIFFGR2_BULK_THREADS": str(threads)}
        env.setdefault("OMP_NUM_THREADS", str(threads))
        paths = [path for path in sys.path if path]
        env["PYTHONPATH"] = os.pathsep.join(paths)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "diffgr2.bulk.processes", output, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.into: IO[bytes] = self.process.stdin
        self.out: IO[bytes] = self.process.stdout
        self.share: Share | None

    def give(self, share: Share) -> None:
        self.share = share
        with suppress(OSError):  # it has died: its end is read where its entries are
            self.into.write(f"{share.first} {share.count}\n".encode())
            self.into.flush()

    def close(self) -> None:
        """No more shares."""
        with suppress(OSError):
            self.into.close()

    def end(self) -> None:
        """Now."""
        self.close()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait()
        self.out.close()


class Crew:
    """The workers and what is left to do."""

    def __init__(self, output: str, shares: Sequence[Share], workers: int, done: Done) -> None:
        self.output, self.left, self.done = output, deque(shares), done
        self.threads = max(1, cores() // workers)
        self.deaths: Counter[str] = Counter()
        self.silent = 0  # workers that died before they were ready, one after the other
        self.hands: list[Hand] = []
        self.ears = selectors.DefaultSelector()
        for number in range(min(workers, len(shares))):
            self._hire(f"worker-{number}")

    def _hire(self, name: str) -> None:
        hand = Hand(self.output, name, self.threads)
        self.hands.append(hand)
        self.ears.register(hand.out, selectors.EVENT_READ, hand)

    def work(self) -> None:
        """Until nothing is left."""
        try:
            while self.hands:
                for key, _ in self.ears.select():
                    hand: Hand = key.data
                    line = hand.out.readline()
                    if line.endswith(b"\n"):
                        self._heard(hand, json.loads(line))
                    else:
                        self._lost(hand)
        finally:
            for hand in self.hands:
                hand.end()
            self.ears.close()

    def _heard(self, hand: Hand, said: dict[str, Any]) -> None:
        if "error" in said:
            raise ERRORS[said["kind"]](said["error"])
        hand.ready, self.silent = True, 0
        if hand.share is not None:
            hand.share = None
            self.done(said)
        self._next(hand)

    def _next(self, hand: Hand) -> None:
        if self.left:
            hand.give(self.left.popleft())
        else:
            hand.close()

    def _lost(self, hand: Hand) -> None:
        """A worker has ended: as it was told to, or not."""
        self.ears.unregister(hand.out)
        self.hands.remove(hand)
        hand.end()
        code = hand.process.returncode
        if hand.share is not None:
            self.deaths[hand.share.name] += 1
            if self.deaths[hand.share.name] > DEATHS:
                raise ArtifactError(f"workers die at the rows {hand.share.name} ({_how(code)})")
            self.left.appendleft(hand.share)
        elif not hand.ready:
            self.silent += 1
            if self.silent >= STARTS:
                raise ArtifactError(f"{hand.name}: died before it began ({_how(code)})")
        if self.left and len(self.hands) < len(self.left) + 1:
            self._hire(hand.name)


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"code {code}"


def run(output: str, shares: Sequence[Share], workers: int, done: Done) -> None:
    """See the module's docstring."""
    Crew(output, shares, workers, done).work()


# --------------------------------------------------------------------------------- the worker

ERRORS: dict[str, type[Diffgr2Error]] = {
    kind.__name__: kind
    for kind in (ArtifactError, CheckpointError, ConfigError, DataError, MissingExtraError)
}


def main(output: str, name: str) -> int:
    """A worker's life: ready, then an entry for each share."""
    # Whatever prints goes where people read; the words to the command have a pipe of their own.
    told = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command ends its workers itself

    def say(value: dict[str, Any]) -> None:
        told.write(json.dumps(value) + "\n")
        told.flush()

    try:
        from diffgr2.bulk.work import Worker
        from diffgr2.model import backends

        backends.use(threads=int(os.environ.get("DIFFGR2_BULK_THREADS", "1")))
        worker = Worker(output, name)
        say({"ready": name})
        for line in sys.stdin:
            first, count = map(int, line.split())
            say(worker.do(Share(first, count)))
    except BrokenPipeError:
        return 1  # nobody listens any more; what was done stands
    except Diffgr2Error as error:
        kind = next((k for k in ERRORS if isinstance(error, ERRORS[k])), "ConfigError")
        say({"error": str(error), "kind": kind})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
