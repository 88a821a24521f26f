"""One batch: which rows of which input by which model, in which shares, and which of them stand.

Contract: `begun(…)` writes a batch's note (`_job.json`) into an empty output, or finds the same
batch there and goes on with it; another input, model or option in its place is one line that names
what differs. A share is a range of row numbers; it stands when its entry is in the ledger
(`_ledger/`), which is written after its part file, both in one step each. So whoever is killed when
and however often, a row that stands is in exactly one part file or set aside, and the same command
does what is missing. `finished` gathers what was set aside in `_set_aside.jsonl`. Not here: reading
rows (`sources`), ranking them (`work`), who works (`processes`, `on_ray`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffgr2.artifacts import fingerprint, read_manifest
from diffgr2.bulk.places import Place
from diffgr2.bulk.sources import File, carried, survey
from diffgr2.errors import ArtifactError, ConfigError

NOTE, LEDGER, SET_ASIDE = "_job.json", "_ledger", "_set_aside.jsonl"
FORMATS = ("parquet", "jsonl")
MOST = 4_096  # rows of a share: what a kill costs at most
TURNS = 16  # shares a worker, at least, so that all end together

FACTS = ("valid", "repaired", "fallback", "identity", "sure", "failures")
DECODED = ("decoder", "tokens", "forwards")

OWN = (
    *("row", "items", "order", "scores", "levels", "placed", "warnings"),
    *FACTS,
    *("reasoning", "decisions"),
    *DECODED,
)
"""The columns of the output; those of the input that are carried along follow."""


@dataclass(frozen=True)
class Wish:
    """What the user chose of the answers."""

    form: str  # one of FORMATS
    telling: bool | str = False
    top_k: int | None = None
    batch: int = 32  # lists decoded at once


@dataclass(frozen=True)
class Share:
    """A range of rows."""

    first: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.first:012d}-{self.first + self.count - 1:012d}"


@dataclass(frozen=True)
class Job:
    """See the module's docstring."""

    model: str
    fingerprint: str  # of the model's files
    source: str
    kind: str
    files: tuple[File, ...]
    carried: tuple[str, ...]
    per_share: int
    wish: Wish

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def shares(self) -> list[Share]:
        """All of them, in order."""
        every = range(0, self.rows, self.per_share)
        return [Share(first, min(self.per_share, self.rows - first)) for first in every]

    def part(self, share: Share) -> str:
        """The file of a share's rankings."""
        return f"part-{share.name}.{self.wish.form}"


def entry_of(share: Share) -> str:
    """A share's file in the ledger."""
    return f"{LEDGER}/{share.name}.json"


def fingerprint_of(model: Path) -> str:
    return fingerprint(read_manifest(model))


def begun(
    model: Path, source: str, output: Place, wish: Wish, *, workers: int, per_share: int = 0
) -> Job:
    """See the module's docstring; `per_share` 0: as suits the size. What stands keeps its own."""
    read = Place(source)
    kind, files = survey(read)
    job = Job(
        model=str(model.absolute()),
        fingerprint=fingerprint_of(model),
        source=str(read),
        kind=kind,
        files=tuple(files),
        carried=tuple(carried(read, kind, files)),
        per_share=1,
        wish=wish,
    )
    taken = [column for column in job.carried if column in OWN]
    if taken:
        raise ConfigError(f"{read}: the column {taken[0]} is called like one of the output's")
    note = output.read_json(NOTE)
    if note is None:
        if any(name.startswith("part-") for name in output.names()):
            raise ConfigError(f"{output}: holds part files of something else ({NOTE} is missing)")
        even = -(-job.rows // (workers * TURNS))
        size = per_share or min(MOST, max(even, min(wish.batch, -(-job.rows // workers)), 1))
        job = Job(**{**vars(job), "per_share": size})
        output.make()
        output.write_json(NOTE, asdict(job))
        return job
    stands = job_of(note, output)
    job = Job(**{**vars(job), "per_share": stands.per_share})
    if (job.fingerprint, job.rows) != (stands.fingerprint, stands.rows) or job != stands:
        _refuse(output, job, stands)
    return job


def _refuse(output: Place, job: Job, stands: Job) -> None:
    """Whatever makes other answers, or other rows of them, is another batch."""
    if job.fingerprint != stands.fingerprint:
        raise ConfigError(f"{output}: holds rankings by another model ({stands.model})")
    pairs = zip(job.files, stands.files, strict=False)
    other = next((new.name for new, old in pairs if new.sha256 != old.sha256), None)
    if other is not None or len(job.files) != len(stands.files) or job.kind != stands.kind:
        named = f": {other} differs" if other else ""
        raise ConfigError(f"{output}: holds rankings of another input ({stands.source}{named})")
    for name in ("form", "telling", "top_k"):
        old, new = getattr(stands.wish, name), getattr(job.wish, name)
        if old != new:
            said = {"form": "--format", "telling": "the reasoning", "top_k": "--top-k"}[name]
            raise ConfigError(f"{output}: was begun with {said} {old}, not {new}")


def job_of(note: Any, output: Place) -> Job:
    """A note, read back."""
    try:
        files = tuple(File(**file) for file in note["files"])
        more = {"files": files, "carried": tuple(note["carried"]), "wish": Wish(**note["wish"])}
        return Job(**{**note, **more})
    except (KeyError, TypeError):
        raise ArtifactError(f"{output}/{NOTE}: not the note of a batch") from None


def opened(output: Place) -> Job:
    """The batch whose output this is."""
    return job_of(output.read_json(NOTE), output)


def standing(job: Job, output: Place) -> set[str]:
    """The names of the shares that need no more work."""
    known = {share.name for share in job.shares()}
    found = {name.partition("/")[2].removesuffix(".json") for name in output.names(LEDGER)}
    return known & found


@dataclass(frozen=True)
class Summary:
    """What became of a batch."""

    rows: int  # of the source
    ranked: int  # that have a ranking now
    set_aside: int  # that could not be ranked
    by_worker: Counter[str]  # rows, of every command that worked here


def finished(job: Job, output: Place) -> Summary:
    """Check that every row is accounted for, and gather what was set aside."""
    aside: list[dict[str, Any]] = []
    ranked, by_worker = 0, Counter[str]()
    for share in job.shares():
        entry = output.read_json(entry_of(share))
        if entry is None or entry["ranked"] + len(entry["set_aside"]) != share.count:
            raise ArtifactError(f"{output}/{entry_of(share)}: does not account for its rows")
        ranked += entry["ranked"]
        by_worker[entry["worker"]] += share.count
        aside += entry["set_aside"]
    lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in aside)
    output.write(SET_ASIDE, "".join(lines).encode())
    return Summary(job.rows, ranked, len(aside), by_worker)


def told_of(row: int, files: Sequence[File]) -> dict[str, Any]:
    """Where a row stands in the input."""
    left = row
    for file in files:
        if left < file.rows:
            return {"row": row, **({"file": file.name} if file.name else {}), "at": left}
        left -= file.rows
    raise AssertionError("a row beyond the input")
