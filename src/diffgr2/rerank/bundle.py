"""The bundle's format: what a model directory holds that can rank by itself.

Contract: config.json, weights and the vocabulary at top level, so that any tool for Qwen3-family
directories opens it; the parts below in directories of their own; `diffgr2.json` with the recipe's
sections that a request depends on; a manifest with every file's size and sha256; where the run was
judged, `verdict.json`, which says whether it should be served at all. `check` refuses anything
else, and `opened` is the one way in: whatever is wrong is one line and exit code 3. Not
here: whether the parts fit together (`parts`), writing a bundle (`stages.pack`).
"""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from diffgr2 import strict_json
from diffgr2.artifacts import MANIFEST, sealed, sha256_of
from diffgr2.choices import FAILING
from diffgr2.config import Recipe
from diffgr2.data.columnar import HISTORIES, ITEMS, USERS
from diffgr2.errors import ArtifactError, ConfigError, DataError, Diffgr2Error, first_line
from diffgr2.model.backends import GRAPHS
from diffgr2.model.contract import VOCABULARY_FILES
from diffgr2.recipe import validate
from diffgr2.rerank.shipped import nowhere

T = TypeVar("T")

FORMAT = 5
UPGRADED = range(2, FORMAT)
"""Formats that `diffgr2 upgrade` reads. Those of 1 were trained on prompts that nobody writes."""

NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
LONGEST = 200  # characters of a file's name
NOTE = "diffgr2.json"
SECTIONS = ("name", "seed", "items", "candidates", "evidence", "prompt", "decode")
"""What of the recipe a request depends on."""

PARTS = {
    "data": (ITEMS, USERS, HISTORIES),
    "items": (
        "codes.safetensors",
        "items.index.json",
        "vectorizer.json",
        "vectorizer.safetensors",
        "quantizer.safetensors",
    ),
    "evidence": ("index.safetensors", "index.json"),
    "retriever": ("model.safetensors", "config.json"),
    "calibrate": ("calibration.json",),
}
"""Files of each stage, under its name; `data` is packed, the others are as they were made."""

VERDICT = "verdict.json"
"""What a bundle is worth against floor, rival and scorer; absent where nobody judged it."""

CALIBRATION = "calibrate/calibration.json"
"""What turns strengths into probabilities, by decoder."""


MEND = "copy the bundle again, or pack it anew: diffgr2 bundle RECIPE --force"
"""What helps against a bundle that is not whole."""

REQUIRED = ("config.json", NOTE, *GRAPHS.values(), *VOCABULARY_FILES)


class OtherError(ArtifactError):
    """No bundle, or one of another format: the message says what to do instead."""


@dataclass(frozen=True)
class Note:
    """What `diffgr2.json` says."""

    recipe: Recipe
    simulated: bool  # the shoppers are invented: their histories are nobody's secret


def read_note(directory: Path) -> Note:
    """The recipe's sections that came with the bundle, and whose shoppers it holds."""
    path = directory / NOTE
    note = read_strict(path)
    check_format(path, note)
    if not isinstance(note, dict) or type(note.get("format")) is not int:
        raise ArtifactError(f"{path}: not a bundle of format {FORMAT}")
    if note.keys() - {"format", "model", "recipe", "shoppers"}:
        raise ArtifactError(f"{path}: expected format, model, recipe and shoppers")
    sections, whose = note.get("recipe"), note.get("shoppers")
    if not isinstance(sections, dict) or sections.keys() != set(SECTIONS):
        raise ArtifactError(f"{path}: recipe: expected {', '.join(SECTIONS)}")
    if whose not in (None, "simulated"):  # real shoppers are never said to be
        raise ArtifactError(f"{path}: shoppers: expected simulated or nothing")
    return Note(validate(sections, str(path)), whose == "simulated")


@dataclass(frozen=True)
class Verdict:
    """What `verdict.json` says, as far as whoever serves the bundle has to know."""

    lines: tuple[str, ...]  # in words, one per comparison
    worse_than: tuple[str, ...]  # of FAILING, as far as that is sure

    @property
    def shortcoming(self) -> str:
        whose = " and ".join(f"its {part}" for part in self.worse_than)
        return f"worse than {whose} on the lists that judged it"


def read_verdict(directory: Path) -> Verdict | None:
    """The verdict that came with the bundle, None where it was not judged."""
    path = directory / VERDICT
    if not path.exists():
        return None
    match read_strict(path):
        case {"lines": [str(), *_] as lines, "worse_than": list(parts)} if all(
            isinstance(line, str) for line in lines
        ) and all(part in FAILING for part in parts):
            return Verdict(tuple(lines), tuple(dict.fromkeys(parts)))
    raise ArtifactError(f"{path}: not a verdict (expected lines and worse_than)")


def refuse_worse(directory: Path) -> None:
    """A ConfigError where the bundle was judged and is worse than its floor or its scorer."""
    found = read_verdict(directory)
    if found is not None and found.worse_than:
        advice = "train longer, or serve the candidates as they come; --force serves it as it is"
        raise ConfigError(f"{directory}: {found.shortcoming} ({advice})")


def format_of(note: Any) -> int | None:
    """The format that a note names, None where it names none."""
    found = note.get("format") if isinstance(note, dict) else None
    return found if type(found) is int else None


def check_format(path: Path, note: Any) -> None:
    """A bundle of another version is called that, whatever else it has or lacks."""
    found = format_of(note)
    if found is None or found == FORMAT:
        return
    if found in UPGRADED:
        mend = f"diffgr2 upgrade {path.parent} writes it in this one"
    elif found > FORMAT:
        mend = "open it with a newer diffgr2, or pack it anew with this one"
    else:
        match note:
            case {"recipe": {"name": str(name)}} if re.fullmatch(NAME, name):
                mend = f"nothing converts it; make it anew: diffgr2 run {name} --goal bundle"
            case _:
                mend = "nothing converts it; make it anew: diffgr2 run RECIPE --goal bundle"
    told = f"a bundle of format {found}, this version opens format {FORMAT} ({mend})"
    raise OtherError(f"{path}: {told}")


def listed(directory: Path) -> dict[str, dict[str, Any]]:
    """The manifest's files of a bundle of this format: nothing that it needs is missing."""
    path, note = directory / MANIFEST, directory / NOTE
    if path.is_file() and note.is_file():
        with suppress(DataError, OSError):  # what is no JSON at all is told by its hash
            check_format(note, strict_json.loads(note.read_bytes()))
    files = listed_files(directory)
    wanted = [*REQUIRED, *(f"{part}/{name}" for part, names in PARTS.items() for name in names)]
    for name in wanted:
        if name not in files:
            raise ArtifactError(f"{path}: {name} is not listed")
    if not any(name.endswith(".safetensors") and "/" not in name for name in files):
        raise ArtifactError(f"{path}: no weights are listed")
    return files


def listed_files(directory: Path) -> dict[str, dict[str, Any]]:
    """The manifest's files in any format: every name is plain, every entry whole."""
    path = directory / MANIFEST
    manifest = read_strict(path)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise ArtifactError(f"{path}: not a manifest")
    if manifest != sealed({key: value for key, value in manifest.items() if key != "seal"}):
        raise ArtifactError(f"{path}: was changed after it was written")
    for name, entry in files.items():
        plain = PurePosixPath(name).as_posix() == name and len(name) <= LONGEST
        if not plain or not name.isprintable() or name[:1] == "/" or "\\" in name:
            raise ArtifactError(f"{path}: {name[:80]!r} is no plain name within the bundle")
        if ".." in name.split("/"):
            raise ArtifactError(f"{path}: {name[:80]!r} leads out of the bundle")
        whole = isinstance(entry, dict) and entry.keys() == {"sha256", "size"}
        if not whole or type(entry["size"]) is not int or not _is_hash(entry["sha256"]):
            raise ArtifactError(f"{path}: {name[:80]!r}: expected size and sha256")
    return files


State = dict[str, tuple[int, ...]]
"""What the file system says of each file: it differs once a file was replaced or written to."""


def check(directory: Path, files_of: Callable[[Path], dict[str, dict[str, Any]]] = listed) -> State:
    """Refuse what is no whole, unchanged bundle, in one line, before anything of it is used.

    Every file is listed once and is as it was when it was sealed; no name leads out of the
    directory, and nothing in it is a link. Names that begin with a dot are other tools' business.
    """
    if not directory.is_dir():
        raise OtherError(nowhere(directory))
    if not (directory / MANIFEST).exists() and (directory / "bundle" / MANIFEST).is_file():
        raise OtherError(f"{directory}: a run's directory (its bundle: {directory / 'bundle'})")
    for path in directory.rglob("*"):
        if path.is_symlink():
            raise ArtifactError(f"{path}: a link has no place in a bundle")
    files = files_of(directory)
    there = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if not path.is_dir() and not path.relative_to(directory).as_posix().startswith(".")
    }
    for name in sorted(there - files.keys() - {MANIFEST}):
        raise ArtifactError(f"{directory / name}: is not listed in the manifest")
    for name in files:
        if not (directory / name).is_file():
            raise ArtifactError(f"{directory / name}: listed in the manifest but missing")
    before = state_of(directory, files)
    for name, entry in files.items():
        path = directory / name
        if path.stat().st_size != entry["size"]:
            raise ArtifactError(f"{path}: size differs from the manifest")
        if sha256_of(path) != entry["sha256"]:  # always from the disk: a time can be set back
            raise ArtifactError(f"{path}: content differs from the manifest")
    read_verdict(directory)
    return before


def _is_hash(text: Any) -> bool:
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def state_of(directory: Path, names: Iterable[str]) -> State:
    """Where these files stand on the disk and when they last changed."""
    state: State = {}
    for name in (*names, MANIFEST):
        try:
            facts = (directory / name).stat()
        except OSError as error:
            raise ArtifactError(f"{directory / name}: {error.strerror}") from None
        state[name] = (
            facts.st_dev,
            facts.st_ino,
            facts.st_size,
            facts.st_mtime_ns,
            facts.st_ctime_ns,
        )
    return state


def opened(
    directory: Path,
    opening: Callable[[Path], T],
    files_of: Callable[[Path], dict[str, dict[str, Any]]] = listed,
) -> T:
    """What `opening` makes of a checked bundle; whatever is wrong with it is one kind of error.

    Files that are exchanged while they are read would make a bundle of two halves. `files_of` says
    which files it lists and whether they are those of a bundle that can be used.
    """
    try:
        before = check(directory, files_of)
        made = opening(directory)
        if state_of(directory, before.keys() - {MANIFEST}) != before:
            raise ArtifactError(f"{directory}: was changed while it was being opened")
        return made
    except (ImportError, OtherError):  # something is missing here, or tells its own mend
        raise
    except Diffgr2Error as error:
        told, kind = str(error), type(error)
        told = told if told.startswith(str(directory)) else f"{directory}: {told}"
        told += f" ({MEND})"
        raise (kind if kind.exit_code == ArtifactError.exit_code else ArtifactError)(told) from None
    except Exception as error:  # a library's own words about files that it cannot use
        told = f"{directory}: cannot be used: {first_line(error)} ({MEND})"
        raise ArtifactError(told) from error


def read_strict(path: Path) -> Any:
    """A JSON file without duplicate keys or numbers that are none."""
    try:
        if not path.is_file():
            # Anything else there may be a pipe, and reading that would wait for ever.
            raise ArtifactError(f"{path}: no file stands there")
        return strict_json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None
    except DataError as error:
        raise ArtifactError(f"{path}: {error}") from None
