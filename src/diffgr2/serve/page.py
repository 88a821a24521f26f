"""The page at `/` and the data it shows: shoppers, candidates and their evidence.

Contract: the page is one static file without outside resources; `/page/shoppers` and
`/page/candidates` give it something to rank on the served catalogue, and lie behind the key like
everything with data in it; histories are shown to who may see shoppers, or where the bundle says
that they are simulated. Not here: ranking, which the page asks of the public routes.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response

from diffgr2.candidates.retrieval import ragged, top_k
from diffgr2.errors import DataError
from diffgr2.prompts.request import MISSING
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.schema import Problem
from diffgr2.serve.state import State

STATIC = Path(__file__).parent / "static" / "index.html"
SHOPPERS = 40
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}


def item_card(reranker: Reranker, item: int) -> dict[str, Any]:
    """What the page says of an item."""
    catalogue = reranker.catalogue
    return {
        "id": catalogue.raw_ids[item],
        "title": catalogue.titles[item] or f"item {catalogue.raw_ids[item]}",
        "brand": catalogue.brands[item],
        "category": " › ".join(catalogue.categories[item]),
        "sid": reranker.sids.text(item),
    }


def shoppers(reranker: Reranker) -> list[dict[str, Any]]:
    """Some shoppers; the last purchase stays hidden, it is what the ranking should find."""
    chosen = np.linspace(0, reranker.histories.n_users - 1, SHOPPERS).astype(int)
    rows = []
    for user in np.unique(chosen):
        items = reranker.histories.of(int(user))
        if not len(items):
            continue
        rows.append(
            {
                "user": reranker.raw_users[user],
                "history": [item_card(reranker, int(i)) for i in items[:-1]],
                "next": reranker.catalogue.raw_ids[items[-1]],
            }
        )
    return rows


def candidates(reranker: Reranker, history: list[str], user: str | None) -> dict[str, Any]:
    """The retriever's list for a history, with each candidate's evidence as levels."""
    known = [item.number for item in reranker.names.resolve(history, "history")]
    seen = np.array([number for number in known if number is not None], np.int32)
    query = ragged([seen], len(reranker.catalogue))
    k = min(reranker.k, len(reranker.catalogue) - len(set(seen.tolist())))
    items_1K, scores_1K = top_k(reranker.retriever, query, k)
    raw = [reranker.catalogue.raw_ids[item] for item in items_1K[0]]
    # A model that learned on a shop's own scores has no use for the retriever's.
    scores_K = None if reranker.seats.index.own_scores else scores_1K[0].tolist()
    task = reranker.prepare(history, raw, scores=scores_K, user=user)
    buckets_KF = task.whole.buckets_KF
    cards = []
    for place, item in enumerate(items_1K[0].tolist()):
        evidence = [
            {
                "name": field.name,
                "meaning": field.meaning,
                "level": int(level),
                "kind": field.kind,
                "low": field.name in ("rank", "gap") or field.good == "low",  # the best is 0
                "said": reranker.template.phrases.say(number, level),
            }
            for number, (field, level) in enumerate(
                zip(reranker.fields, buckets_KF[place].tolist(), strict=True)
            )
            if level != MISSING
        ]
        card = {**item_card(reranker, item), "score": scores_K and scores_K[place]}
        cards.append({**card, "evidence": evidence})
    return {"candidates": cards, "levels": reranker.recipe.evidence.buckets}


def add(app: FastAPI, state: State) -> None:
    """Add the page's routes."""
    text = STATIC.read_text(encoding="utf-8")

    def may_see(request: Request) -> bool:
        return request.scope["state"]["caller"].may("shoppers") or state.first.simulated

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(text, media_type="text/html; charset=utf-8", headers=HEADERS)

    @app.get("/page/shoppers", include_in_schema=False)
    async def some_shoppers(request: Request) -> dict[str, Any]:
        reranker = state.reranker
        rows = await asyncio.to_thread(shoppers, reranker) if may_see(request) else []
        levels = reranker.vocab.spec.strengths
        facts = {"decoders": list(reranker.decoders), "k": reranker.k, "strengths": levels}
        return {"shoppers": rows, **facts}

    @app.get("/page/candidates", include_in_schema=False)
    async def some_candidates(request: Request) -> dict[str, Any]:
        history = request.query_params.getlist("h")[-50:]
        user = request.query_params.get("user") or None
        if user is not None and not may_see(request):
            raise Problem(403, "user: looking up shoppers needs the role shoppers", "user")
        if any(len(text) > 2048 for text in history):
            raise Problem(422, "h: text of more than 2048 characters", "h")
        deadline = time.monotonic() + state.limits.timeout_s
        try:
            return await state.aside(deadline, candidates, state.reranker, history, user)
        except DataError as error:
            raise Problem(422, str(error), "h") from None
