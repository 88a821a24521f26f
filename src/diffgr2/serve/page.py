"""The page at `/` and the data it shows: shoppers, items, candidates and their evidence.

Contract: the page is static files (`FILES`) without outside resources and without data; what it
shows of the served catalogue comes from `/page/shoppers`, `/page/items` and `/page/candidates`,
which lie behind the key like everything with data in it; histories are shown to who may see
shoppers, or where the bundle says that they are simulated. Errors name the field of the page that
is to blame. Not here: ranking, which the page asks of the public routes.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response

from diffgr2.errors import DataError
from diffgr2.items.sids import sid_text
from diffgr2.prompts.account import strength_word
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.request import MISSING
from diffgr2.rerank.decisions import SIDES
from diffgr2.rerank.example import of_shopper, proposed
from diffgr2.rerank.names import Item, ListProblem
from diffgr2.rerank.reranker import Reranker
from diffgr2.rerank.task import RankTask
from diffgr2.serve.finder import Finder
from diffgr2.serve.limits import FILES
from diffgr2.serve.schema import Problem
from diffgr2.serve.state import Served, State

STATIC = Path(__file__).parent / "static"
SHOPPERS = 40
FOUND = 12  # items that a search shows
SHORTEST = 3  # purchases of a shopper who is a good example
EXAMPLES = 4  # shoppers among whom the page looks for one whose list changes
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


def item_card(reranker: Reranker, item: Item) -> dict[str, Any]:
    """What the page says of an item; one that the catalogue lacks has no id."""
    title, number, catalogue = reranker.names.title(item), item.number, reranker.catalogue
    if number is None:
        words = item.stranger
        brand, path = (words.brand, words.categories) if words else ("", ())
        return {"title": title, "brand": brand, "category": " › ".join(path), "lost": item.lost}
    return {
        "id": catalogue.raw_ids[number],
        "title": title,
        "brand": catalogue.brands[number],
        "category": " › ".join(catalogue.categories[number]),
        "sid": sid_text(item.codes),
    }


def cards_of(reranker: Reranker, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Of items of the catalogue."""
    return [item_card(reranker, reranker.names.item(number)) for number in numbers]


def shoppers(reranker: Reranker, asked: str | None = None) -> list[dict[str, Any]]:
    """Some shoppers, and who is asked for; the last purchase stays hidden, it is what the ranking
    should find."""
    chosen = np.linspace(0, reranker.histories.n_users - 1, SHOPPERS).astype(int)
    also = [number for number in [reranker.user_number(asked)] if number >= 0]
    rows = []
    for user in np.unique([*chosen, *also]):
        items = reranker.histories.of(int(user)).tolist()
        if items:
            card = {"user": reranker.raw_users[user], "history": cards_of(reranker, items[:-1])}
            rows.append({**card, "next": reranker.catalogue.raw_ids[items[-1]]})
    return rows


def examples_of(reranker: Reranker) -> list[str]:
    """Shoppers whose list is a good first one to rank, the best first: with a few purchases, and
    where it can be told, the next one in the list but not on top."""
    rows = shoppers(reranker)
    told = [row for row in rows if len(row["history"]) >= SHORTEST] or rows
    found = list(islice((row["user"] for row in told if _telling(reranker, row)), EXAMPLES))
    return found or [row["user"] for row in told[:EXAMPLES]]


def _telling(reranker: Reranker, row: dict[str, Any]) -> bool:
    """Whether a re-ranking of a shopper's list may be seen to be right."""
    made = of_shopper(reranker, reranker.user_number(row["user"]))
    return made is not None and made.next in made.arguments["candidates"][1:]


class Kept:
    """What the page asks of a bundle again and again, made when it is first asked for."""

    def __init__(self, reranker: Reranker) -> None:
        self.reranker = reranker

    @cached_property
    def finder(self) -> Finder:
        return Finder(self.reranker.catalogue)

    @cached_property
    def examples(self) -> list[str]:
        return examples_of(self.reranker)


def token_words(reranker: Reranker) -> dict[str, dict[str, Any]]:
    """What each token that is no text means; nothing where the model writes text."""
    vocab, template = reranker.vocab, reranker.template
    if isinstance(template, Gr2):
        return {}
    spec, names, words = vocab.spec, vocab.names, template.words
    found: dict[str, dict[str, Any]] = {
        names[vocab.end_id]: {"kind": "end", "text": "end"},
        names[vocab.control["<none>"]]: {"kind": "none", "text": "nothing more counts"},
        names[vocab.control["<answer>"]]: {"kind": "answer", "text": "so the order is"},
    }
    for at, token in enumerate(vocab.index_ids.tolist()):
        found[names[token]] = {"kind": "item", "at": at}
    for level, token in enumerate(vocab.strength_ids.tolist()):
        text = strength_word(words, level, spec.strengths)
        found[names[token]] = {"kind": "strength", "text": text, "level": level}
    bucket_BF = np.broadcast_to(np.arange(spec.buckets)[:, None], (spec.buckets, len(spec.fields)))
    for bucket, ids_F in enumerate(vocab.evidence_ids(bucket_BF).tolist()):
        for field, token in enumerate(ids_F):
            # Where a word names the field alone, the page finds the grade in the candidate's list.
            text = spec.fields[field] if spec.words else template.phrases.say(field, bucket)
            found[names[token]] = {"kind": "cited", "text": text, "field": spec.fields[field]}
    return found


def facts_of(reranker: Reranker, most: int) -> dict[str, Any]:
    """What may be chosen, and the words of it."""
    ways, words = reranker.ways(), reranker.template.words
    own = reranker.seats.index.own
    return {
        "simulated": reranker.simulated,
        "decoders": list(reranker.decoders),
        "recommended": ways.settings.decoder,
        "views": ways.read_out.views if "said" in reranker.answers else None,
        "k": reranker.k,
        "k_max": reranker.k_max,
        "documents": most,
        "strengths": reranker.vocab.spec.strengths,
        "grades": words["strengths"],
        "unsaid": words["unsaid"],
        "sides": words["sides"],
        "tokens": token_words(reranker),
        "features": [
            {"name": f.name, "kind": f.kind, "words": list(f.words), "meaning": f.meaning}
            for f in own
        ],
    }


def shown_first(kept: Kept, asked: str | None, most: int, *, may: bool) -> dict[str, Any]:
    """What the page begins with; shoppers are for who may see them."""
    reranker = kept.reranker
    rows, examples = (shoppers(reranker, asked), kept.examples) if may else ([], [])
    first = reranker.catalogue.raw_ids[: min(2, len(reranker.catalogue) - 1)]
    shown = {"shoppers": rows, "examples": examples, "items": first}
    return {**shown, **facts_of(reranker, most)}


def candidates(
    reranker: Reranker,
    history: list[str],
    user: str | None,
    own: list[str] | None = None,
    features: list[Any] | None = None,
) -> dict[str, Any]:
    """A list for a history, the retriever's or `own`, with each candidate's evidence as levels."""
    known = [item.number for item in reranker.names.resolve(history, "history")]
    raw, scores_K = own, None
    if raw is None:
        seen = np.array([number for number in known if number is not None], np.int32)
        raw, scores_K = proposed(reranker, seen)
    task = reranker.prepare(history, raw, scores=scores_K, user=user, features=features)
    cards = []
    for place, item in enumerate(task.query.candidates):
        card = {**item_card(reranker, item), "score": scores_K and scores_K[place]}
        cards.append({**card, "evidence": evidence_of(reranker, task, place)})
    past = [item_card(reranker, item) for item in task.query.history]
    levels = reranker.recipe.evidence.buckets
    return {"history": past, "candidates": cards, "levels": levels}


def evidence_of(reranker: Reranker, task: RankTask, place: int) -> list[dict[str, Any]]:
    """What is known of one candidate of a list."""
    bucket_F, phrases = task.whole.buckets_KF[place], reranker.template.phrases
    side_F = phrases.sides(bucket_F)
    return [
        {
            "name": field.name,
            "meaning": field.meaning,
            "level": int(level),
            "kind": field.kind,
            "low": field.name in ("rank", "gap") or field.good == "low",  # the best is 0
            "said": phrases.say(number, level),
            "side": SIDES.get(int(side_F[number]), ""),
        }
        for number, (field, level) in enumerate(
            zip(reranker.fields, bucket_F.tolist(), strict=True)
        )
        if level != MISSING
    ]


# -------------------------------------------------------------------------------------- routes


def add_files(app: FastAPI) -> None:
    """What the pages are made of; they hold no data, so they need no key."""

    def file(name: str) -> Callable[[], Any]:
        text, kind = (STATIC / name).read_text(encoding="utf-8"), KINDS[Path(name).suffix]

        async def answer() -> Response:
            return Response(text, media_type=kind, headers=HEADERS)

        return answer

    for name in FILES:
        app.get(f"/static/{name}", include_in_schema=False)(file(name))


def texts_of(request: Request, name: str, field: str, most: int) -> list[str]:
    """A parameter that may stand several times."""
    found = request.query_params.getlist(name)
    if len(found) > most:
        raise Problem(422, f"{field}: {len(found)} given, at most {most}", field)
    if any(len(text) > 2048 for text in found):
        raise Problem(422, f"{field}: text of more than 2048 characters", field)
    return found


def features_in(request: Request, most: int) -> list[Any] | None:
    """The shop's own values of each candidate, JSON objects."""
    texts = texts_of(request, "f", "features", most)
    try:
        return [json.loads(text) for text in texts] or None
    except (ValueError, RecursionError):
        raise Problem(422, "features: expected JSON objects", "features") from None


def blamed(error: DataError) -> Problem:
    """An error of the request, at the page's field."""
    if isinstance(error, ListProblem):
        field = "documents" if error.field == "candidates" else error.field
        told = str(error).replace("candidates[", "documents[")
        return Problem(422, told, field, indices=list(error.problems))
    return Problem(422, str(error), str(error).partition(":")[0])


def add(app: FastAPI, state: State, *, docs: bool = True) -> None:
    """Add the page's routes; `docs`: whether it may name the API's page."""
    text = (STATIC / "index.html").read_text(encoding="utf-8")

    def may_see(request: Request, served: Served) -> bool:
        return request.scope["state"]["caller"].may("shoppers") or served.simulated

    def served_of(request: Request) -> Served:
        name = request.query_params.get("model") or None
        served = state.find(name)
        if served is None:
            raise Problem(404, f"model {(name or '')[:80]!r} is not served here", "model")
        return served

    kept = WeakKeyDictionary[Served, Kept]()

    def kept_of(served: Served) -> Kept:
        return kept.setdefault(served, Kept(served.reranker))

    async def aside(work: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + state.limits.timeout_s
        try:
            return await state.aside(deadline, work)
        except DataError as error:
            raise blamed(error) from None

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(text, media_type="text/html; charset=utf-8", headers=HEADERS)

    @app.get("/page/shoppers", include_in_schema=False)
    async def some_shoppers(request: Request) -> dict[str, Any]:
        served, asked = served_of(request), request.query_params.get("user")
        may, most = may_see(request, served), state.limits.candidates
        told = await asyncio.to_thread(shown_first, kept_of(served), asked, most, may=may)
        # Whoever opens the page will search: by then it is there.
        asyncio.get_running_loop().run_in_executor(None, lambda: kept_of(served).finder)
        return {**told, "model": served.name, "models": list(state.served), "docs": docs}

    @app.get("/page/items", include_in_schema=False)
    async def some_items(request: Request) -> dict[str, Any]:
        words = texts_of(request, "q", "q", 1)
        served = served_of(request)

        def found() -> list[dict[str, Any]]:
            items = kept_of(served).finder.find("".join(words), FOUND)
            return cards_of(served.reranker, items)

        return {"items": await aside(found)}

    @app.get("/page/candidates", include_in_schema=False)
    async def some_candidates(request: Request) -> dict[str, Any]:
        served, most = served_of(request), state.limits.candidates
        history = texts_of(request, "h", "history", state.limits.history)[-50:]
        user = request.query_params.get("user") or None
        if user is not None and not may_see(request, served):
            raise Problem(403, "user: looking up shoppers needs the role shoppers", "user")
        own = texts_of(request, "c", "documents", most) or None
        given = (history, user, own, features_in(request, most))
        return await aside(partial(candidates, served.reranker, *given))
