"""The HTTP bodies: what clients of Cohere, Jina, vLLM and TEI send, and what they get back.

Contract: `parse_request` reads one body (strict JSON, strict types, nulls as absent) into an `Ask`,
or raises a `Problem` with the exact status; `Problem.body` is the one error shape, a superset of
what the clients look for. Fields that those servers know and we have no use for are passed over in
silence; any other unknown one is a warning, and an error where the request is strict (`unknowns`).
Not here: answers (`replies`), resolving items (`rerank`).
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, create_model
from pydantic.fields import FieldInfo

from diffgr2 import strict_json
from diffgr2.config import DecodeConfig
from diffgr2.errors import DataError, first_problem, nearest
from diffgr2.rerank.names import KEYS
from diffgr2.rerank.query import Asker, read_query
from diffgr2.rerank.result import Telling
from diffgr2.rerank.rules import RULES
from diffgr2.rerank.world import DECODE_KEYS
from diffgr2.serve.limits import Limits
from diffgr2.serve.unknowns import misplaced, unknowns

TYPES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "payload_too_large",
    415: "unsupported_media_type",
    421: "misdirected_request",
    422: "validation",
    429: "overloaded",
    431: "headers_too_large",
    500: "internal",
    503: "unavailable",
    504: "deadline_exceeded",
    505: "version_not_supported",
}
KEYS_AT_MOST = 64
"""Of an item's or a decode object, and entries of the lists in them."""

TEI_TYPES = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}


@dataclass
class Problem(Exception):  # noqa: N818
    """A request that cannot be answered, with its status and the field that is to blame."""

    status: int
    message: str
    param: str | None = None
    tei: bool = False
    indices: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    def body(self, request_id: str) -> dict[str, Any]:
        """The error as JSON."""
        kind = TYPES.get(self.status, "error")
        shared = {"message": self.message, "id": request_id}
        if self.indices:
            shared["indices"] = self.indices  # type: ignore[assignment]
        if self.tei:
            return {
                **shared,
                "error": self.message,
                "error_type": TEI_TYPES.get(self.status, "Backend"),
            }
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        return {**shared, "detail": self.message, "error": error}


class Lenient(BaseModel):
    """Strict types; unknown fields are told apart by `unknowns`."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


def optional(field: FieldInfo) -> Any:
    """A recipe's field as one that a request may leave out, with the same bounds."""
    kind: Any = field.annotation
    return Optional[Annotated[kind, *field.metadata] if field.metadata else kind]  # noqa: UP045


FEATURES = {
    "type": "object",
    "additionalProperties": {"type": ["number", "string", "boolean", "null"]},
    "description": "The shop's own features of a candidate, name: value; null = missing.",
}


class Document(Lenient):
    """An item as an object: an id, a semantic ID, a title, or words that describe it."""

    id: str | None = Field(None, description="The catalogue's own id.")
    sid: str | None = Field(None, description="A semantic ID.")
    title: str | None = Field(None, description="An exact title of the catalogue, or words.")
    text: str | None = Field(None, description="Words that describe it.")
    brand: str | None = Field(None, description="Its brand, if nobody knows the item.")
    categories: list[str] | None = Field(None, description="Its categories, the widest first.")
    description: str | None = Field(None, description="More words.")
    features: Annotated[Any, WithJsonSchema(FEATURES)] = None  # read by `rerank.brought`


Decode: Any = create_model(
    "Decode",
    __config__=ConfigDict(strict=True, extra="forbid", frozen=True),
    __doc__="How to decode; what is absent follows the recipe's recommendation.",
    details=(Optional[bool], Field(None, description="Also every decision with its chances.")),  # noqa: UP045
    **{  # type: ignore[call-overload]
        key: (optional(DecodeConfig.model_fields[key]), None)
        for key in DECODE_KEYS
        if key in DecodeConfig.model_fields
    },
)


Entry = str | Document
Where = tuple[int | str, ...]


class RerankRequest(Lenient):
    """A re-ranking request; `documents` (or TEI's `texts`) come in their present order."""

    model: str | None = Field(None, description="One of /v1/models; else the first.")
    query: str | dict[str, Any] | list[Any] | None = Field(
        None,
        description="A shopper as `user:<id>`, a history as JSON, or words for what is wanted now.",
    )
    documents: list[Entry] | None = Field(None, description="Candidates, best first.")
    texts: list[str] | None = Field(None, description="The same in TEI's shape.")
    top_n: int | None = Field(None, ge=0, description="How many to return; 0 = all.")
    return_documents: bool | None = Field(None, description="Whether results hold their documents.")
    return_text: bool | None = Field(None, description="The same in TEI's word.")
    history: list[Entry] | None = Field(None, description="Items, oldest first.")
    user_id: str | None = Field(None, description="A shopper of the bundle.")
    scores: list[float] | None = Field(None, description="The retriever's, one per document.")
    return_reasoning: Literal["markdown"] | bool | None = Field(
        None, description="Whether the answer says why; markdown has bold names."
    )
    reasoning: Literal["on", "off", "auto"] | bool | None = Field(
        None, description="Whether the model writes evidence before strengths."
    )
    decode: Optional[Decode] = Field(  # type: ignore[valid-type]  # noqa: UP045
        None, description="How to decode; what is absent is as recommended."
    )
    seed: int | None = Field(None, ge=0, description="Names the random draws, where there are any.")
    stream: bool | None = Field(None, description="Server-sent events as the ranking is made.")
    strict: bool | None = Field(
        None, description="Unknown items and fields are an error instead of a warning."
    )
    pin: list[str] | dict[str, int] | None = Field(
        None, description="Ids for the top, or id: place (1 is the top)."
    )
    exclude: list[str] | None = Field(None, description="Ids that the answer leaves out.")
    boost: dict[str, float] | None = Field(
        None, description="id: levels that are added to its strength (less than 0: taken away)."
    )
    max_per: dict[str, int] | None = Field(
        None, description="brand, category or a feature: how many of one; more follow behind."
    )


@dataclass(frozen=True)
class Ask:
    """A request, read and checked as far as that goes without the model."""

    history: list[Any] | None
    user: str | None
    documents: list[Any]
    scores: list[float] | None
    decode: dict[str, Any]
    model: str | None
    top_n: int | None
    reasoning: bool
    return_reasoning: Telling
    return_documents: bool
    stream: bool
    tei: bool
    wish: str | None = None  # a plain query: words for what is wanted now
    rules: dict[str, Any] = field(default_factory=dict)
    strict: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def listed(self) -> str:
        """What the client calls its candidates."""
        return "texts" if self.tei else "documents"


def parse_request(value: dict[str, Any], limits: Limits) -> Ask:
    """See the module's docstring."""
    tei = "texts" in value and value.get("documents") is None
    try:
        _check_lengths(value, limits)
        return _ask(value, tei, limits)
    except Problem as problem:
        problem.tei = tei
        raise


def _check_lengths(value: dict[str, Any], limits: Limits) -> None:
    """Lists and objects that are too long are refused before any of their entries is looked at."""
    query = value.get("query")
    if isinstance(query, str) and len(query) > limits.text:  # more than words: may be JSON
        values, depth = strict_json.weigh(query.encode("utf-8", "replace"))
        if values > limits.body_values or depth > strict_json.MAX_DEPTH:
            raise Problem(
                422, f"query: more than {limits.body_values} values, or too deep", "query"
            )
    inner = query.get("history") if isinstance(query, dict) else query
    lists = {
        "documents": (value.get("documents"), limits.candidates),
        "texts": (value.get("texts"), limits.candidates),
        "scores": (value.get("scores"), limits.candidates),
        "history": (value.get("history"), limits.history),
        "query": (inner, limits.history),
    }
    for name, (entries, most) in lists.items():
        _check_list(entries, name, most)
    for name in RULES:
        rule = value.get(name)
        if isinstance(rule, list | dict) and len(rule) > limits.rules:
            raise Problem(422, f"{name}: {len(rule)} given, at most {limits.rules}", name)
    for name in ("decode", "query"):
        _check_small(value.get(name), name, name)


def _check_list(entries: Any, name: str, most: int) -> None:
    """A list has at most so many entries, each of them small."""
    if not isinstance(entries, list):
        return
    if len(entries) > most:
        raise Problem(422, f"{name}: {len(entries)} given, at most {most}", name)
    for index, entry in enumerate(entries):
        _check_small(entry, f"{name}[{index}]", name)


def _check_small(entry: Any, where: str, name: str) -> None:
    """An object within a request has few keys, and the lists in it few entries."""
    if not isinstance(entry, dict):
        return
    long = [v for k, v in entry.items() if isinstance(v, list) and k != "history"]
    if len(entry) > KEYS_AT_MOST or any(len(inner) > KEYS_AT_MOST for inner in long):
        raise Problem(422, f"{where}: more than {KEYS_AT_MOST} entries", name)


def _ask(value: dict[str, Any], tei: bool, limits: Limits) -> Ask:
    try:
        request = RerankRequest.model_validate(value)
    except ValidationError as error:
        raise _problem_of(error) from None
    given = request.texts if tei else request.documents
    name = "texts" if tei else "documents"
    if given is None:
        raise Problem(422, f"{name}: missing", name)
    documents = [_entry(entry, f"{name}[{i}]", limits) for i, entry in enumerate(given)]
    if not documents:
        raise Problem(422, f"{name}: the list is empty", name)
    if len(documents) > limits.candidates:
        raise Problem(422, f"{name}: {len(documents)} given, at most {limits.candidates}", name)
    history, user, wish, warnings = _who(request, limits)
    strict = limits.strict if request.strict is None else request.strict
    strange = unknowns(value, RerankRequest.model_fields, Document.model_fields)
    if strange and strict:
        raise Problem(422, strange[0][1].removesuffix(", ignored"), strange[0][0])
    rules = {name: getattr(request, name) for name in RULES}
    decode = request.decode.model_dump(exclude_none=True) if request.decode else {}
    if request.seed is not None:
        decode["seed"] = request.seed
    return Ask(
        history=history,
        user=user,
        documents=documents,
        scores=request.scores,
        decode=decode,
        model=request.model,
        top_n=request.top_n or None,
        reasoning=request.reasoning not in ("off", False),
        return_reasoning=request.return_reasoning or False,
        return_documents=bool(request.return_text if tei else request.return_documents),
        stream=bool(request.stream),
        tei=tei,
        wish=wish,
        rules={name: rule for name, rule in rules.items() if rule is not None},
        strict=strict,
        warnings=[*(told for _, told in strange), *misplaced(value), *warnings],
    )


def _problem_of(error: ValidationError) -> Problem:
    """The first thing that is wrong, by field."""
    where, message, kind = first_problem(error)
    if kind == "string_type" and where[-1:] == ("str",):
        where, message = _within(error, where, message)
    if kind == "extra_forbidden" and where[:-1] == ("decode",):
        told = f"decode.{str(where[-1])[:80]}: unknown field"
        return Problem(422, told + nearest(str(where[-1]), Decode.model_fields), "decode")
    # Members of unions stand in the location by their type's name; people know fields and indices.
    parts = [
        str(part)
        for part in where
        if isinstance(part, int) or part in RerankRequest.model_fields or part in NAMES
    ]
    named = ".".join(parts) or "body"
    return Problem(422, f"{named}: {message}", parts[0] if parts else None)


def _within(error: ValidationError, where: Where, message: str) -> tuple[Where, str]:
    """An entry that is no text is told by what is wrong with it as an object, where it is one."""
    within = (*where[:-1], Document.__name__)
    for other in error.errors(include_url=False, include_input=False, include_context=False):
        if other["loc"][: len(within)] == within and len(other["loc"]) > len(within):
            return other["loc"], other["msg"]
    return where, message


NAMES = {*Document.model_fields, *Decode.model_fields}


def _entry(entry: Any, where: str, limits: Limits) -> Any:
    """An entry for `Names.resolve`, its texts within bounds."""
    value = entry.model_dump(exclude_none=True) if isinstance(entry, Document) else entry
    texts = [value] if isinstance(value, str) else _texts(value)
    if any(len(text) > limits.text for text in texts):
        raise Problem(
            422, f"{where}: text of more than {limits.text} characters", where.split("[")[0]
        )
    if isinstance(value, dict) and not any(value.get(key) for key in KEYS):
        raise Problem(422, f"{where}: expected one of {', '.join(KEYS)}", where.split("[")[0])
    return value


def _texts(value: dict[str, Any]) -> list[str]:
    flat = []
    for inner in value.values():
        flat.extend(inner if isinstance(inner, list) else [inner])
    return [text for text in flat if isinstance(text, str)]


def _who(
    request: RerankRequest, limits: Limits
) -> tuple[list[Any] | None, str | None, str | None, list[str]]:
    """(history, user, wish, warnings) out of the fields and the query, the one free channel."""
    try:
        asker = read_query(request.query)
    except DataError as error:
        raise Problem(422, str(error), "query") from None
    _check_list(asker.history, "query", limits.history)
    inner = _inner(asker)
    history: list[Any] | None = inner.history if request.history is None else request.history  # type: ignore[assignment]
    user = inner.user_id if request.user_id is None else request.user_id
    wish, warnings = asker.wish, []
    if wish is not None and len(wish) > limits.text:
        raise Problem(422, f"query: text of more than {limits.text} characters", "query")
    if wish is not None and (history is not None or user is not None):
        wish = None
        warnings.append("query: ignored, the history says who asks")
    if user is not None and not 1 <= len(user) <= limits.text:
        raise Problem(422, f"user_id: expected 1 to {limits.text} characters", "user_id")
    if history is None and user is None and wish is None:
        raise Problem(422, "query: missing (or give history or user_id)", "query")
    if history is not None and len(history) > limits.history:
        told = f"history: {len(history)} items, at most {limits.history}"
        raise Problem(422, told, "history")
    if history is not None:
        history = [_entry(entry, f"history[{i}]", limits) for i, entry in enumerate(history)]
    return history, user, wish, warnings


def _inner(asker: Asker) -> RerankRequest:
    """What a query says of history and shopper, checked like the fields of these names."""
    try:
        return RerankRequest.model_validate({"history": asker.history, "user_id": asker.user})
    except ValidationError as error:
        raise Problem(422, f"query.{_problem_of(error).message}", "query") from None
