"""Child of test_publish_barrier: one shared stage on two processes, the second of which is slow.

Run: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; two_writers.py FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from diffgr2.pipeline import Runner, Stage, StageContext, versions
from diffgr2.recipe import validate
from diffgr2.train import dist

LATE_S = 1.0


def write(ctx: StageContext) -> dict[str, Any]:
    """Both write where a shared stage may; the second process comes late."""
    rank = dist.world().rank
    if rank:
        time.sleep(LATE_S)
    (ctx.out / "out.txt").write_text(f"of {rank}")
    (ctx.work / f"state-{rank}.txt").write_text("done")
    return {"rank": rank}


def main() -> None:
    root = Path(sys.argv[1])
    versions()  # imports what publishing asks for: nothing but the barrier may hold it up
    here = dist.start()
    assert here.size == 2
    stages = {"a": Stage("a", write, (), ("data",), "toy a", shared=True)}
    recipe = validate({"name": "toy"}, "toy")
    runner = Runner(recipe, root, stages, rank=here.rank, on_first=dist.on_first)
    runner.run(["a"])
    dist.leave()


if __name__ == "__main__":
    main()
