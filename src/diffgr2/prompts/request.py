"""What a template is given: one re-ranking request, and one teacher trace.

Contract: a `Request` holds everything a prompt may show (codes, evidence, texts) for one user and K
candidates in the order they are shown; a `Trace` says what the teacher decided and which evidence
moved it. Building them from artifacts is vectorised here. Not here: token ids (the templates).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from diffgr2.prompts.said import order_by_level
from diffgr2.types import MISSING as MISSING
from diffgr2.types import CandidateLists, Catalogue

if TYPE_CHECKING:
    from diffgr2.data.store import Dataset

TextOf = Callable[[Catalogue, int], str]
"""How a template has an item told."""

NONE = -1
"""Fills `cites_KC` behind the last field that counts."""


@dataclass(frozen=True)
class Request:
    """One request; H shown history items (oldest first), K candidates, L levels, F fields."""

    history_HL: np.ndarray  # codes
    codes_KL: np.ndarray
    buckets_KF: np.ndarray  # uint8, MISSING where a field is not known
    history_texts: tuple[str, ...] = ()  # filled where the template shows text
    texts: tuple[str, ...] = ()
    history_kinds: tuple[str, ...] = ()  # `item_kind` of each history item

    @property
    def k(self) -> int:
        return len(self.codes_KL)

    def taken(self, places: np.ndarray) -> Request:
        """The same request with these of its candidates, in this order."""
        return replace(
            self,
            codes_KL=self.codes_KL[places],
            buckets_KF=self.buckets_KF[places],
            texts=tuple(self.texts[i] for i in places) if self.texts else (),
        )


@dataclass(frozen=True)
class Trace:
    """A teacher's decision on a request, in the order its candidates are shown."""

    level_K: np.ndarray  # float, its verdict on each candidate in levels of strength
    cites_KC: np.ndarray  # fields that count, the weightiest first, ended by NONE
    explanation: str = ""  # in the teacher's own words, items as semantic IDs; "" = verbalise

    @property
    def order_K(self) -> np.ndarray:  # noqa: N802
        """Positions, best first."""
        return order_by_level(self.level_K)

    def taken(self, places: np.ndarray) -> Trace:
        """The same decision on these candidates, in this order."""
        return replace(self, level_K=self.level_K[places], cites_KC=self.cites_KC[places])


def item_text(catalogue: Catalogue, item: int) -> str:
    """One line about an item for prompts and explanations: title, brand, category."""
    title = catalogue.titles[item] or f"item {catalogue.raw_ids[item]}"
    extras = [
        text for text in (catalogue.brands[item], " > ".join(catalogue.categories[item])) if text
    ]
    return f"{title} ({'; '.join(extras)})" if extras else title


def item_title(catalogue: Catalogue, item: int) -> str:
    """Brand and title alone, the brand once."""
    title = catalogue.titles[item] or f"item {catalogue.raw_ids[item]}"
    brand = catalogue.brands[item]
    return title if _letters(brand) in _letters(title) else f"{brand} {title}"


def _letters(text: str) -> str:
    """A text as brands are compared: "Bath & Body Works" is "BATH and Body-Works"."""
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return "".join(word for word in words if word != "and")


def item_kind(catalogue: Catalogue, item: int) -> str:
    """The kind of goods an explanation names: wide enough that several purchases share it."""
    return " > ".join(catalogue.categories[item][:2])


def request_at(
    lists: CandidateLists,
    row: int,
    dataset: Dataset,
    codes_IL: np.ndarray,
    buckets_KF: np.ndarray,
    shown: int,
    *,
    texts: TextOf | None,
) -> Request:
    """The request of one list as long as it is, with at most `shown` history items."""
    catalogue, k = dataset.catalogue, int(lists.length_L[row])
    history_H = dataset.histories.of(int(lists.user_L[row]), int(lists.end_L[row]))[-shown:]
    items_K = lists.items_LK[row, :k]
    request = Request(codes_IL[history_H], codes_IL[items_K], buckets_KF[:k])
    if texts is None:
        return request
    return replace(
        request,
        history_texts=tuple(texts(catalogue, int(i)) for i in history_H),
        texts=tuple(texts(catalogue, int(i)) for i in items_K),
        history_kinds=tuple(item_kind(catalogue, int(i)) for i in history_H),
    )
