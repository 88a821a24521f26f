"""What an extra would bring is named by that extra, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from diffgr2.errors import EXTRAS, missing_extra

ROOT = Path(__file__).parents[2]
GIVEN = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PATH = f"{ROOT / 'src'}:{ROOT / 'tests'}"


def test_every_package_is_of_an_extra_that_there_is() -> None:
    assert {*EXTRAS.values()} <= {*GIVEN["optional-dependencies"]}
    for package, extra in EXTRAS.items():
        told = missing_extra(ModuleNotFoundError(name=f"{package}.inner"))
        assert str(told) == f"{package} is missing: pip install 'diffgr2[{extra}]'"
    assert missing_extra(ModuleNotFoundError(name="diffgr2.nothing")) is None


def test_what_is_required_is_of_no_extra() -> None:
    needs = {need.partition(">")[0].replace("-", "_") for need in GIVEN["dependencies"]}
    assert len(needs) > 5
    assert not needs & {*EXTRAS}


@pytest.mark.parametrize(
    ("package", "extra", "line"),
    [
        ("fastapi", "serve", ["serve", "--port", "0", "-m", "."]),
        ("polars", "train", ["run", "micro"]),
    ],
)
def test_a_verb_names_the_extra_that_it_lacks(
    package: str, extra: str, line: list[str], tmp_path: Path
) -> None:
    (tmp_path / "diffgr2.json").write_text("{}")  # enough to be called a bundle
    code = (
        "import sys\nfrom support.banned import Banned\n"
        f"sys.meta_path.insert(0, Banned({(package,)!r}))\n"
        "from diffgr2.cli import run\nsys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line],
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    told = f"error: {package} is missing: pip install 'diffgr2[{extra}]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
