"""How the processes of one run wait for each other: by looking, not in a collective.

Contract: `Crew.meet` returns when every process has come to the same meeting, however late the
last one is: nothing in it times out. Who died or left with an error ends it for the others with a
LostError of one line: on the same machine as soon as they look, on another one when its beat has
stood still for `STILL_S`. A beat is a number in the store that a thread counts up, so a process
at work is seen to live. Not here: what is exchanged once all have come (`dist`).
"""

import os
import select
import time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch.distributed as td

from diffgr2.errors import LostError

BEAT_S = 1.0
"""Between two beats, and between two looks at the others'."""

STILL_S = 60.0
"""A beat that stands so long is a dead one's: a thread may wait long for the interpreter."""

SHORTEST_S, LONGEST_S = 0.0005, 0.1
"""Pauses between two looks whether all have come: short ones at first."""

LEAVING_S = 10.0
"""How long the first process waits for the others to leave: the store may live in it."""

LEFT = "left"
"""The key under which whoever leaves with an error says why."""


def _told(kind: str, rank: int) -> str:
    return f"{kind}/{rank}"


def _here() -> str:
    """What is the same for two processes that see each other's numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class Crew:
    """See the module's docstring; every process makes one, after the process group stands."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        # Of its own: whoever waits in a store holds it for all threads of the process.
        self._store, self._beats = _client(), _client()
        self._meetings = 0
        self._looked = -BEAT_S
        self._seen: dict[int, tuple[bytes, float]] = {}  # another's beat, and since when
        self._handles: dict[int, int] = {}  # of others on this machine
        self._strangers = {other for other in range(size) if other != rank}  # not looked for yet
        self._store.set(_told("who", rank), f"{os.getpid()} {_here()}")
        self._done = Event()
        self._thread = Thread(target=self._beat, name="beat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        with suppress(RuntimeError):  # the store went, and so does the run
            while True:
                self._beats.add(_told("beat", self._rank), 1)
                if self._done.wait(BEAT_S):
                    return

    def meet(self) -> None:
        """Wait until every process is here."""
        keys = [f"met/{self._meetings}/{rank}" for rank in range(self._size)]
        self._meetings += 1
        pause = SHORTEST_S
        try:
            self._store.set(keys[self._rank], "")
            while not self._store.check(keys):
                gone = self._look()
                if gone is not None and not self._store.check(keys):  # not having been here
                    raise gone
                time.sleep(pause)
                pause = min(pause * 1.5, LONGEST_S)
            if self._meetings > 1:  # all have passed the meeting before
                self._store.delete_key(f"met/{self._meetings - 2}/{self._rank}")
        except LostError:
            raise
        except RuntimeError:
            raise self._lost() or LostError("the first process is gone") from None

    def _look(self) -> LostError | None:
        """Whether somebody is gone, asked every so often."""
        now = time.monotonic()
        if now - self._looked < BEAT_S / 2:
            return None
        self._looked = now
        return self._lost()

    def lost(self, within_s: float) -> LostError | None:
        """Who is gone, if anybody is seen to be within so long."""
        end = time.monotonic() + within_s
        while (found := self._lost()) is None and time.monotonic() < end:
            time.sleep(LONGEST_S)
        return found

    def _lost(self) -> LostError | None:
        try:
            if self._store.check([LEFT]):
                return LostError(self._store.get(LEFT).decode())
            self._know()
            dead = self._ended() or self._still()
        except RuntimeError:
            dead = self._ended()
        if dead is None:
            return None
        return LostError(
            f"process {dead} of {self._size} is gone: the same command goes on from its last "
            "checkpoint"
        )

    def _know(self) -> None:
        """Handles on those that turn out to be on this machine: a number may be given again."""
        for other in list(self._strangers):
            key = _told("who", other)
            if self._store.check([key]):
                self._strangers.discard(other)
                pid, _, place = self._store.get(key).decode().partition(" ")
                if place and place == _here() and hasattr(os, "pidfd_open"):
                    with suppress(OSError):
                        self._handles[other] = os.pidfd_open(int(pid))

    def _ended(self) -> int | None:
        """One on this machine that has ended."""
        if not self._handles:
            return None
        ready = select.poll()
        for handle in self._handles.values():
            ready.register(handle, select.POLLIN)
        ended = {handle for handle, _ in ready.poll(0)}
        return next((other for other, h in self._handles.items() if h in ended), None)

    def _still(self) -> int | None:
        """One whose beat has not changed for long."""
        now = time.monotonic()
        others = [other for other in range(self._size) if other != self._rank]
        keys = [_told("beat", other) for other in others]
        if not self._store.check(keys):  # some have only begun
            return None
        for other, beat in zip(others, self._store.multi_get(keys), strict=True):
            if self._seen.get(other, (b"", 0.0))[0] != beat:
                self._seen[other] = (beat, now)
        return next((other for other in others if now - self._seen[other][1] > STILL_S), None)

    def part(self) -> None:
        """Leave, all together."""
        self.meet()
        self._leave(LEAVING_S)

    def abandon(self, why: str) -> None:
        """Leave with an error, which ends the others' next meeting; "" says they know."""
        with suppress(RuntimeError):
            if why:
                self._store.set(LEFT, f"process {self._rank} of {self._size}: {why}")
        self._leave(2 * BEAT_S)

    def _leave(self, patience_s: float) -> None:
        with suppress(RuntimeError):
            if self._rank:
                self._store.set(_told("gone", self._rank), "")
            keys = [_told("gone", other) for other in range(1, self._size)]
            end = time.monotonic() + patience_s
            # The store may go with the first process, and others look once more.
            while self._rank == 0 and not self._store.check(keys) and time.monotonic() < end:
                time.sleep(LONGEST_S)
        self._done.set()
        self._thread.join(BEAT_S)
        for handle in self._handles.values():
            os.close(handle)
        self._handles = {}


def _client() -> Any:
    """A connection to the store that the process group was made with."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    make = td.TCPStore  # pyright: ignore[reportPrivateImportUsage]
    return make(host, port, None, False, wait_for_workers=False)
