"""From a file of a shop's own lists, and interactions if there are any, to a dataset.

Contract: `import_own(data, lists, seed, quarantine)` gives the `Dataset` and its `OwnLists`. A list
sees what its user bought before its moment: at an earlier time, or at an earlier position; without
a moment all of it. A history that comes with the list takes that one's place; where it is no
beginning of what is known of the user, it has a row of its own, and `person_L` says whose it is.
Nobody is dropped for having bought little, and items that stand in lists alone join the catalogue.
A list whose position lies behind its user's history is put aside. In the report

    list_lines_in == candidates + merged rows + rows of single lists + list_lines_rejected

but for rows that say what came of a list outside it (outcome_rows_outside). Not here: how a row is
read (`own_rows`), what can hardly be meant (`own_doubts`), and which lists train
(`candidates.own_split`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from diffgr2.config import DataConfig
from diffgr2.data.gather import RawData, coded
from diffgr2.data.lines import Intake
from diffgr2.data.own_doubts import doubts
from diffgr2.data.own_rows import RawList, RawLists, read_own
from diffgr2.data.own_store import OwnLists
from diffgr2.data.records import read_items, read_raw
from diffgr2.data.split import catalogue_of, coverage, drop_repeats, number, ordered, tie_spans
from diffgr2.data.store import Dataset
from diffgr2.errors import DataError
from diffgr2.own import ListsConfig

EMPTY = {"user": pl.String, "item": pl.String, "time": pl.Int64, "position": pl.Int64}


@dataclass
class Past:
    """One user's interactions, oldest first."""

    items: list[str] = field(default_factory=list)
    times: list[int] = field(default_factory=list)  # milliseconds
    positions: list[int] = field(default_factory=list)


@dataclass
class Seen:
    """Which history each list sees: a row of the dataset, and how much of it."""

    rows: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    persons: list[str] = field(default_factory=list)
    kept: list[RawList] = field(default_factory=list)
    more: dict[str, tuple[str, ...]] = field(default_factory=dict)  # row -> its items
    strangers: int = 0  # lists of users without any history


def import_own(
    data: DataConfig, lists: ListsConfig, seed: int, quarantine: Path | None = None
) -> tuple[Dataset, OwnLists]:
    """Read, check, join and number."""
    assert lists.file is not None
    if quarantine is not None:
        quarantine.unlink(missing_ok=True)
    raw, report = read_raw(data, quarantine) if data.interactions else (None, {})
    path = Path(lists.file)
    intake = Intake(path.name, quarantine, lists.max_bad_share)
    own = read_own(path, lists, intake)
    events = pl.DataFrame(schema=EMPTY) if raw is None else _events(raw, data)
    seen = histories_seen(own, _pasts(events, own), raw, intake)
    intake.finish()
    events = coded(pl.concat([events.select(*EMPTY), _rows(seen.more)]))

    items = {item for one in seen.kept for item in one.items}
    items |= {one.outside[0] for one in seen.kept if one.outside}
    wanted = items | set(events["item"])
    given = (own, seen.kept, seen.strangers, lists)
    texts, told, warnings = {}, {}, doubts(*given, know_users=raw is not None)
    if data.items:
        texts, told, read = read_items(data, wanted, quarantine)
        if lost := len(items - texts.keys()):
            warnings.append(f"{lost} of {len(items)} items of lists have no record in {read.name}")
    histories, raw_items, raw_users = number(events, seed, {*seen.rows, *seen.persons}, items)
    catalogue = catalogue_of(raw_items, texts)
    report |= told | _facts(own, seen, intake, data, raw, events)
    report |= {"users": len(raw_users), "items": len(raw_items), **coverage(catalogue)}
    report |= {"warnings": warnings} if warnings else {}
    dataset = Dataset(histories, catalogue, raw_users, report)
    return dataset, numbered(own, seen, raw_items, raw_users)


def _events(raw: RawData, data: DataConfig) -> pl.DataFrame:
    """The interactions in order; own lists keep everybody, so there is no core."""
    if data.tie_order == "shuffle" and not raw.timed:
        raise DataError(f"{raw.source}: tie_order shuffle needs timestamps")
    used = drop_repeats(raw, data.source == "amazon2023")
    kept = ordered(used, data).cast({"user": pl.String, "item": pl.String})
    return kept if raw.placed else _counted(kept)


def _counted(events: pl.DataFrame) -> pl.DataFrame:
    """Positions as places in the user's history, where the file has none of its own."""
    return events.with_columns(position=pl.int_range(pl.len()).over("user").cast(pl.Int64))


def _pasts(events: pl.DataFrame, own: RawLists) -> dict[str, Past]:
    """What the users of lists bought."""
    users = {one.user for one in own.lists if one.user is not None}
    mine = events.filter(pl.col("user").is_in(list(users))) if users else events.head(0)
    pasts: dict[str, Past] = {}
    for user, item, time, position in mine.select(*EMPTY).iter_rows():
        past = pasts.setdefault(user, Past())
        past.items.append(item)
        past.times.append(time)
        past.positions.append(position)
    return pasts


def _rows(more: dict[str, tuple[str, ...]]) -> pl.DataFrame:
    """Histories that came with lists, as interactions without a clock."""
    flat = [(row, item, 0, at) for row, items in more.items() for at, item in enumerate(items)]
    return pl.DataFrame(flat, schema=EMPTY, orient="row")


# -------------------------------------------------------------------------- whose history, how far


def kind_of_moments(own: RawLists, raw: RawData | None) -> str:
    """Whether moments are times or positions; a mixture is an error."""
    kinds = {one.moment.kind for one in own.lists if one.moment is not None}
    if len(kinds) > 1:
        raise DataError(
            f"{own.file}: {own.names['moment']}: some moments are times and some are positions"
        )
    kind = kinds.pop() if kinds else "none"
    bare = any(one.history is None for one in own.lists)
    if kind == "time" and raw is not None and bare and not raw.timed:
        raise DataError(
            f"{own.file}: {own.names['moment']}: moments are times, but {raw.source} has none "
            "(data.columns.timestamp), so nobody knows what came before them"
        )
    return kind


def histories_seen(
    own: RawLists, pasts: dict[str, Past], raw: RawData | None, intake: Intake
) -> Seen:
    """Which row of the dataset each list sees, and how far."""
    kind_of_moments(own, raw)
    seen, inline = Seen(), dict[str, list[int]]()
    for one in own.lists:
        past = pasts.get(one.user or "")
        whole = len(past.items) if past else 0
        end = whole if one.history is None else len(one.history)
        if one.history is None and one.moment is not None and past:
            moment = one.moment.value
            before = past.times if one.moment.kind == "time" else past.positions
            end = sum(value < moment for value in before)
            if one.moment.kind == "position" and moment > max(before) + 1:
                reason = f"list {one.name[:80]}: position {moment} lies behind its user's history"
                intake.reject(one.line, reason, one.text)
                intake.rejected += one.lines - 1
                continue
        person = one.user if one.user is not None else f"list {one.name}"
        known = tuple(past.items[:end]) if past else ()
        if one.history is not None and one.history != known:
            inline.setdefault(person, []).append(len(seen.kept))
        seen.strangers += one.user is not None and one.history is None and not past
        seen.rows.append(person)
        seen.ends.append(end)
        seen.persons.append(person)
        seen.kept.append(one)
    if not seen.kept:
        raise DataError(f"{own.file}: no list is left; first: {intake.first[0]}")
    taken = {*pasts, *seen.persons}
    for person, places in inline.items():
        _own_rows(person, places, seen, taken, has_past=person in pasts)
    return seen


def _own_rows(
    person: str, places: Sequence[int], seen: Seen, taken: set[str], *, has_past: bool
) -> None:
    """Rows for histories that came with a person's lists, the longest first: a beginning of one
    that stands already needs none."""
    rows: list[tuple[str, tuple[str, ...]]] = []
    for place in sorted(places, key=lambda at: (-seen.ends[at], -at)):
        items = seen.kept[place].history or ()
        row = next((row for row, held in rows if held[: len(items)] == items), None)
        if row is None:
            first = not rows and not has_past
            row = person if first else _fresh(f"{person} (list {seen.kept[place].name})", taken)
            rows.append((row, items))
            seen.more[row] = items
        seen.rows[place] = row


def _fresh(name: str, taken: set[str]) -> str:
    """A row's name that nobody has."""
    while name in taken:
        name += "'"
    taken.add(name)
    return name


# ------------------------------------------------------------------------------------- the result


def numbered(own: RawLists, seen: Seen, raw_items: list[str], raw_users: list[str]) -> OwnLists:
    """The lists under the dataset's numbers."""
    item = {name: at for at, name in enumerate(raw_items)}
    user = {name: at for at, name in enumerate(raw_users)}
    lists = seen.kept
    rows = np.array([row for one in lists for row in one.rows], dtype=np.int64)
    columns_G = [feature.value_N[rows] for feature in own.features]
    target = []
    for one in lists:
        best = max(zip(one.gains, one.items, strict=True), key=lambda pair: pair[0])
        if one.outside and one.outside[1] > best[0]:
            best = (one.outside[1], one.outside[0])
        target.append(item[best[1]] if best[0] > 0 else -1)

    def flat(name: str, kind: Any) -> np.ndarray:
        return np.array([value for one in lists for value in getattr(one, name)], dtype=kind)

    kinds = {one.moment.kind for one in lists if one.moment}
    scale = 1000 if kinds == {"time"} else 1
    return OwnLists(
        offsets_L1=np.cumsum([0, *(len(one.items) for one in lists)], dtype=np.int64),
        user_L=np.array([user[row] for row in seen.rows], dtype=np.int32),
        end_L=np.array(seen.ends, dtype=np.int32),
        person_L=np.array([user[person] for person in seen.persons], dtype=np.int32),
        moment_L=np.array(
            [one.moment.value // scale if one.moment else -1 for one in lists], dtype=np.int64
        ),
        target_L=np.array(target, dtype=np.int32),
        item_N=np.array([item[name] for one in lists for name in one.items], dtype=np.int32),
        score_N=flat("scores", np.float32),
        gain_N=flat("gains", np.float32),
        shown_N=flat("shown", np.int32),
        feature_NG=np.stack(columns_G, 1) if columns_G else np.empty((len(rows), 0), np.float32),
        names=[one.name for one in lists],
        features=[{"name": f.name, "kind": f.kind, "words": list(f.words)} for f in own.features],
        moment=kinds.pop() if kinds else "none",
        scored=any(not np.isnan(score) for one in lists for score in one.scores),
        inline=any(one.history is not None for one in lists),
    )


def _facts(
    own: RawLists,
    seen: Seen,
    intake: Intake,
    data: DataConfig,
    raw: RawData | None,
    events: pl.DataFrame,
) -> dict[str, Any]:
    """What `report.json` says of the lists."""
    lists = seen.kept
    length_L = np.array([len(one.items) for one in lists])
    won_L = np.array([max(one.gains) > 0 for one in lists])
    scored = [not np.isnan(score) for one in lists for score in one.scores]
    timed = raw is not None and raw.timed
    return {
        "source": data.source,
        "lists_file": own.file,
        "list_lines_in": intake.lines,
        "list_lines_rejected": intake.rejected,
        "first_lists_rejected": intake.first,
        "lists": len(lists),
        "list_users": len({one.user for one in lists if one.user is not None}),
        "lists_without_user": sum(one.user is None for one in lists),
        "list_candidates": int(length_L.sum()),
        "shortest_list": int(length_L.min()),
        "median_list": float(np.median(length_L)),
        "longest_list": int(length_L.max()),
        "lists_with_outcome": int(won_L.sum()),
        "share_with_outcome": round(float(won_L.mean()), 6),
        "outcomes": int(sum(gain > 0 for one in lists for gain in one.gains)),
        "outcome_rows_outside": sum(one.unplaced for one in lists),
        "outcomes_outside": sum(one.outside is not None for one in lists),
        "rows_merged": own.merged,
        "single_lists": own.single,
        "list_order": own.order,
        "list_columns": " ".join(
            f"{word}={name}" for word, name in own.names.items() if "." not in word
        ),
        "moments": next((one.moment.kind for one in lists if one.moment), "none"),
        "inline_histories": sum(one.history is not None for one in lists),
        "scores_known": round(float(np.mean(scored)), 6) if "score" in own.names else None,
        "lists_without_history": sum(end == 0 for end in seen.ends),
        "list_users_unknown": seen.strangers,
        "interactions": len(events),
        "k_core": 0,
        "tie_order": data.tie_order,
        "tie_seed": data.tie_seed,
        "timed": timed,
        "tie_groups": len(tie_spans(events)) if timed else 0,
        "features": ", ".join(f"{f.name} ({f.kind})" for f in own.features) or "none",
        "feature_values_missing": int(sum(np.isnan(f.value_N).sum() for f in own.features)),
    }
