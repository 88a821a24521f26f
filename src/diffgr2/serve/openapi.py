"""The OpenAPI description: bodies, errors, and examples that work on the served catalogue.

Contract: `describe(app, state)` replaces the app's generated description by one that says what the
ranking routes take and give, with examples from the first bundle as it is served now. Bodies are
read by `schema.parse_request`, not by the framework, so they are described here. Not here: any
behaviour.
"""

from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from diffgr2.rerank.example import proposed
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.door import FEEDBACK_PATH
from diffgr2.serve.schema import TYPES, RerankRequest
from diffgr2.serve.state import Served, State

REFERENCE = "#/components/schemas/{model}"


def said(kind: str, description: str) -> dict[str, str]:
    """A field of this type, and what it holds."""
    return {"type": kind, "description": description}


RESULT = {
    "type": "object",
    "required": ["index", "relevance_score"],
    "properties": {
        "index": {"type": "integer", "description": "Position in the documents that came in"},
        "relevance_score": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "Calibrated probability, within the list, that this document is the "
            "one; of a written answer 1 − (rank − 1) / n",
        },
        "strength": {"type": "number", "description": "Expected level of the model's verdict"},
        "placed": {
            "enum": ["pinned", "boosted", "kept", "limited"],
            "description": "Why it does not stand where the model alone would put it; kept: where "
            "the list had it, as nothing is known of it",
        },
        "id": said("string", "The item's own, of items of the catalogue"),
        "sid": said("string", "Its semantic ID"),
        "document": {
            **said("object", "As it came in, with return_documents"),
            "properties": {"text": said("string", "Its words")},
        },
    },
}
PIECE = {
    "type": "object",
    "required": ["field", "phrase", "side", "probability"],
    "properties": {
        "field": {"type": ["string", "null"], "description": "null: nothing more counts"},
        "phrase": said("string", "In English"),
        "side": {"enum": ["for", "against", ""], "description": "Which way it counts"},
        "probability": said("number", "Of this piece at this place"),
    },
}
DECISION = {
    "type": "object",
    "required": ["index", "strengths", "evidence"],
    "properties": {
        "index": said("integer", "Position in the documents that came in"),
        "strengths": {
            "type": "array",
            "items": {"type": "number"},
            "description": "Probability of each level, the weakest first",
        },
        "evidence": {
            "type": "array",
            "items": {"type": "array", "items": PIECE},
            "description": "What could stand at each place for evidence",
        },
    },
}
ANSWER = {
    "type": "object",
    "required": ["id", "results", "ranking"],
    "properties": {
        "id": said("string", "The request's: its x-request-id, or one made here"),
        "model": said("string", "Which bundle ranked"),
        "results": {"type": "array", "items": RESULT, "description": "Best first"},
        "usage": said("object", "Tokens that were read and written"),
        "meta": {
            "type": "object",
            "description": "What else there is to say",
            "properties": {
                "warnings": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "What of the request was passed over, and whom nobody knows",
                }
            },
        },
        "ranking": {
            "type": "object",
            "description": "How far the order is the model's own",
            "required": ["valid", "repaired", "fallback", "identity"],
            "properties": {
                "valid": said("boolean", "Its own answer was whole, before any repair"),
                "repaired": said("boolean", "It was completed, or put in floor order"),
                "fallback": said("boolean", "It was of no use: the order as it came"),
                "identity": said("boolean", "The order is the one that came in"),
                "sure": {
                    "type": ["number", "null"],
                    "description": "The first place's probability; null of a written answer",
                },
                "failures": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "Kinds of what a written answer lacked",
                },
            },
        },
        "decode": said("object", "The settings that were used"),
        "decisions": {
            "type": "array",
            "items": DECISION,
            "description": "With decode.details: of each result, in their order",
        },
        "reasoning": said("string", "Why, in English, with return_reasoning"),
    },
}
TEI_ANSWER = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["index", "score"],
        "properties": {"index": {"type": "integer"}, "score": {"type": "number"}},
    },
}
ERROR = {
    "type": "object",
    "required": ["message", "id", "error"],
    "properties": {
        "message": said("string", "What is wrong, in one line"),
        "detail": said("string", "The same, for clients that look there"),
        "id": said("string", "The request's"),
        "error": {"description": "The kind of error, in the shape of the client's own service"},
        "indices": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "Entries of a list that are wrong",
        },
    },
}
BATCH = {
    "type": "object",
    "required": ["requests"],
    "properties": {
        "requests": {
            "type": "array",
            "items": {"$ref": REFERENCE.format(model="RerankRequest")},
            "description": "ranking requests, each as for /v1/rerank",
        }
    },
}
EVENT = {
    "type": "object",
    "required": ["request_id", "item", "event"],
    "properties": {
        "request_id": {
            "type": "string",
            "description": "The answer's id; of a batch's list n: <id>.<n>",
        },
        "item": {"type": "string", "description": "The id of a result (or: id)"},
        "event": {"type": "string", "description": "click, cart, purchase, or your own word"},
        "time": {
            "type": ["number", "string"],
            "description": "When: unix seconds, or ISO 8601; now where it is left out",
        },
        "idempotency_key": {"type": "string", "description": "Counted once, whatever else is sent"},
        "events": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Many of these, instead of the fields of one",
        },
        "strict": {"type": "boolean", "description": "404 where the log lacks the request"},
    },
}
STORED = {
    "type": "object",
    "required": ["id", "stored", "duplicates", "results"],
    "properties": {
        "id": said("string", "The request's"),
        "stored": {"type": "integer", "description": "Events that are new"},
        "duplicates": said("integer", "Events that were known"),
        "results": {
            "type": "array",
            "items": {"enum": ["stored", "duplicate"]},
            "description": "Of each event, in their order",
        },
        "meta": said("object", "Warnings, where there are any"),
    },
}
FAILURES = (400, 401, 403, 404, 408, 413, 415, 422, 429, 431, 500, 503, 504)


def example_ids(reranker: Reranker) -> tuple[list[str], list[str]]:
    """Two items of the catalogue as a history, and what the retriever proposes for it."""
    raw = reranker.catalogue.raw_ids
    history = np.arange(min(2, len(raw) - 1), dtype=np.int32)
    return [raw[i] for i in history], proposed(reranker, history)[0]


def examples(served: Served) -> dict[str, Any]:
    """Bodies that the served model answers; a shopper only where they are simulated."""
    reranker = served.reranker
    history, documents = example_ids(reranker)
    title = next((t for t in reranker.catalogue.titles if t), "an item in words")
    ids = {"history": history, "documents": documents, "return_reasoning": True}
    stock = {"model": "default", "query": title, "documents": documents, "top_n": 3}
    plain = {"decode": {"decoder": "ar"}, "reasoning": "off"}
    shown = {
        "ids": {"summary": "Item ids", "value": ids},
        "query": {"summary": "As a stock client sends it", "value": stock},
        "tei": {"summary": "TEI's shape", "value": {"query": title, "texts": documents}},
        "sure": {
            "summary": "Two views, Markdown, and every decision with its probabilities",
            "value": {
                "history": history,
                "documents": documents,
                "return_reasoning": "markdown",
                "decode": {"views": 2, "details": True},
            },
        },
        "decoder": {
            "summary": "Token by token, without reasoning",
            "value": {"history": history, "documents": documents, **plain},
        },
    }
    rules = {"pin": documents[-1:], "max_per": {"brand": 2}, "boost": {documents[0]: -2}}
    shown["rules"] = {
        "summary": "The shop's rules: a pin, a boost, at most two of a brand",
        "value": {"history": history, "documents": documents, **rules, "return_reasoning": True},
    }
    if served.simulated:
        user = {"query": f"user:{reranker.raw_users[0]}", "documents": documents}
        shown["user"] = {"summary": "A shopper of the bundle", "value": user}
    return shown


def described(value: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": value}}}


def describe(app: FastAPI, state: State) -> None:
    """See the module's docstring."""

    def openapi() -> dict[str, Any]:
        served = state.first  # a reload puts another one in its place
        if not served.description:
            served.description = description_of(app, examples(served))
        return served.description

    app.openapi = openapi  # type: ignore[method-assign]


def description_of(app: FastAPI, shown: dict[str, Any]) -> dict[str, Any]:
    """The whole description, with these bodies as examples."""
    body = RerankRequest.model_json_schema(ref_template=REFERENCE)
    parts = body.pop("$defs", {})
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    schemas.clear()
    schemas.update(parts)
    schemas.update({"RerankRequest": body, "RerankBatch": BATCH, "Error": ERROR})
    if FEEDBACK_PATH in made["paths"]:
        schemas["Feedback"] = EVENT
    error = {"$ref": REFERENCE.format(model="Error")}
    for path, methods in made["paths"].items():
        for method, route in methods.items():
            route["responses"].pop("422", None)
            posted = method == "post" and not path.startswith("/admin")
            for status in FAILURES if posted else (400, 401, 404, 422, 503):
                kind = TYPES[status].replace("_", " ")
                route["responses"][str(status)] = {"description": kind, **described(error)}
            if path.endswith("rerank") and method == "post":
                describe_one(route, shown)
            elif path.endswith("batch"):
                describe_batch(route, shown)
            elif path == FEEDBACK_PATH:
                describe_feedback(route, shown["ids"]["value"]["documents"])
    return made


def describe_one(route: dict[str, Any], shown: dict[str, Any]) -> None:
    """A ranking."""
    schema = {"$ref": REFERENCE.format(model="RerankRequest")}
    content = {"application/json": {"schema": schema, "examples": shown}}
    route["requestBody"] = {"required": True, "content": content}
    route["responses"]["200"] = {
        "description": "A ranking, best first (or server-sent events)",
        "content": {
            "application/json": {"schema": {"oneOf": [ANSWER, TEI_ANSWER]}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }


def describe_batch(route: dict[str, Any], shown: dict[str, Any]) -> None:
    """Many rankings."""
    both = {"requests": [shown["ids"]["value"], shown["query"]["value"]]}
    schema = {"$ref": REFERENCE.format(model="RerankBatch")}
    example = {"lists": {"summary": "Two lists", "value": both}}
    content = {"application/json": {"schema": schema, "examples": example}}
    route["requestBody"] = {"required": True, "content": content}
    route["responses"]["200"] = {
        "description": "A JSON line per list, as it ends: its index and its answer",
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    }


def describe_feedback(route: dict[str, Any], documents: list[str]) -> None:
    """What a shopper did."""
    one = {"request_id": "6c1f0c7d", "item": documents[0], "event": "click"}
    two = {**one, "event": "purchase", "time": "2026-01-31T09:12:44Z"}
    shown = {
        "one": {"summary": "One event", "value": one},
        "many": {"summary": "Several", "value": {"events": [one, two]}},
    }
    schema = {"$ref": REFERENCE.format(model="Feedback")}
    content = {"application/json": {"schema": schema, "examples": shown}}
    route["requestBody"] = {"required": True, "content": content}
    route["responses"]["202"] = {"description": "Stored", **described(STORED)}
    route["responses"]["200"] = {"description": "Nothing was new", **described(STORED)}
