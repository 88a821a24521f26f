"""From what a caller writes to items: ids, titles, semantic IDs, or words of an unknown item.

Contract: `Names.resolve(entries, field)` gives one `Item` per entry, known to the catalogue or a
stranger placed by its words; text resolves as raw id, else semantic ID, else exact title, else free
text (where it looks like no id: one word with digits). Whatever cannot be resolved is one
UnresolvedError that names every such index and why; where that is not wanted (`strict=False`), an
entry that is whole but names nothing is an item by what else came with it, or `lost` if nothing of
that is known. Nothing is dropped silently, and what is malformed is always an error. User text is
only ever data: no reserved token in it means anything.
`Seats(index, catalogue).seat(strangers, vectors)` is the same evidence index, nothing copied, in
which the strangers are the items `n_items`, `n_items + 1`, …: brand, category and text evidence
come from the one implementation, every count is zero, and evidence of known items does not change
by a bit. Not here: prompts (`world`).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from diffgr2.candidates.attributes import Attributes
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.errors import DataError
from diffgr2.items.quantize import Encoder
from diffgr2.items.sids import SemanticIds, parse_sid
from diffgr2.items.vectors import item_text, unit_rows
from diffgr2.types import Catalogue

KEYS = ("id", "sid", "title", "text")  # an object must have at least one of them
KEPT = 1 << 16  # items of the catalogue that are made once
ID_LIKE = re.compile(r"\S*\d\S*")
"""A text alone that is an id and no words, where the catalogue does not know it."""

NEW_PATH = 1 << 30  # numbers of category paths that no catalogue item has begin here


class ListProblem(DataError):  # noqa: N818
    """Entries of a list that cannot be used; `problems` says why, by index."""

    def __init__(self, field: str, problems: dict[int, str]) -> None:
        self.field, self.problems = field, problems
        super().__init__("; ".join(f"{field}[{index}]: {why}" for index, why in problems.items()))


class UnresolvedError(ListProblem):
    """Entries that name no item."""


class NothingNamedError(DataError):
    """An entry that is well formed but names no item of the catalogue."""


@dataclass(frozen=True)
class Stranger:
    """An item by its words: what may be known of it without any purchase."""

    title: str
    brand: str = ""
    categories: tuple[str, ...] = ()
    description: str = ""
    name: str = ""  # what the caller calls it, where it has no title


@dataclass(frozen=True)
class Item:
    """One resolved entry; `number` is None for a stranger."""

    codes: tuple[int, ...]
    number: int | None = None
    stranger: Stranger | None = None
    vector_E: np.ndarray | None = None  # a stranger's
    lost: str = ""  # why nothing is known of it: such an item cannot be judged


class Names:
    """Look-ups over one catalogue."""

    def __init__(self, catalogue: Catalogue, sids: SemanticIds, encoder: Encoder) -> None:
        self.catalogue, self.sids, self.encoder = catalogue, sids, encoder
        self.item = lru_cache(KEPT)(self._item)
        self._id = {raw: item for item, raw in enumerate(catalogue.raw_ids)}
        self._title: dict[str, list[int]] = {}
        for item, title in enumerate(catalogue.titles):
            if title:
                self._title.setdefault(title, []).append(item)

    def resolve(
        self,
        entries: Sequence[Any],
        field: str,
        *,
        strict: bool = True,
        backed: Collection[int] = (),
    ) -> list[Item]:
        """See the module's docstring; of `backed` entries more is known than stands in them."""
        found: dict[int, int | Stranger] = {}
        problems: dict[int, str] = {}
        lost: dict[int, str] = {}
        for index, entry in enumerate(entries):
            number = self._id.get(entry) if isinstance(entry, str) else None
            if number is not None:  # as nearly always
                found[index] = number
                continue
            try:
                found[index] = self._one(entry)
            except NothingNamedError as error:
                (problems if strict else lost)[index] = str(error)
                found[index] = _rest_of(entry)
            except DataError as error:
                problems[index] = str(error)
        items = {at: self.item(what) for at, what in found.items() if isinstance(what, int)}
        if len(items) == len(entries):
            return list(items.values())
        strangers = {at: what for at, what in found.items() if isinstance(what, Stranger)}
        if strangers:
            texts = [
                item_text(s.title, s.brand, s.categories, s.description) for s in strangers.values()
            ]
            placed = zip(strangers.items(), *self.encoder.encode(texts), strict=True)
            for (index, stranger), vector_E, codes_L in placed:
                why = lost.get(index, "no such item, and none of its words is known")
                why = "" if vector_E.any() or index in backed else why
                items[index] = Item(tuple(codes_L.tolist()), None, stranger, vector_E, why)
                if strict and why:
                    problems.setdefault(index, why)
        if problems:
            raise UnresolvedError(field, dict(sorted(problems.items())))
        return [items[index] for index in range(len(items))]

    def _item(self, number: int) -> Item:
        """The catalogue's item of this number."""
        return Item(self.sids.codes(number), number)

    def _known(self, text: str) -> int | None:
        """The item that a text names, None if it is free text."""
        if text in self._id:
            return self._id[text]
        codes = parse_sid(text)
        if codes is not None:
            return self._sid(codes)
        items = self._title.get(text, [])
        if len(items) > 1:
            raise NothingNamedError(f"{len(items)} items have this title: give an id")
        return items[0] if items else None

    def _sid(self, codes: tuple[int, ...]) -> int:
        item = self.sids.item(codes)
        if item is None:
            raise NothingNamedError("no item has this semantic ID")
        return item

    def _one(self, entry: Any) -> int | Stranger:
        alone = not isinstance(entry, Mapping)
        if alone:
            if not isinstance(entry, str | int | np.integer) or isinstance(entry, bool):
                raise DataError("expected text or an object")
            if not str(entry).strip():
                raise DataError("empty text")
            entry = {"text": str(entry)}
        given = {key: value for key, value in entry.items() if value not in (None, "", [], ())}
        for key in (*KEYS, "brand", "description"):
            if key in given and not isinstance(given[key], str):
                raise DataError(f"{key}: expected text")
        if not any(key in given for key in KEYS):
            raise DataError(f"expected one of {', '.join(KEYS)}")
        path = given.get("categories", [])
        listed = isinstance(path, Sequence) and not isinstance(path, str)
        if not listed or not all(isinstance(name, str) for name in path):
            raise DataError("categories: expected a list of texts")
        if given.get("id") in self._id:
            return self._id[given["id"]]
        if "sid" in given:
            codes = parse_sid(given["sid"])
            if codes is None:
                raise DataError("sid: not a semantic ID")
            return self._sid(codes)
        words = given.get("title") or given.get("text")
        if words is None:
            raise NothingNamedError("no such id in the catalogue")
        known = self._known(words)
        if known is not None:
            return known
        if alone and ID_LIKE.fullmatch(words):
            raise NothingNamedError("no such id in the catalogue")
        description = given.get("description") or (
            given.get("text", "") if "title" in given else ""
        )
        return Stranger(words, given.get("brand", ""), tuple(path), description)

    def title(self, item: Item) -> str:
        """What to call it in an explanation."""
        if item.stranger is not None:
            return item.stranger.title or f"item {item.stranger.name}"
        assert item.number is not None
        return self.catalogue.titles[item.number] or f"item {self.catalogue.raw_ids[item.number]}"


def _rest_of(entry: Any) -> Stranger:
    """What stands in a well-formed entry beside a name that the catalogue lacks."""
    given = entry if isinstance(entry, Mapping) else {"text": str(entry)}
    words = [given.get("title") or "", given.get("text") or ""]
    alone = given is not entry and ID_LIKE.fullmatch(words[1])
    told = [] if alone else [text for text in words if text and parse_sid(text) is None]
    title, *more = told or [""]
    name = str(given.get("id") or given.get("sid") or words[0] or words[1])
    path = tuple(given.get("categories") or ())
    description = given.get("description") or "".join(more)
    return Stranger(title, given.get("brand") or "", path, description, name)


class Seats:
    """See the module's docstring."""

    def __init__(self, index: EvidenceIndex, catalogue: Catalogue) -> None:
        self.index, self.n_items = index, len(catalogue)
        known = index.attributes
        self._brand = dict(zip(catalogue.brands, known.brand_I.tolist(), strict=True))
        self._path: dict[tuple[str, ...], int] = {}
        for path, number_D in zip(catalogue.categories, known.category_ID.tolist(), strict=True):
            for depth in range(len(path)):
                self._path[tuple(path[: depth + 1])] = number_D[depth]

    def seat(self, strangers: Sequence[Stranger], vectors_SE: np.ndarray) -> EvidenceIndex:
        """The index with these strangers, whose text vectors these are."""
        if not strangers:
            return self.index
        brand_S = np.array([self._brand.get(s.brand, -1) for s in strangers], np.int32)
        depth = self.index.attributes.category_ID.shape[1]
        category_SD = np.full((len(strangers), depth), -1, np.int32)
        fresh: dict[tuple[str, ...], int] = {}
        for number_D, stranger in zip(category_SD, strangers, strict=True):
            for level in range(min(len(stranger.categories), depth)):
                # A path nobody has gets a number of its own, so that its length still counts.
                path = stranger.categories[: level + 1]
                other = fresh.setdefault(path, NEW_PATH + len(fresh))
                number_D[level] = self._path.get(path, other)
        newcomers = Attributes(brand_S, category_SD, unit_rows(vectors_SE))
        titles = self.index.titles
        if titles is not None:
            titles = replace(titles, newcomers=titles.worded([s.title for s in strangers]))
        return replace(self.index, newcomers=newcomers, titles=titles)
