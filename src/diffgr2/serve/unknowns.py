"""Fields that nobody here reads: known ones of other servers in silence, the others by a warning.

Contract: `unknowns(body, …)` gives (field, warning) for what a request's body, its `query` object
and its documents hold beyond the known fields; one line a name, with the field that was probably
meant, a few names at most. Values never stand in it. Not here: what known fields hold (`schema`).
"""

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from diffgr2.errors import nearest
from diffgr2.rerank.query import USER

FOREIGN = {
    "activation",  # vLLM
    "add_special_tokens",  # vLLM
    "additional_data",  # vLLM
    "cache_salt",  # vLLM
    "client_name",  # Cohere
    "encoding_format",  # OpenAI's clients
    "extra_body",  # litellm
    "input_type",  # Voyage
    "instruction",  # vLLM, Jina
    "max_chunks_per_doc",  # Cohere
    "max_doc_length",  # Jina
    "max_query_length",  # Jina
    "max_tokens_per_doc",  # Cohere
    "metadata",  # litellm
    "mm_processor_kwargs",  # vLLM
    "overlap",  # Jina
    "priority",  # vLLM, Cohere
    "rank_fields",  # Cohere
    "raw_scores",  # TEI
    "request_id",  # vLLM
    "return_embeddings",  # Jina
    "softmax",  # vLLM
    "truncate",  # TEI, Jina
    "truncate_prompt_tokens",  # vLLM
    "truncation",  # Jina, Voyage
    "truncation_direction",  # TEI
    "truncation_side",  # vLLM
    "use_activation",  # vLLM
}
"""Top-level fields of other servers' requests that change nothing here."""

FOREIGN_OF_DOCUMENTS = {"image", "metadata", "meta", "embedding", "score"}
MOST = 8
"""Names that are told; more are counted."""

MEANT = {"top_k": "top_n", "user": "user_id", "k": "top_n", "candidates": "documents"}


Found = tuple[str, str, str, Collection[str], str]
"""Field to blame, unknown name, where it stands, what is known there, how many have it."""


def unknowns(
    body: dict[str, Any], known: Collection[str], known_of_documents: Collection[str]
) -> list[tuple[str, str]]:
    """See the module's docstring."""
    found: list[Found] = []
    for name in body.keys() - known - FOREIGN:
        found.append((name[:80], name, "", known, ""))
    query, inner = body.get("query"), ("history", *USER)
    for name in query if isinstance(query, dict) else ():
        if name not in inner:
            found.append(("query", name, "query.", inner, ""))
    for field in ("documents", "history"):
        counts, n = _in_entries(body, field, known_of_documents)
        for name, count in counts.items():
            share = f" in {count} of {n}"
            found.append((field, name, f"{field}[].", known_of_documents, share))
    found.sort(key=lambda one: one[:3])
    told = [(one[0], _told(*one)) for one in found[:MOST]]
    more = len(found) - MOST
    return [*told, ("body", f"{more} more unknown fields, ignored")] if more > 0 else told


def misplaced(body: dict[str, Any]) -> list[str]:
    """A warning for scores that stand with the documents, where other servers' clients echo them:
    the retriever's own are a field of the request."""
    entries = body.get("documents") if body.get("scores") is None else None
    objects = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    if all(one.get("score") is None for one in objects):
        return []
    return ["documents[].score: ignored; your ranker's scores go in `scores`, one per document"]


def strange(body: Iterable[str], where: str, known: Collection[str]) -> list[str]:
    """Warnings for the unknown names of a body of ours, which no other server's client sends."""
    names = [name for name in body if name not in known]
    told = [_told("", name, where, known, "") for name in names[:MOST]]
    more = len(names) - MOST
    return [*told, f"{more} more unknown fields, ignored"] if more > 0 else told


def _in_entries(
    body: dict[str, Any], field: str, known: Collection[str]
) -> tuple[Counter[str], int]:
    """How many objects of a list have which unknown field, and how many objects there are."""
    ranked = body.get("rank_fields")  # Cohere's: the documents' own fields, by name
    named = [name for name in ranked if isinstance(name, str)] if isinstance(ranked, list) else []
    passed = {*known, *FOREIGN_OF_DOCUMENTS, *named}
    entries = body.get(field)
    objects = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    counts = Counter(name for one in objects for name in one if name not in passed)
    return counts, len(objects)


def _told(field: str, name: str, where: str, known: Collection[str], share: str) -> str:
    short = name if len(name) <= 80 else name[:79] + "…"
    hint = nearest(MEANT.get(name, name), known)
    return f"{where}{short}: unknown field{share}, ignored{hint}"
