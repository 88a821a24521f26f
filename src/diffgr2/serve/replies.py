"""What a ranking looks like to a client: Cohere's, Jina's and vLLM's answer, TEI's, stream events.

Contract: `answer` and `tei_answer` write the two shapes of a result; `event` and `line_of` write
JSON on one line. A relevance score is the calibrated probability, given that one is, that this
document is the one (of a written answer it is made of the rank alone); scores fall strictly.
Not here: errors and requests (`schema`).
"""

import json
from typing import Any

from diffgr2.rerank.result import RankResult
from diffgr2.serve.schema import Ask


def document_text(given: Any) -> str:
    """The text by which a document is handed back."""
    if isinstance(given, str):
        return given
    return next(str(given[key]) for key in ("text", "title", "id", "sid") if given.get(key))


def answer(
    ask: Ask,
    result: RankResult,
    facts: list[dict[str, str]],
    *,
    warnings: list[str],
    model: str,
    request_id: str,
    created: int,
) -> dict[str, Any]:
    """The response that Cohere, Jina and vLLM clients read; `facts` holds id and sid by index."""
    results = []
    columns = (result.order, result.scores, result.levels, result.placed)
    for index, score, level, placed in zip(*columns, strict=True):
        entry: dict[str, Any] = {"index": index, "relevance_score": score, **facts[index]}
        if placed is not None:
            entry["placed"] = placed
        if level is not None:
            entry["strength"] = level
        if ask.return_documents:  # a null here breaks some clients, so the key is left out
            entry["document"] = {"text": document_text(ask.documents[index])}
        results.append(entry)
    read, written = result.decode["prompt_tokens"], result.decode["tokens"]
    return {
        "id": request_id,
        "object": "list",
        "model": model,
        "created": created,
        "results": results,
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "reasoning_tokens": result.decode["reasoning_tokens"],
        },
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": read, "output_tokens": written},
            "warnings": warnings,
        },
        "ranking": result.ranking(),
        "decode": result.decode,
        **result.decided(),
        **({"reasoning": result.reasoning} if result.reasoning is not None else {}),
    }


def tei_answer(ask: Ask, result: RankResult) -> list[dict[str, Any]]:
    """TEI's bare list, best first."""
    return [
        {
            "index": index,
            "score": score,
            **({"text": document_text(ask.documents[index])} if ask.return_documents else {}),
        }
        for index, score in zip(result.order, result.scores, strict=True)
    ]


def event(name: str, value: Any) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {line_of(value)}\n\n".encode()


def line_of(value: Any) -> str:
    """JSON on one line, also for readers who end lines at more characters than newline."""
    text = json.dumps(value, ensure_ascii=False)
    return text.translate(LINE_ENDS)


LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}
