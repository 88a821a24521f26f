"""What the adapters share: a query of theirs as a history or a shopper, documents as entries.

Contract: a query is read as `rerank.query` reads it; words for what is wanted now stand for the
newest item of an empty history, and words that the catalogue does not know say nothing. A document
is its `metadata["item_id"]` where there is one, else its text; `metadata["features"]` holds values
of the shop's own fields. Not here: any library's classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from diffgr2.errors import DataError, MissingExtraError
from diffgr2.rerank.brought import KEY
from diffgr2.rerank.query import Asker, read_query, wished
from diffgr2.rerank.reranker import Reranker
from diffgr2.rerank.result import RankResult

ITEM_ID = "item_id"


def missing(package: str) -> MissingExtraError:
    """The one line for a library that is not installed."""
    return MissingExtraError(f"{package} is not installed: pip install {package}")


def who(reranker: Reranker, query: str) -> dict[str, Any]:
    """`Reranker.rank`'s history and user out of a query."""
    try:
        asker = read_query(query)
    except DataError:  # an object that says nobody: words, for these libraries
        asker = Asker(wish=query)
    if asker.history is None and asker.user is None:
        return {"history": wished(reranker.names, asker.wish or "") or []}
    return {"history": asker.history, "user": asker.user}


def entry(text: str, metadata: Mapping[str, Any] | None) -> str | dict[str, Any]:
    """What names a document's item, with the features of the shop's own that came with it."""
    item, features = (metadata or {}).get(ITEM_ID), (metadata or {}).get(KEY)
    if features is None:
        return text if item is None else str(item)
    return {"text": text, KEY: features} if item is None else {"id": str(item), KEY: features}


def rank(
    reranker: Reranker, query: str, entries: Sequence[Any], top_k: int | None, **options: Any
) -> RankResult | None:
    """The ranking; None for an empty list, which these libraries pass about."""
    if not entries:
        return None
    return reranker.rank(**who(reranker, query), candidates=entries, top_k=top_k, **options)
