"""Who asks: the one reader of a query, for HTTP, the command line and the adapters.

Contract: a query is `user:<id>`, a JSON list of history items, a JSON object with `history` and
`user_id` (or `user`), or words for what is wanted now. `read_query` takes it apart, as text or as
JSON values; `arguments_of` reads a whole request object into `Reranker.prepare`'s arguments. Not
here: whether the items exist (`names`), limits and types of HTTP fields (`serve.schema`).
"""

from dataclasses import dataclass
from typing import Any

from diffgr2 import strict_json
from diffgr2.errors import DataError, nearest
from diffgr2.rerank.names import Names, UnresolvedError
from diffgr2.rerank.rules import RULES

USER = ("user_id", "user")
"""Names of the shopper's id: as in HTTP, and as the option of the command line is called."""

KEYS = (
    *("history", "candidates", "scores", "features", *USER),
    *("decode", "reasoning", *RULES, "strict"),
)


@dataclass(frozen=True)
class Asker:
    """A query taken apart; `wish` are words for what is wanted now."""

    history: list[Any] | None = None
    user: Any = None
    wish: str | None = None


def read_query(query: Any) -> Asker:
    """See the module's docstring; None, and text without words, ask for nobody."""
    if isinstance(query, str) and query.lstrip()[:1] in ("{", "["):
        try:
            query = strict_json.loads(query)
        except DataError:
            return Asker(wish=query)  # words that happen to begin so
    if isinstance(query, list):
        return Asker(history=query)
    if isinstance(query, dict):
        history, user = query.get("history"), user_of(query)
        if history is None and user is None:
            raise DataError("query: an object needs history or user_id")
        return Asker(history=history, user=user)
    if isinstance(query, str) and query.startswith("user:"):
        return Asker(user=query.removeprefix("user:").strip())
    return Asker(wish=query if isinstance(query, str) and query.strip() else None)


def user_of(value: dict[str, Any]) -> Any:
    """The shopper's id under either name, but not under both."""
    found = [value[key] for key in USER if value.get(key) is not None]
    if len(found) == len(USER):
        raise DataError("user: is also given as user_id")
    return found[0] if found else None


def wished(names: Names, words: str) -> list[Any] | None:
    """Words for what is wanted now, as a history of one; None if the catalogue knows no word."""
    wish = [{"text": words}]  # not taken for an id
    try:
        names.resolve(wish, "query")
    except UnresolvedError:
        return None
    return wish


def arguments_of(value: Any) -> dict[str, Any]:
    """`Reranker.prepare`'s arguments out of a JSON value."""
    if not isinstance(value, dict):
        raise DataError("expected a JSON object")
    for key in value:
        if key not in KEYS:
            told = f"{key[:80]}: unknown key (known: {', '.join(KEYS)})"
            raise DataError(told + nearest(key, KEYS))
    given = {key: item for key, item in value.items() if item is not None}
    if "candidates" not in given:
        raise DataError("candidates: missing")
    user = user_of(given)
    if "history" not in given and user is None:
        raise DataError("history: missing (or give a user)")
    kinds = {"user": str, "user_id": str, "reasoning": bool, "scores": list, "decode": dict}
    kinds |= {"strict": bool, "features": list}
    words = {str: "text", bool: "true or false", list: "a list", dict: "an object"}
    for key, kind in kinds.items():
        if key in given and not isinstance(given[key], kind):
            raise DataError(f"{key}: expected {words[kind]}")
    known = {key: item for key, item in given.items() if key not in (*USER, *RULES)}
    rules = {key: given[key] for key in RULES if key in given}
    further = {"user": user, "rules": rules or None}
    return {"history": None, **known, **{k: v for k, v in further.items() if v is not None}}
