"""What is shipped and with what: versions, data files, requirements, locks and workflows agree.

The built wheel itself is tried by `make test-wheel` (tests/package).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest
import requirements
import yaml
from docs_site import LINK
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from diffgr2 import __version__

ROOT = Path(__file__).parents[2]
HELD: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, GROUPS = HELD["project"], HELD["dependency-groups"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))

Pins = dict[str, list[str]]
"""Package -> its pinned versions: a lock may hold one for old interpreters and one for new ones."""


def pins(name: str) -> Pins:
    found: Pins = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?==([^ ;\\]+)", line)
        if match:
            found.setdefault(canonicalize_name(match[1]), []).append(match[2])
    return found


def unmet(lines: list[str], held: Pins) -> list[str]:
    """The requirements that no pin meets."""
    needs = {line: Requirement(line) for line in lines}
    return [
        line
        for line, need in needs.items()
        if not any(need.specifier.contains(v) for v in held.get(canonicalize_name(need.name), []))
    ]


# ---------------------------------------------------------------------------------------- locks


def test_a_requirement_that_no_pin_meets_is_seen() -> None:
    held = {"a": ["1.0", "2.0"], "b-c": ["1"]}
    assert unmet(["a>=2", "b_c[x]>=1", "b.c>=1.1", "d>=1"], held) == ["b.c>=1.1", "d>=1"]


def test_the_lock_names_all_that_pyproject_asks_for() -> None:
    lines = requirements.of_extras(PROJECT, list(PROJECT["optional-dependencies"]))
    lines += requirements.of_groups(GROUPS, list(GROUPS))
    assert unmet(lines, pins("locks/all.txt")) == [], "older than pyproject.toml: make lock"


def test_each_environments_lock_is_whole() -> None:
    extras = re.search(r"^EXTRAS := (\S+)$", MAKEFILE, re.MULTILINE)
    assert extras is not None
    lines = requirements.of_extras(PROJECT, extras[1].split(","))
    lines += requirements.of_groups(GROUPS, ["dev"])
    lines = [line for line in lines if not line.startswith("torch>=")]  # by itself: see Makefile
    assert unmet(lines, pins("locks/dev.txt")) == [], "make lock"
    serve = requirements.of_extras(PROJECT, ["serve"])
    assert unmet(serve, pins("locks/serve.txt")) == [], "make lock"


def test_locks_and_constraints_pin_the_same() -> None:
    whole = pins("locks/all.txt")
    for name in ("constraints.txt", "locks/dev.txt", "locks/serve.txt"):
        other = pins(name)
        assert {p: v for p, v in other.items() if not set(v) <= set(whole.get(p, []))} == {}, name


@pytest.mark.parametrize("name", ["dev", "serve"])
def test_every_pin_of_an_environment_has_a_hash(name: str) -> None:
    lines = (ROOT / f"locks/{name}.txt").read_text(encoding="utf-8").splitlines()
    bare = [line for line in lines if "==" in line and not line.endswith("\\")]
    assert bare == []
    assert sum("--hash=sha256:" in line for line in lines) >= len(pins(f"locks/{name}.txt"))


def test_locks_name_no_index() -> None:
    for path in (ROOT / "locks").iterdir():
        assert "://" not in path.read_text(encoding="utf-8"), path.name


# --------------------------------------------------------------------------------- requirements


def test_groups_are_read_with_what_they_include(capsys: pytest.CaptureFixture[str]) -> None:
    groups = {"a": ["x>=1", {"include-group": "b"}, "z>=3"], "b": ["y>=2"]}
    assert requirements.of_groups(groups, ["a", "b"]) == ["x>=1", "y>=2", "z>=3", "y>=2"]
    assert requirements.main(["group", "try"]) == 0
    assert capsys.readouterr().out.splitlines() == GROUPS["try"]


def test_lower_bounds_become_pins_and_extras_within_extras_are_followed() -> None:
    project = {
        "dependencies": ["a>=1"],
        "optional-dependencies": {
            "p": ["diffgr2[q,r]", "b[more]>=2.1"],
            "q": ["torch>=2"],
            "r": ["diffgr2[q]", "a>=1"],
        },
    }
    lines = requirements.of_extras(project, ["p"])
    assert lines == ["a>=1", "b[more]>=2.1", "torch>=2"]
    assert requirements.lowest(lines, "torch==9") == ["a==1", "b==2.1", "torch==9"]
    with pytest.raises(ValueError, match=r"'a<2' is not NAME>=VERSION"):
        requirements.lowest(["a<2"], "")


def test_unknown_names_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["group", "nope"], ["lowest", "nope"]):
        assert requirements.main(arguments) == 2
        told = "error: pyproject.toml has no extra or group 'nope'\n"
        assert capsys.readouterr() == ("", told)
    assert requirements.main([]) == 2
    assert capsys.readouterr() == ("", "error: '' is neither group nor lowest\n")


def test_every_bound_is_one_that_the_lowest_run_can_pin() -> None:
    lines = requirements.of_extras(PROJECT, list(PROJECT["optional-dependencies"]))
    assert len(requirements.lowest(lines, "torch==1")) == len(lines)


# ------------------------------------------------------------------------- versions, data files


def test_one_version_everywhere() -> None:
    assert "version" in PROJECT["dynamic"]
    assert HELD["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "diffgr2.__version__"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    heading = f"## {__version__} - {citation['date-released']}"
    assert citation["version"] == __version__
    assert heading in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()


def test_the_readme_of_an_index_leads_into_the_repository(tmp_path: Path) -> None:
    """In built metadata every link of README is absolute, of this version, and to a file here."""
    (tmp_path / "src/diffgr2").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "src/diffgr2/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    build = "from setuptools import build_meta as b; print(b.prepare_metadata_for_build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.dist-info/METADATA")
    told = message_from_string(path.read_text(encoding="utf-8"))
    assert told["Description-Content-Type"] == "text/markdown"
    text, source = str(told.get_payload()), (ROOT / "README.md").read_text(encoding="utf-8")
    links = {target: image for image, _, target in LINK.findall(text)}
    assert len(links) == len({target for *_, target in LINK.findall(source)}) > 10
    homes = {
        f"{PROJECT['urls']['Repository']}/blob/v{__version__}/": "",
        f"https://raw.githubusercontent.com/diffgr2/diffgr2/v{__version__}/": "!",
    }
    for target, image in links.items():
        if not target.startswith("#"):
            ((home, kind),) = [one for one in homes.items() if target.startswith(one[0])]
            assert (ROOT / target.removeprefix(home)).exists(), target
            assert image == kind
    fences = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    assert fences.findall(text) == fences.findall(source)


def test_the_pythons_that_are_named_are_tested() -> None:
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: 3." in line]
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_every_data_file_is_shipped() -> None:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "src/diffgr2"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("no checkout of git")
    package = ROOT / "src/diffgr2"
    files = {ROOT / line for line in done.stdout.splitlines() if not line.endswith(".py")}
    globs = HELD["tool"]["setuptools"]["package-data"]["diffgr2"]
    shipped = {path for glob in globs for path in package.glob(glob) if path.is_file()}
    assert files - shipped == set()


# ------------------------------------------------------------------------------------ workflows


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_little_and_runs_what_it_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in text
    for step in steps(workflow):
        used = step.get("uses")
        assert used is None or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", used), used
        if used and used.startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    for target in re.findall(r"run: make ([\w-]+)", text):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"no `make {target}`"


def test_only_publishing_has_an_identity_and_it_builds_nothing() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert {name for name, job in jobs.items() if "permissions" in job} == {"publish"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert not any("run" in step for step in jobs["publish"]["steps"])
    assert (jobs["publish"]["needs"], jobs["wheel"]["needs"]) == ("wheel", "tag")
