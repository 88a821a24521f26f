"""Child process of `battery.check_kills`: trains in forked children that kill themselves.

Reads one JSON request per line (`work`, `update`, `mode`, `at`; `factory` for another one of the
same file), forks, trains, answers with one JSON line when the child is gone. Modes: `count` counts
the executed lines, `line`, `save` and `rollout` send SIGKILL to themselves at the `at`-th executed
line of the package (of the saving code for `save`, of decoding and rollouts for `rollout`), `torn`
at the `at`-th tensor file after half its bytes, `none` never (the parent may kill).
Run: python killable.py FILE.py:FACTORY
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch

from diffgr2.train import checkpoint
from support import battery

SAVING = ("checkpoint.py", "artifacts.py", "log.py")
ROLLING = ("batch.py", "ar.py", "block.py", "writer.py", "draw.py", "forward.py", "rollouts.py")


def load(spec: str) -> tuple[ModuleType, battery.Factory]:
    """The file of `FILE.py:FACTORY` as a module, and the factory."""
    path, _, function = spec.rpartition(":")
    sys.path.insert(0, str(Path(path).parent))
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    module_spec.loader.exec_module(module)
    return module, getattr(module, function)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(mode: str, at: int) -> dict[str, int]:
    """Count lines of the package and die at the chosen one."""
    counts = {"line": 0, "save": 0, "rollout": 0}

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            file = os.path.basename(frame.f_code.co_filename)
            here = {"line": True, "save": file in SAVING, "rollout": file in ROLLING}
            for kind in counts:
                counts[kind] += here[kind]
            if mode in counts and counts[mode] >= at and here[mode]:
                die()
        return on_line

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        return on_line if "diffgr2" in frame.f_code.co_filename.split(os.sep) else None

    if mode in ("count", *counts):
        sys.settrace(on_call)
    if mode == "torn":
        whole, calls = checkpoint.save_file, [0]

        def torn(tensors: dict[str, torch.Tensor], path: Path) -> None:
            whole(tensors, path)
            calls[0] += 1
            if calls[0] >= at:
                os.truncate(path, path.stat().st_size // 2)
                die()

        checkpoint.save_file = torn
    return counts


def train(factory: battery.Factory, request: dict[str, Any]) -> None:
    counts = arm(request["mode"], request["at"])
    work = Path(request["work"])
    outcome = battery.run(factory, work, **request["update"])
    sys.settrace(None)
    result = {"lines": outcome.lines, "weights": outcome.weights, "counts": counts}
    (work / "result.json").write_text(json.dumps(result))


def main() -> None:
    torch.set_num_threads(1)
    module, factory = load(sys.argv[1])
    # A first run here, so that the children need not import and initialise everything again.
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(SystemExit):
        battery.run(factory, Path(folder))
    print("ready", flush=True)
    for text in sys.stdin:
        request = json.loads(text)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                name = request.get("factory")
                train(getattr(module, name) if name else factory, request)
                code = 0
            except SystemExit as stopped:
                code = int(stopped.code or 0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(code)
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
