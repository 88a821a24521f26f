"""A request that shows what a bundle does.

Contract: `example(world)` is a request of one of the bundle's own shoppers: all purchases but the
last, and what the retriever would show (`proposed`); the same one every time. Not here: ranking it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffgr2.candidates.retrieval import ragged, top_k
from diffgr2.rerank.world import World

ASKED = 40
"""Shoppers among whom an example is looked for."""


@dataclass(frozen=True)
class Example:
    """A request, and what the shopper bought next."""

    arguments: dict[str, Any]  # of `Reranker.rank`
    next: str  # raw id, "" where nothing is known


def example(world: World) -> Example:
    """The first of some shoppers whose next purchase the list holds, but not on top."""
    users_U = np.unique(np.linspace(0, world.histories.n_users - 1, ASKED).astype(int))
    found = [made for user in users_U.tolist() if (made := of_shopper(world, user)) is not None]
    if not found:
        shown = world.catalogue.raw_ids[: world.k]
        return Example({"history": [], "candidates": shown}, "")
    return next((one for one in found if one.next in one.arguments["candidates"][1:]), found[0])


def of_shopper(world: World, user: int) -> Example | None:
    """What a shopper would be shown before the last purchase; None for who has one at most."""
    items_T, raw = world.histories.of(user), world.catalogue.raw_ids
    if len(items_T) < 2:
        return None
    past_T = items_T[:-1].astype(np.int32)
    if len(raw) == len(np.unique(past_T)):
        return None
    history, user_id = [raw[item] for item in past_T], world.raw_users[user]
    candidates, scores = proposed(world, past_T)
    arguments: dict[str, Any] = {"history": history, "candidates": candidates, "user": user_id}
    if scores is not None:
        arguments["scores"] = scores
    return Example(arguments, raw[items_T[-1]])


def proposed(world: World, past_T: np.ndarray) -> tuple[list[str], list[float] | None]:
    """What the retriever shows to whom bought these items, and its scores: none for a model that
    learned on a shop's own, which has no use for them."""
    raw = world.catalogue.raw_ids
    k = min(world.k, len(raw) - len(np.unique(past_T)))
    items_1K, scores_1K = top_k(world.retriever, ragged([past_T], len(raw)), k)
    scores = None if world.seats.index.own_scores else scores_1K[0].tolist()
    return [raw[item] for item in items_1K[0]], scores
