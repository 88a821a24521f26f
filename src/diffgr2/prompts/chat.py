"""The text side of the gr2 template: the chat, explanations, and answers that come as text.

Contract: `Chat` turns requests into chat pieces (wording, semantic IDs and user text kept apart, so
that `gr2` can tokenize each in its own way), into messages for a language model that teaches, and
into an explanation of a trace; `parse_text` reads such a model's answer. It classifies failures
instead of raising, whatever the text. Not here: token ids (`gr2`), the endpoint (`traces.llm`).
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffgr2.candidates.fields import Field
from diffgr2.items.sids import SID_TOKEN, parse_sid, sid_text
from diffgr2.prompts.answers import OUT_OF_SET, make_answer
from diffgr2.prompts.english import AGAINST, FOR, Phrases, listed, wording
from diffgr2.prompts.request import MISSING, NONE, Request, Trace
from diffgr2.prompts.vocab import BEGIN, FINISH
from diffgr2.types import Answer

MENTION = re.compile(rf"(?:{re.escape(BEGIN)})?((?:{SID_TOKEN})+)(?:{re.escape(FINISH)})?")
NUMBER = re.compile(r"\[\s*(\d{1,4})\s*\]")
ITEM = re.compile(f"(?:{NUMBER.pattern}|{MENTION.pattern})")
CHAIN = re.compile(rf"(?:{ITEM.pattern}\s*>\s*)+{ITEM.pattern}")
LONGEST_EXPLANATION = 1500
"""Characters; a longer one is over-long."""
OBJECTS_TRIED = 32
"""Places where an answer's JSON object may begin."""


@dataclass(frozen=True)
class Sid:
    """An item by its codes."""

    codes: tuple[int, ...]

    @property
    def text(self) -> str:
        return BEGIN + sid_text(self.codes) + FINISH


@dataclass(frozen=True)
class UserText:
    """Text that shoppers or shops wrote: data, whatever it spells."""

    text: str


Piece = str | Sid | UserText


def pieces_of(text: str) -> Iterator[str | Sid]:
    """A text with its semantic IDs, with or without their brackets, taken out."""
    end = 0
    for match in MENTION.finditer(text):
        codes = parse_sid(match[1])
        if codes is None:
            continue
        if match.start() > end:
            yield text[end : match.start()]
        yield Sid(codes)
        end = match.end()
    if end < len(text):
        yield text[end:]


def one_line(text: str) -> str:
    """Text without line breaks and broken characters."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def as_text(pieces: Sequence[Piece]) -> str:
    """Pieces as plain text."""
    return "".join(piece if isinstance(piece, str) else piece.text for piece in pieces)


def filled(pattern: str, values: dict[str, list[Piece]]) -> list[Piece]:
    """A pattern's text and, in place of each `{name}`, that value's pieces."""
    result: list[Piece] = []
    for i, part in enumerate(re.split(r"\{(\w+)\}", pattern)):
        result += values[part] if i % 2 else [part] if part else []
    return result


def sids_of(codes_NL: np.ndarray) -> list[Sid]:
    """One `Sid` per item."""
    return [Sid(tuple(codes)) for codes in codes_NL.tolist()]


def places_of(request: Request) -> dict[Sid, int]:
    """Where each candidate stands."""
    return {sid: i for i, sid in enumerate(sids_of(request.codes_KL))}


class Chat:
    def __init__(self, fields: Sequence[Field], buckets: int) -> None:
        self.words = wording("gr2")
        self.fields = tuple(fields)
        self.phrases = Phrases(self.words, fields, buckets)

    def user(self, request: Request, *, reasoning: bool) -> list[Piece]:
        """The user's turn."""
        words = self.words
        out: list[Piece] = [words["history"] if len(request.history_HL) else words["history_empty"]]
        open_, middle, close = words["history_item"]
        for sid, text in zip(sids_of(request.history_HL), request.history_texts, strict=True):
            out += [open_, sid, middle, UserText(text), close]
        out.append(words["candidates"])
        open_, middle, evidence, close = words["candidate"]
        for i, sid in enumerate(sids_of(request.codes_KL)):
            out += [open_.format(place=i + 1), sid, middle, UserText(request.texts[i]), evidence]
            out += [self.evidence(request, i), close]
        task = words["task"].format(k=request.k)
        out.append("\n" + words["reason" if reasoning else "direct"].format(task=task))
        return out

    def evidence(self, request: Request, position: int) -> str:
        """A candidate's evidence in a few words; what is absent is left out."""
        shown = [
            self.phrases.say(f, bucket)
            for f, bucket in enumerate(request.buckets_KF[position].tolist())
            if bucket != MISSING and (bucket or not self.fields[f].zero_is_none)
        ]
        return ", ".join(shown) or self.words["no_evidence"]

    def messages(
        self, request: Request, *, target: int | None = None, knowledge: bool = False
    ) -> tuple[dict[str, str], ...]:
        """The chat for a teacher; `target` reveals the next purchase, `knowledge` primes it."""
        words = self.words
        user = as_text(self.user(request, reasoning=True)) + " " + words["teacher"]
        if target is not None:
            sid = Sid(tuple(request.codes_KL[target].tolist()))
            user += "\n" + words["targeted"].format(target=sid.text)
        system = words["system"] + (f"\n\n{words['knowledge']}" if knowledge else "")
        return ({"role": "system", "content": system}, {"role": "user", "content": user})

    def own_words(self) -> list[str]:
        """What prompts and responses keep spelling, for a tokenizer that is trained here."""
        names = ("system", "history", "candidates", "task", "reason", "direct")
        return [*(self.words[n] for n in names), *self.words["steps"].values(), *self.phrases.all()]

    def explanation(self, request: Request, trace: Trace) -> list[list[Piece]]:
        """A trace's reasoning, sentence by sentence: history, for and against, verdict."""
        steps, sids = self.words["steps"], sids_of(request.codes_KL)
        side_KF = self.phrases.sides(request.buckets_KF)

        def said(position: int, side: int, most: int) -> list[str]:
            """The weightiest cited evidence on one side, as a list in words; or nothing."""
            fields = [f for f in trace.cites_KC[position].tolist() if f != NONE]
            fields = [f for f in fields if side_KF[position, f] == side][:most]
            buckets_F = request.buckets_KF[position]
            return (
                [listed([self.phrases.say(f, int(buckets_F[f])) for f in fields])] if fields else []
            )

        out, order = [self._habit(request)], trace.order_K.tolist()
        for i in order[: self.words["cited"]]:
            points, doubts = said(i, FOR, self.words["points"]), said(i, AGAINST, 1)
            if points or doubts:
                name = "both" if points and doubts else "for" if points else "against"
                said_of: dict[str, list[Piece]] = {"for": [*points], "against": [*doubts]}
                out.append(filled(steps[name], {"sid": [sids[i]], **said_of}))
        why = [steps["why"].format(phrase=phrase) for phrase in said(order[0], FOR, 1)]
        values: dict[str, list[Piece]] = {"best": [sids[order[0]]], "why": [*why]}
        if len(order) == 1:
            return [*out, filled(steps["only"], values)]
        but = [steps["but"].format(phrase=phrase) for phrase in said(order[1], AGAINST, 1)]
        values |= {"second": [sids[order[1]]], "but": [*but]}
        return [*out, filled(steps["verdict"], values)]

    def _habit(self, request: Request) -> list[Piece]:
        """What most of the shown purchases are, where that is so of more than one of them."""
        steps = self.words["steps"]
        if not len(request.history_HL):
            return [steps["nothing"]]
        newest: list[Piece] = [*sids_of(request.history_HL[-1:])]
        # Counter keeps the order of arrival, so of equally frequent kinds the newest wins.
        kinds = Counter(kind for kind in reversed(request.history_kinds) if kind)
        kind, n = (*kinds.most_common(1), ("", 0))[0]
        if n > 1:
            counts: dict[str, list[Piece]] = {"all": [str(len(request.history_HL))], "n": [str(n)]}
            name = "habit_all" if n == len(request.history_HL) else "habit"
            return filled(steps[name], {**counts, "kind": [UserText(kind)], "newest": newest})
        last = request.history_kinds[-1] if kinds else ""
        name = "newest_of" if last else "newest"
        return filled(steps[name], {"kind": [UserText(last)], "newest": newest})

    def parse_text(self, text: str, request: Request) -> Answer:
        """A teacher's answer: JSON (fenced or among words), or `[3] > [1] > ...`."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        if (found := find_json(text)) is not None:
            entries = found["recommendations"]
            explanation = flat_text(found.get("explanation", ""))
        else:
            chains = list(CHAIN.finditer(text))
            if not chains:
                return Answer((), ("unparseable",))
            entries = [match[0] for match in ITEM.finditer(chains[-1][0])]
            explanation = text[: chains[-1].start()].strip()
        places = places_of(request)
        try:
            order = [place(entry, places) for entry in entries]
        except ValueError:
            order = []
        if not order:
            return Answer((), ("unparseable",))
        if len(explanation) > LONGEST_EXPLANATION:
            return Answer(tuple(order), ("overlong",))
        return make_answer(order, request.k, cite_by_sid(explanation, request))


def place(entry: Any, places: dict[Sid, int]) -> int:
    """A recommendation's position, OUT_OF_SET for a stranger; ValueError for what is no item."""
    if isinstance(entry, str):
        number = re.fullmatch(r"\s*\[?\s*([0-9]{1,4})\s*\]?\s*", entry)
        if number is None:
            (sid,) = {sid for sid in pieces_of(entry) if isinstance(sid, Sid)}
            return places.get(sid, OUT_OF_SET)
        entry = int(number[1])
    if not isinstance(entry, int) or isinstance(entry, bool):
        raise ValueError("no item")
    return entry - 1 if 1 <= entry <= len(places) else OUT_OF_SET


def find_json(text: str) -> dict[str, Any] | None:
    """The last JSON object in a text that holds a list of recommendations."""
    decoder, at, found = json.JSONDecoder(strict=False), 0, None
    for _ in range(OBJECTS_TRIED):
        at = text.find("{", at)
        if at < 0:
            break
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        if isinstance(value, dict) and isinstance(value.get("recommendations"), list):
            found = value
    return found


def flat_text(value: Any) -> str:
    """An explanation as one line: models also write lists or objects of steps."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        value = " ".join(part for part in value if isinstance(part, str))
    return one_line(value) if isinstance(value, str) else ""


def cite_by_sid(explanation: str, request: Request) -> str:
    """The explanation with every candidate it names by number named by its semantic ID."""
    sids = sids_of(request.codes_KL)

    def named(match: re.Match[str]) -> str:
        number = int(match[1])
        return sids[number - 1].text if 1 <= number <= len(sids) else match[0]

    return as_text(list(pieces_of(NUMBER.sub(named, explanation))))
