"""One worker: a share of rows in, its part file and its ledger entry out.

Contract: `Worker(output, name).do(share)` ranks the rows of a share and writes both files; what it
writes depends on the share alone, so it may be done again, by anybody, at any time. A row that
cannot be read, resolved or decoded is set aside with the reason, and costs no other: when a batch
fails, its rows are ranked again one by one. A share at which workers died is, from the third time
on, ranked row by row with a note of the row; one that two more of them died at is set aside too.
Not here: who works and when (`processes`, `on_ray`), what stands (`job`).
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffgr2.bulk.job import (
    DECODED,
    FACTS,
    OWN,
    Share,
    entry_of,
    fingerprint_of,
    opened,
    told_of,
)
from diffgr2.bulk.places import Place, arrow
from diffgr2.bulk.sources import Reader, Row
from diffgr2.errors import ArtifactError, DataError, Diffgr2Error, first_line
from diffgr2.rerank.query import arguments_of
from diffgr2.rerank.reranker import Reranker, name_of
from diffgr2.rerank.result import RankResult

CAREFUL_FROM = 3  # deaths at a share
DEADLY_FROM = 2  # deaths at one row of it
TURN = 617  # rows by which tries of a share begin apart


def reason_of(error: Exception) -> str:
    """Why a row was set aside, in one line."""
    said = " ".join(str(error).split()) if isinstance(error, Diffgr2Error) else first_line(error)
    return said if isinstance(error, Diffgr2Error) else f"{type(error).__name__}: {said}"


class Tries:
    """How often workers died at a share, as a file beside its entry."""

    def __init__(self, output: Place, share: Share) -> None:
        self.output, self.name = output, f"_trying/{share.name}.json"
        stands = output.read_json(self.name) or {"deaths": -1, "rows": {}, "at": None}
        self.deaths: int = stands["deaths"] + 1
        self.rows: dict[str, int] = dict(stands["rows"])
        if stands["at"] is not None:
            self.rows[str(stands["at"])] = self.rows.get(str(stands["at"]), 0) + 1
        self.note(None)

    @property
    def careful(self) -> bool:
        return self.deaths >= CAREFUL_FROM

    def deadly(self, row: int) -> bool:
        return self.rows.get(str(row), 0) >= DEADLY_FROM

    def note(self, row: int | None) -> None:
        """What is ranked now."""
        value = {"deaths": self.deaths, "rows": self.rows, "at": row}
        self.output.write_json(self.name, value)

    def over(self) -> None:
        self.output.remove(self.name)


class Worker:
    """See the module's docstring."""

    def __init__(self, output: str, name: str) -> None:
        self.output, self.name = Place(output), name
        self.job = opened(self.output)
        model = Path(self.job.model)
        if fingerprint_of(model) != self.job.fingerprint:
            raise ArtifactError(f"{model}: is another model than when this batch began")
        self.reranker = Reranker.from_pretrained(model)
        self.reader = Reader(Place(self.job.source), self.job.kind, self.job.files)
        self._types: Any = None  # of the columns that are carried along

    def do(self, share: Share) -> dict[str, Any]:
        """The share's ledger entry, which stands then."""
        begun, used, tries = time.monotonic(), time.process_time(), Tries(self.output, share)
        rows = enumerate(self.reader.rows(share.first, share.count), share.first)
        ranked: dict[int, Row] = {}
        aside: dict[int, str] = {}
        if tries.careful:
            self._one_by_one(rows, tries, ranked, aside)
        else:
            self._rank(rows, ranked, aside)
        part, data = self.job.part(share), self._part(ranked, aside)
        self.output.write(part, data)
        entry = {
            "file": part,
            "sha256": hashlib.sha256(data).hexdigest(),
            "ranked": len(ranked),
            "set_aside": [
                {**told_of(row, self.job.files), "reason": aside[row]} for row in sorted(aside)
            ],
            "worker": self.name,
            "seconds": round(time.monotonic() - begun, 3),
            "cpu_seconds": round(time.process_time() - used, 3),
        }
        self.output.write_json(entry_of(share), entry)
        tries.over()
        return entry

    # ------------------------------------------------------------------------------ ranking

    def _one_by_one(
        self,
        rows: Iterable[tuple[int, Row | DataError]],
        tries: Tries,
        ranked: dict[int, Row],
        aside: dict[int, str],
    ) -> None:
        # Each try begins elsewhere: else what kills workers that have just begun, as a machine that
        # is taken away, would be laid at the door of a share's first rows.
        every = list(rows)
        begin = tries.deaths * TURN % max(len(every), 1)
        for row, given in every[begin:] + every[:begin]:
            if tries.deadly(row):
                aside[row] = "workers died while they ranked it"
                continue
            tries.note(row)
            self._rank([(row, given)], ranked, aside)

    def _rank(
        self,
        rows: Iterable[tuple[int, Row | DataError]],
        ranked: dict[int, Row],
        aside: dict[int, str],
    ) -> None:
        """Each row's answer, or why there is none."""
        batch: list[tuple[int, Row]] = []
        for row, given in rows:
            if isinstance(given, DataError):
                aside[row] = reason_of(given)
                continue
            batch.append((row, given))
            if len(batch) == self.job.wish.batch:
                self._together(batch, ranked, aside)
                batch = []
        self._together(batch, ranked, aside)

    def _together(
        self, batch: list[tuple[int, Row]], ranked: dict[int, Row], aside: dict[int, str]
    ) -> None:
        """Rows that share forwards; where one of them fails, each by itself."""
        tasks = []
        for row, given in batch:
            try:
                tasks.append((row, given, self.reranker.prepare(**self._request(given))))
            except Exception as error:  # also what nobody foresaw costs this row alone
                aside[row] = reason_of(error)
        try:
            self.reranker.run([task for _, _, task in tasks], batch=self.job.wish.batch)
            answers = {row: self._answer(row, given, task) for row, given, task in tasks}
        except Exception as error:
            if len(tasks) == 1:
                aside[tasks[0][0]] = reason_of(error)
                return
            for row, given, _ in tasks:
                self._together([(row, given)], ranked, aside)
            return
        ranked |= answers

    def _request(self, row: Row) -> dict[str, Any]:
        carried = self.job.carried
        return arguments_of({name: v for name, v in row.items() if name not in carried})

    def _answer(self, row: int, given: Row, task: Any) -> Row:
        wish = self.job.wish
        telling: Any = wish.telling
        result: RankResult = task.result(return_reasoning=telling, top_k=wish.top_k)
        decided = result.decided().get("decisions")
        facts = result.ranking()
        return {
            "row": row,
            "items": [name_of(item) for item in result.items],
            "order": list(result.order),
            "scores": list(result.scores),
            "levels": list(result.levels),
            "placed": list(result.placed),
            "warnings": list(result.warnings),
            **{name: facts[name] for name in FACTS},
            "reasoning": result.reasoning,
            "decisions": decided and json.dumps(decided, ensure_ascii=False),
            **{name: result.decode[name] for name in DECODED},
            **{name: given.get(name) for name in self.job.carried},
        }

    # ------------------------------------------------------------------------------ writing

    def _part(self, ranked: dict[int, Row], aside: dict[int, str]) -> bytes:
        """The part file's bytes; a row that no file can hold is set aside too."""
        try:
            return self._encoded([ranked[row] for row in sorted(ranked)])
        except Exception:
            for row in sorted(ranked):
                try:
                    self._encoded([ranked[row]])
                except Exception as error:
                    aside[row] = reason_of(error)
                    del ranked[row]
            return self._encoded([ranked[row] for row in sorted(ranked)])

    def _encoded(self, rows: list[Row]) -> bytes:
        """A part file's bytes."""
        if self.job.wish.form == "jsonl":
            lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            return "".join(lines).encode("utf-8", "backslashreplace")
        pa, parquet = arrow("pyarrow"), arrow("pyarrow.parquet")
        table, sink = pa.Table.from_pylist(rows, schema=self._schema(pa)), io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()

    def _schema(self, pa: Any) -> Any:
        """The same types in every part file, whatever its rows hold."""
        texts, text = pa.list_(pa.string()), pa.string()
        types = {"row": pa.int64(), "items": texts, "order": pa.list_(pa.int32())}
        types |= dict.fromkeys(("scores", "levels"), pa.list_(pa.float64()))
        types |= dict.fromkeys(("placed", "warnings", "failures"), texts)
        types |= dict.fromkeys(("valid", "repaired", "fallback", "identity"), pa.bool_())
        types |= dict.fromkeys(("reasoning", "decisions", "decoder"), text)
        types |= {"sure": pa.float64(), "tokens": pa.int64(), "forwards": pa.int64()}
        fields = [pa.field(name, types[name]) for name in OWN]
        if self._types is None:
            self._types = self.reader.types()
        fields += [pa.field(name, self._types.get(name, text)) for name in self.job.carried]
        return pa.schema(fields)
