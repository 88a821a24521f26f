"""What a template is given: one re-ranking request, and one teacher trace.

Contract: a `Request` holds everything a prompt may show (codes, evidence, texts) for one user and K
candidates in the order they are shown; a `Trace` says what the teacher decided and which evidence
moved it. Building them from artifacts is vectorised here. Not here: token ids (`compact`, `gr2`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from diffgr2.data.store import Dataset
from diffgr2.types import CandidateLists, Catalogue


@dataclass(frozen=True)
class Request:
    """One request; H shown history items (oldest first), K candidates, L levels, F fields."""

    history_HL: np.ndarray  # codes
    codes_KL: np.ndarray
    buckets_KF: np.ndarray
    history_texts: tuple[str, ...] = ()  # filled where the template shows text
    texts: tuple[str, ...] = ()
    history_kinds: tuple[str, ...] = ()  # `item_kind` of each history item

    @property
    def k(self) -> int:
        return len(self.codes_KL)

    def reordered(self, order_K: np.ndarray) -> Request:
        """The same request with its candidates shown in another order."""
        return replace(
            self,
            codes_KL=self.codes_KL[order_K],
            buckets_KF=self.buckets_KF[order_K],
            texts=tuple(self.texts[i] for i in order_K) if self.texts else (),
        )


@dataclass(frozen=True)
class Trace:
    """A teacher's decision on a request, in the order its candidates are shown."""

    order_K: np.ndarray  # positions, best first
    strength_K: np.ndarray  # level of the verdict on each candidate
    for_KC: np.ndarray  # fields that speak for it, strongest first
    against_KA: np.ndarray  # fields that speak against it, strongest first
    explanation: str = ""  # in the teacher's own words, items as semantic IDs; "" = verbalise

    def reordered(self, order_K: np.ndarray) -> Trace:
        """The same decision for `Request.reordered(order_K)`, ties re-broken by shown order."""
        strength_K = self.strength_K[order_K]
        return replace(
            self,
            order_K=order_by_strength(strength_K),
            strength_K=strength_K,
            for_KC=self.for_KC[order_K],
            against_KA=self.against_KA[order_K],
        )


def order_by_strength(strength_K: np.ndarray) -> np.ndarray:
    """Positions by falling strength, ties in shown order; of many lists at once, too.

    >>> order_by_strength(np.array([1, 3, 3, 0])).tolist()
    [1, 2, 0, 3]
    """
    return np.argsort(-strength_K.astype(np.int64), axis=-1, kind="stable")


def item_text(catalogue: Catalogue, item: int) -> str:
    """One line about an item for prompts and explanations: title, brand, category."""
    title = catalogue.titles[item] or f"item {catalogue.raw_ids[item]}"
    extras = [
        text for text in (catalogue.brands[item], " > ".join(catalogue.categories[item])) if text
    ]
    return f"{title} ({'; '.join(extras)})" if extras else title


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
    texts: bool,
) -> Request:
    """The request of one list, with at most `shown` history items."""
    catalogue = dataset.catalogue
    history_H = dataset.histories.of(int(lists.user_L[row]), int(lists.end_L[row]))[-shown:]
    items_K = lists.items_LK[row]
    request = Request(codes_IL[history_H], codes_IL[items_K], buckets_KF)
    if not texts:
        return request
    return replace(
        request,
        history_texts=tuple(item_text(catalogue, int(i)) for i in history_H),
        texts=tuple(item_text(catalogue, int(i)) for i in items_K),
        history_kinds=tuple(item_kind(catalogue, int(i)) for i in history_H),
    )
