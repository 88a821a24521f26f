"""The recipe that `init` writes: by what columns were taken for, tried on the files, as text.

Contract: `drafted(uses, folder)` reads the files once as a run would, chooses a k-core that keeps
enough, and returns a `Draft`, whose `text` has at most fifteen lines and loads as the values that
were tried. Not here: what columns are for (`data.guess`), asking (`init`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml

from diffgr2.choices import Counted
from diffgr2.config import DataConfig
from diffgr2.data.guess import TEXTS, Use, direction
from diffgr2.data.hindsight import outcomes_of
from diffgr2.data.own_lists import import_own
from diffgr2.data.records import import_dataset
from diffgr2.errors import DataError
from diffgr2.own import LIST_WORDS
from diffgr2.recipe import PATHS, validate
from diffgr2.stages.effort import Size, counted, minutes, speed, work_of

CORES = (5, 3, 2, 0)
KEPT = 0.5  # share of interactions that a core should keep
MOST_UP = 2  # folders up that a path in the recipe climbs
DAY_MS = 86_400_000


@dataclass
class Draft:
    """A recipe on its way."""

    values: dict[str, Any]  # paths from the recipe's folder
    facts: dict[str, Any] = field(default_factory=dict)  # what an import found
    notes: dict[str, str] = field(default_factory=dict)  # key -> the comment behind it
    told: list[str] = field(default_factory=list)  # lines for the terminal
    minutes: tuple[float, float] = (0.0, 0.0)  # to the teacher, of all

    def next(self, out: Path) -> str:
        """The command that follows, and its time."""
        teacher, whole = (counted(max(1, round(value)), "minute") for value in self.minutes)
        first = f"a first table after {teacher} with --goal teacher"
        return f"diffgr2 run {out}   (about {whole} on this machine; {first})"

    def text(self, out: Path, paths: list[Path]) -> str:
        """The recipe, with a comment where it says more than the key."""
        files = " ".join(path.name for path in paths)
        lines = [f"# {out.name}: made by diffgr2 init {files}; other keys: diffgr2 recipes demo"]
        for section, value in self.values.items():
            if not isinstance(value, dict):
                lines.append(self._line(section, section, value))
                continue
            lines.append(f"{section}:")
            lines += [self._line(f"{section}.{k}", f"  {k}", v) for k, v in value.items()]
        return "\n".join([*lines, f"# next: {self.next(out)}"]) + "\n"

    def _line(self, place: str, key: str, value: Any) -> str:
        shown = yaml.safe_dump(
            value, default_flow_style=True, width=10**9, sort_keys=False, allow_unicode=True
        ).removesuffix("\n...\n").rstrip()  # fmt: skip
        line = f"{key}: {shown}"
        return f"{line}  # {self.notes[place]}" if place in self.notes else line


def drafted(uses: Mapping[str, Use], folder: Path) -> Draft:
    """See the module's docstring."""
    draft = Draft(_values(uses, folder), notes=_notes(uses))
    recipe = validate(_from_here(draft.values, folder), "recipe")
    if "lists" in uses:
        draft.facts = import_own(recipe.data, recipe.lists, 0)[0].report
    else:
        _try_cores(draft, folder)
    draft.told += _findings(draft.facts)
    if "items" not in uses:
        draft.told.append("no file of items: they will be told by their neighbours, without texts")
    draft.minutes = minutes(work_of(recipe, _size(draft, uses)), speed())
    return draft


def _values(uses: Mapping[str, Use], folder: Path) -> dict[str, Any]:
    """What the recipe says."""

    def path(role: str) -> str:
        whole = uses[role].peek.path.absolute()
        near = os.path.relpath(whole, folder.absolute())
        return str(whole) if near.count("..") > MOST_UP else near

    shapes = {uses[role].peek.source for role in ("interactions", "items") if role in uses}
    source = shapes.pop() if len(shapes) == 1 else "table"
    data: dict[str, Any] = {}
    if "interactions" in uses:
        data = {"source": source, "interactions": path("interactions")}
    if "items" in uses:
        data["items"] = path("items")
    if source == "table":
        data |= _columns(uses)
    if "interactions" in uses and _whole_days(uses["interactions"]):
        data["tie_order"] = "shuffle"
    values: dict[str, Any] = {"threads": min(2, os.cpu_count() or 1)}
    values |= {"data": data} if data else {}
    if "lists" in uses:
        values["lists"] = {"file": path("lists"), **_lists(uses["lists"])}
    return values


def _columns(uses: Mapping[str, Use]) -> dict[str, Any]:
    """`columns` and `item_columns`, where a file's names are not our words."""
    result: dict[str, Any] = {}
    if "interactions" in uses:
        words = ("user", "item", "timestamp", "position")
        result["columns"] = _named(uses["interactions"], words)
    if "items" in uses:
        own, of_both = _named(uses["items"], ("item", *TEXTS)), result.get("columns", {})
        if "item" in of_both and "item" not in own:
            own = {"item": "item", **own}  # the interactions' name for it is not this file's
        result["item_columns"] = {w: name for w, name in own.items() if of_both.get(w) != name}
    return {key: value for key, value in result.items() if value}


def _named(use: Use, words: tuple[str, ...]) -> dict[str, str]:
    found = {word: use.column(word) for word in words}
    return {word: name for word, name in found.items() if name is not None and name != word}


def _whole_days(use: Use) -> bool:
    """Whether a clock knows days only, so that the file's order within one may mean nothing."""
    name = use.column("timestamp")
    moments = use.peek.columns[name].moments_ms if name else []
    return bool(moments) and all(moment % DAY_MS == 0 for moment in moments)


def _lists(use: Use) -> dict[str, Any]:
    """The section `lists` but for its file."""
    known = outcomes_of(use.peek)
    features: dict[str, Any] = {}
    for column in use.columns("feature"):
        name = "".join(c if c.isalnum() or c in "_-" else "_" for c in column).strip("_-")[:40]
        name = f"{name[:36]}_own" if name in get_args(Counted) or not name else name
        kind = use.peek.columns[column].kind
        own: dict[str, Any] = {} if name == column else {"column": column}
        features[name] = own | ({} if kind == "text" else {"good": direction(column)})
    section: dict[str, Any] = {"columns": _named(use, LIST_WORDS)}
    section["gains"] = {name: known.get(name, 1.0) for name in use.columns("outcome")}
    section["features"] = features
    return {key: value for key, value in section.items() if value}


def _notes(uses: Mapping[str, Use]) -> dict[str, str]:
    """Comments of the recipe, by the key that they stand behind."""
    notes = {
        "threads": "torch threads",
        "data.columns": "our word: the file's column",
        "data.item_columns": "the same of the item file",
        "data.tie_order": "times are whole days: the order within one is drawn",
        "lists.columns": "our word: the file's column",
        "lists.gains": "what an outcome is worth: a guess, yours to change",
        "lists.features": "which end is good: guesses by name, yours to change",
    }
    if "interactions" in uses:
        use = uses["interactions"]
        timed = use.column("timestamp") or use.column("position") or use.peek.source != "table"
        order = "" if timed else "; no time: the order of the lines is the history"
        notes["data.interactions"] = f"{use.peek.size}{order}" if use.peek.columns else "sequences"
    if "lists" in uses:
        lists = uses["lists"]
        name = lists.column("list")
        n = lists.peek.columns[name].distinct if name else 0
        notes["lists.file"] = f"{n:,} lists, {lists.peek.size}"
    return notes


def _from_here(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same with paths from the working directory."""
    result = {key: dict(part) if isinstance(part, dict) else part for key, part in values.items()}
    for section, key in PATHS:
        if key in result.get(section, {}):
            result[section][key] = os.path.normpath(folder / result[section][key])
    return {"name": "recipe", **result}


def _try_cores(draft: Draft, folder: Path) -> None:
    """Import with the largest core that keeps half of the interactions, or the most there is."""
    data = _from_here(draft.values, folder)["data"]
    best: tuple[float, int, dict[str, Any]] | None = None
    failed: DataError | None = None
    for k in CORES:
        try:
            report = import_dataset(DataConfig.model_validate({**data, "k_core": k}), 0).report
        except DataError as error:
            if "nothing is left" not in str(error):
                raise
            failed = error
            continue
        kept = 1.0 - report["interactions_outside_core"] / max(report["interactions_used"], 1)
        if best is None or kept > best[0]:
            best = (kept, k, report)
        if kept >= KEPT:
            break
    if best is None:
        assert failed is not None
        raise failed
    kept, k, draft.facts = best
    draft.values["data"]["k_core"] = k
    left = f"{draft.facts['users']:,} users and {draft.facts['items']:,} items"
    draft.notes["data.k_core"] = f"{left} with {kept:.0%} of the lines are left"


def _findings(facts: dict[str, Any]) -> list[str]:
    """What the import said, for the terminal."""
    lines = [f"categories {facts['categories']}"] if facts.get("categories") else []
    for kind in ("", "item_", "list_"):
        first = facts.get(f"first_{kind.replace('_', 's_')}rejected", [])
        if n := facts.get(f"{kind}lines_rejected"):
            lines.append(f"set aside: {n} lines{f' ({first[0]})' if first else ''}")
    if "lists" in facts:
        share = facts["share_with_outcome"]
        lines.append(
            f"{facts['lists']:,} lists of {facts['shortest_list']} to {facts['longest_list']}, "
            f"{share:.1%} with an outcome, {facts['lists_without_history']:,} without a history"
        )
    return lines + [f"warning: {text}" for text in facts.get("warnings", [])]


def _size(draft: Draft, uses: Mapping[str, Use]) -> Size:
    """How much data a run will have."""
    facts = draft.facts
    counts = facts["users"], facts["items"], max(facts["interactions"], facts["users"])
    if "lists" not in facts:
        return Size(*counts)
    more = len(uses["lists"].columns("feature"))
    return Size(*counts, fields=10 + more, lists=int(0.7 * facts["lists"]))
