"""From what a caller writes to items: ids, titles, semantic IDs, or words of an unknown item.

Contract: `Names.resolve(entries, field)` gives one `Item` per entry, known to the catalogue or a
stranger placed by its words; text resolves as raw id, else semantic ID, else exact title, else free
text. Whatever cannot be resolved is one UnresolvedError that names every such index and why;
nothing is dropped silently. User text is only ever data: no reserved token in it means anything.
Not here: prompts and evidence (`world`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffgr2.errors import DataError
from diffgr2.items.encode import Encoder
from diffgr2.items.sids import SemanticIds, parse_sid
from diffgr2.items.vectors import item_text
from diffgr2.rerank.strangers import Stranger
from diffgr2.types import Catalogue

KEYS = ("id", "sid", "title", "text")
"""What an object must have at least one of."""


class ListProblem(DataError):  # noqa: N818
    """Entries of a list that cannot be used; `problems` says why, by index."""

    def __init__(self, field: str, problems: dict[int, str]) -> None:
        self.field, self.problems = field, problems
        super().__init__("; ".join(f"{field}[{index}]: {why}" for index, why in problems.items()))


class UnresolvedError(ListProblem):
    """Entries that name no item."""


@dataclass(frozen=True)
class Item:
    """One resolved entry; `number` is None for a stranger."""

    codes: tuple[int, ...]
    number: int | None = None
    stranger: Stranger | None = None
    vector_E: np.ndarray | None = None  # a stranger's


class Names:
    """Look-ups over one catalogue."""

    def __init__(self, catalogue: Catalogue, sids: SemanticIds, encoder: Encoder) -> None:
        self.catalogue, self.sids, self.encoder = catalogue, sids, encoder
        self._id = {raw: item for item, raw in enumerate(catalogue.raw_ids)}
        self._title: dict[str, list[int]] = {}
        for item, title in enumerate(catalogue.titles):
            if title:
                self._title.setdefault(title, []).append(item)

    def resolve(self, entries: Sequence[Any], field: str) -> list[Item]:
        """See the module's docstring."""
        found: list[int | Stranger | None] = []
        problems: dict[int, str] = {}
        for index, entry in enumerate(entries):
            try:
                found.append(self._one(entry))
            except DataError as error:
                problems[index] = str(error)
                found.append(None)
        vectors, codes = self._placed(found, problems)
        if problems:
            raise UnresolvedError(field, dict(sorted(problems.items())))
        items = []
        for index, what in enumerate(found):
            if isinstance(what, Stranger):
                items.append(Item(codes[index], None, what, vectors[index]))
            elif what is not None:
                items.append(self.item(what))
        return items

    def item(self, number: int) -> Item:
        """The catalogue's item of this number."""
        return Item(self.sids.codes(number), number)

    def _placed(
        self, found: list[int | Stranger | None], problems: dict[int, str]
    ) -> tuple[dict[int, np.ndarray], dict[int, tuple[int, ...]]]:
        """Vectors and codes of the strangers, all encoded in one call."""
        strangers = {i: what for i, what in enumerate(found) if isinstance(what, Stranger)}
        if not strangers:
            return {}, {}
        vectors_SE, codes_SL = self.encoder.encode(
            [item_text(s.title, s.brand, s.categories, s.description) for s in strangers.values()]
        )
        for index, vector_E in zip(strangers, vectors_SE, strict=True):
            if not vector_E.any():
                problems[index] = "no such item, and none of its words is known"
        return (
            dict(zip(strangers, vectors_SE, strict=True)),
            {i: tuple(c) for i, c in zip(strangers, codes_SL.tolist(), strict=True)},
        )

    def _one(self, entry: Any) -> int | Stranger:
        if isinstance(entry, Mapping):
            return self._object(entry)
        if isinstance(entry, str | int | np.integer) and not isinstance(entry, bool):
            return self._text(str(entry))
        raise DataError("expected text or an object")

    def _text(self, text: str) -> int | Stranger:
        if not text.strip():
            raise DataError("empty text")
        known = self._known(text)
        return Stranger(text) if known is None else known

    def _known(self, text: str) -> int | None:
        """The item that a text names, None if it is free text."""
        if text in self._id:
            return self._id[text]
        codes = parse_sid(text)
        if codes is not None:
            return self._sid(codes)
        items = self._title.get(text, [])
        if len(items) > 1:
            raise DataError(f"{len(items)} items have this title: give an id")
        return items[0] if items else None

    def _sid(self, codes: tuple[int, ...]) -> int:
        item = self.sids.item(codes) if max(codes) < self.sids.n_codes else None
        if item is None:
            raise DataError("no item has this semantic ID")
        return item

    def _object(self, entry: Mapping[str, Any]) -> int | Stranger:
        given = {key: value for key, value in entry.items() if value not in (None, "", [], ())}
        for key in (*KEYS, "brand", "description"):
            if key in given and not isinstance(given[key], str):
                raise DataError(f"{key}: expected text")
        if not any(key in given for key in KEYS):
            raise DataError(f"expected one of {', '.join(KEYS)}")
        if given.get("id") in self._id:
            return self._id[given["id"]]
        if "sid" in given:
            codes = parse_sid(given["sid"])
            if codes is None:
                raise DataError("sid: not a semantic ID")
            return self._sid(codes)
        words = given.get("title") or given.get("text")
        if words is None:
            raise DataError("no such id in the catalogue")
        known = self._known(words)
        if known is not None:
            return known
        description = given.get("description") or (
            given.get("text", "") if "title" in given else ""
        )
        return Stranger(words, given.get("brand", ""), self._path(given), description)

    @staticmethod
    def _path(given: Mapping[str, Any]) -> tuple[str, ...]:
        path = given.get("categories", [])
        listed = isinstance(path, Sequence) and not isinstance(path, str)
        if not listed or not all(isinstance(name, str) for name in path):
            raise DataError("categories: expected a list of texts")
        return tuple(path)

    def title(self, item: Item) -> str:
        """What to call it in an explanation."""
        if item.stranger is not None:
            return item.stranger.title
        assert item.number is not None
        return self.catalogue.titles[item.number] or f"item {self.catalogue.raw_ids[item.number]}"
