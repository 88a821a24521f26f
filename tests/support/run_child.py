"""Child process of `test_run_kill`: `diffgr2` in forked children that kill themselves.

Reads one JSON request per line (`arguments`, `root`, `at`), forks, runs the command line, answers
with one JSON line when the child is gone. The child counts what Python does to files under `root`
(opening, renaming, removing, making directories) and sends SIGKILL to itself right before the
`at`-th such act; 0 never. Forking spares every child the import of torch; nothing here starts a
thread before the fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import diffgr2.cli
import diffgr2.stages.cft
import diffgr2.stages.midtrain
import diffgr2.stages.pack
import diffgr2.stages.score
import diffgr2.stages.speed
import diffgr2.train.loop

ACTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir", "shutil.rmtree"}


def arm(root: str, at: int, report: int) -> None:
    """Count acts and die at the chosen one; every count goes through the pipe `report`."""
    count = 0

    def hook(event: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in ACTS or not isinstance(details[0], str | os.PathLike):
            return
        if not str(details[0]).startswith(root):
            return
        count += 1
        os.pwrite(report, f"{count:10d}".encode(), 0)
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    for text in sys.stdin:
        request = json.loads(text)
        report = os.memfd_create("count")
        child = os.fork()
        if child == 0:
            out = os.open(os.devnull, os.O_WRONLY)
            os.dup2(out, 1)
            arm(request["root"], request["at"], report)
            code = 1
            try:
                code = diffgr2.cli.run(request["arguments"])
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(code)
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        count = int(os.pread(report, 10, 0) or b"0")
        os.close(report)
        answer = {"status": os.waitstatus_to_exitcode(status), "count": count}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
