"""The built wheel in empty environments outside the checkout (`make test-wheel`).

`DIFFGR2_DIST` names the folder with one wheel and one sdist; without it these tests skip.
`DIFFGR2_PYTHON` names the interpreter that makes the environments; `DIFFGR2_NO_TORCH` leaves out
what installs torch.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIST = os.environ.get("DIFFGR2_DIST")
PYTHON = os.environ.get("DIFFGR2_PYTHON") or sys.executable
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("DIFFGR2_", "PYTHON", "VIRTUAL_ENV"))
} | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}

pytestmark = pytest.mark.skipif(not DIST, reason="needs a built wheel: make test-wheel")


def built(pattern: str) -> Path:
    """The one such file."""
    (path,) = Path(str(DIST)).glob(pattern)
    return path


def tracked() -> set[str]:
    """The package's files in the tree, as the wheel should name them."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "src"], capture_output=True, text=True, check=True
    )
    return {line.removeprefix("src/") for line in done.stdout.splitlines()}


@dataclass(frozen=True)
class Place:
    """An environment, and a folder to work in."""

    venv: Path
    folder: Path

    @staticmethod
    def made(base: Path, *needs: str) -> Place:
        """With these installed by pip one after the other, and nothing else."""
        place = Place(base / "venv", base / "work")
        place.folder.mkdir()
        subprocess.run([PYTHON, "-m", "venv", str(place.venv)], check=True, env=CLEAN)
        for need in needs:
            done = place("python", "-m", "pip", "install", "--quiet", "--no-compile", need)
            assert done.returncode == 0, done.stderr[-2000:]
        return place

    def __call__(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(self.venv / "bin" / program), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=CLEAN, cwd=self.folder)

    def says(self, code: str) -> str:
        """What a line of Python prints there."""
        done = self("python", "-c", code)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()


def made(factory: pytest.TempPathFactory, extra: str, *before: str) -> Place:
    wheel = str(built("*.whl")) + (f"[{extra}]" if extra else "")
    return Place.made(factory.mktemp("place"), *before, wheel)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return made(tmp_path_factory, "")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return made(tmp_path_factory, "serve")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With the recipe `micro` run."""
    if os.environ.get("DIFFGR2_NO_TORCH"):
        pytest.skip("DIFFGR2_NO_TORCH: no environment with torch")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    place = made(tmp_path_factory, "train", next(pin for pin in pins if pin.startswith("torch==")))
    done = place("diffgr2", "run", "micro")
    assert done.returncode == 0, done.stderr[-2000:]
    return place


def test_the_wheel_holds_the_trees_files_and_no_other() -> None:
    names = set(zipfile.ZipFile(built("*.whl")).namelist())
    held = {name for name in names if ".dist-info/" not in name}
    assert held == tracked()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_builds_the_wheel() -> None:
    with tarfile.open(built("*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in tracked()} | {
        "pyproject.toml",
        "setup.py",
        "README.md",
    } <= names


def test_the_description_on_an_index_has_no_relative_link() -> None:
    with zipfile.ZipFile(built("*.whl")) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        text = wheel.read(name).decode()
    assert "/docs/page.png)" in text
    assert re.findall(r"\]\((?!https://|#)[^()\s]+\)", text) == []


def test_the_core_answers_without_any_extra(core: Place) -> None:
    assert core("diffgr2", "--help").returncode == 0
    version = built("*.whl").name.split("-")[1]
    assert core("diffgr2", "--version").stdout == f"diffgr2 {version}\n"
    assert core.says("from diffgr2 import Reranker; print(Reranker.__name__)") == "Reranker"
    assert "site-packages" in core.says("import diffgr2; print(diffgr2.__file__)")
    done = core("diffgr2", "doctor")
    assert done.returncode == 0, done.stdout
    assert "all required packages are here" in done.stdout
    assert core("diffgr2", "recipes", "micro").stdout.startswith("# ")


@pytest.mark.parametrize(("line", "extra"), [("run micro", "train"), ("serve --model .", "serve")])
def test_a_missing_extra_is_named_in_one_line(line: str, extra: str, core: Place) -> None:
    (core.folder / "diffgr2.json").write_text("{}")  # where a bundle could stand
    done = core("diffgr2", *line.split())
    assert done.returncode not in (0, 1), done.stderr
    told = rf"error: [\w.-]+ is missing: pip install 'diffgr2\[{extra}\]'\n"
    assert re.fullmatch(told, done.stderr), done.stderr
    assert done.stdout == ""


def test_who_serves_has_no_trainer(serving: Place) -> None:
    found = serving.says(
        "from importlib.util import find_spec as f;"
        "print([n for n in ('torch', 'transformers', 'scipy', 'polars') if f(n)])"
    )
    assert found == "[]"
    assert serving("diffgr2", "doctor").returncode == 0
    assert "--model" in serving("diffgr2", "serve", "--help").stdout


RANKED = (
    "import json; from diffgr2 import Reranker; r = Reranker.from_pretrained({bundle!r});"
    "ids = r.catalogue.raw_ids; print(json.dumps(list(r.rank(ids[:2], ids[10:15]).items)))"
)


def test_what_train_installs_trains_and_ranks(training: Place) -> None:
    ranked = json.loads(training.says(RANKED.format(bundle="runs/micro/bundle")))
    assert len(ranked) == len(set(ranked)) == 5
    assert training("diffgr2", "report", "micro").returncode == 0


def test_what_train_made_is_served_without_a_trainer(training: Place, serving: Place) -> None:
    bundle = training.folder / "runs/micro/bundle"
    asked = RANKED.format(bundle=str(bundle))
    assert serving.says(asked) == training.says(RANKED.format(bundle="runs/micro/bundle"))
    command = [serving.venv / "bin/diffgr2", "serve", "--model", bundle, "--force", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=CLEAN) as server:
        try:
            url = str(server.stdout and server.stdout.readline()).removeprefix("listening on ")
            pages = [answer(url.strip() + path) for path in ("/", "/docs", "/health/ready")]
        finally:
            server.terminate()
    assert pages == [200, 200, 200]


def answer(url: str) -> int:
    """The status of a page, once the server is ready."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=30) as page:
                return page.status
        except urllib.error.HTTPError as error:
            if error.code != 503:
                return error.code
            time.sleep(0.2)
    return 503
