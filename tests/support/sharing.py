"""Child of test_shares: what several processes do together, and how each of them may end.

Run: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; sharing.py MODE FOLDER [SECONDS]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from diffgr2.artifacts import write_json
from diffgr2.errors import DataError, Diffgr2Error, LostError
from diffgr2.pipeline import Runner, Stage, StageContext, versions
from diffgr2.recipe import validate
from diffgr2.train import dist

TIMEOUT_S = 10.0
"""Of a collective."""

MARK = 1.0
"""Seconds after which who is to die, or to fail, does."""

COUNTS = (7, 12, 1, 0)


def note(folder: Path, **facts: Any) -> None:
    write_json(folder / f"said-{dist.world().rank}.json", facts)


def decoding(folder: Path) -> None:
    """Lists of all kinds in shares; each rank notes what it decoded and what it was told."""
    import torch

    from support import shared_texts

    torch.set_num_threads(1)
    with dist.together():
        note(folder, **shared_texts.found(COUNTS))


def waiting(folder: Path, seconds: float) -> None:
    """A stage that the first process alone works on, for longer than a collective may last."""
    versions()

    def work(ctx: StageContext) -> dict[str, Any]:
        time.sleep(seconds)
        (ctx.out / "out.txt").write_text("done")
        return {"by": dist.world().rank}

    stages = {"a": Stage("a", work, (), ("data",), "toy a")}
    with dist.together() as here:
        recipe = validate({"name": "toy"}, "toy")
        runner = Runner(recipe, folder / "run", stages, rank=here.rank, on_first=dist.on_first)
        note(folder, metrics=runner.run(["a"])["a"]["metrics"])


def dying(folder: Path, who: int) -> None:
    """One process is killed while the others wait for it."""
    with dist.together() as here:
        dist.meet()
        if here.rank == who:
            time.sleep(MARK)
            os.kill(os.getpid(), signal.SIGKILL)
        begin = time.monotonic()
        try:
            dist.gather("here")
        except LostError as error:
            note(folder, error=str(error), seconds=time.monotonic() - begin)
            raise


def failing(folder: Path, who: int, within: bool) -> None:
    """One process meets an error, in a share or anywhere else."""

    def work(mine: range) -> list[int]:
        if dist.world().rank == who:
            raise DataError("row 7 is no row")
        return list(mine)

    with dist.together() as here:
        try:
            if within:
                dist.in_shares(5, work)
            elif here.rank == who:
                work(range(1))
            dist.gather("here")
        except Diffgr2Error as error:
            note(folder, error=str(error), kind=type(error).__name__)
            raise


def main() -> None:
    mode, folder, *rest = sys.argv[1:]
    given = float(rest[0]) if rest else 0.0
    begun = dist.start
    dist.start = lambda: begun(TIMEOUT_S)
    code = 0
    try:
        match mode:
            case "decoding":
                decoding(Path(folder))
            case "waiting":
                waiting(Path(folder), given)
            case "dying":
                dying(Path(folder), int(given))
            case "failing" | "failing-alone":
                failing(Path(folder), int(given), mode == "failing")
    except Diffgr2Error as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    dist.leave(code)


if __name__ == "__main__":
    main()
