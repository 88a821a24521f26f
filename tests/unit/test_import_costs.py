"""What an import must not drag in: each case is a fresh interpreter that tells what it loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
TELL = "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
HEAVY = {
    *("torch", "transformers", "scipy", "sklearn", "polars", "matplotlib", "onnx", "onnxruntime"),
    *("lightgbm", "ray", "pyarrow", "openai", "fastapi", "starlette", "uvicorn"),
}
"""What ranks nothing, or only once a model is opened."""

NO_WORK = HEAVY | {"numpy", "pydantic", "yaml", "packaging", "safetensors", "tokenizers"}
"""What a command line needs none of to say what it can."""


def loaded(code: str) -> set[str]:
    """Modules and their packages after running the code."""
    command = [sys.executable, "-c", code + TELL]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stderr.splitlines()[-1])
    return {*names} | {name.partition(".")[0] for name in names}


def test_the_package_alone_imports_nothing() -> None:
    found = loaded("import diffgr2; diffgr2.__version__")
    assert {name for name in found if name.startswith("diffgr2")} == {"diffgr2"}
    assert not found & {*NO_WORK, "typer", "rich", "dataclasses"}


def test_the_python_api_imports_what_a_request_needs_alone() -> None:
    found = loaded("from diffgr2 import RankResult, Reranker")
    assert "diffgr2.rerank.reranker" in found
    assert not found & {*HEAVY, "typer", "rich"}
    assert not {name for name in found if name.startswith(("diffgr2.train", "diffgr2.stages"))}


@pytest.mark.parametrize("line", [["--help"], ["--version"], ["serve", "--help"], ["nonsense"]])
def test_the_command_line_says_what_it_can_without_any_work(line: list[str]) -> None:
    found = loaded(f"from diffgr2.cli import run; run({line!r})")
    assert "diffgr2.stages.plan" in found
    own = {"pydantic"} if line[0][:1] != "-" else set()  # typer reads what else is given with it
    assert not found & NO_WORK - own
