"""What a shown text tells, read back from its English.

Contract: `Reader(words, phrases, request, ...).read(text)` gives the statements of a text as plain
facts: what the history is said to be, the verdict, strengths, points for and against, and how many
are left. It knows the wording (a template's YAML) and the names, longest first, and nothing of how
the text was made, so that it can disagree with it. Line by line for templates that render their
text; for free text, what follows a candidate's name or semantic ID. Markdown is read, too. Not
here: whether any of it is so (`coherence`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any

from diffgr2.items.sids import sid_text
from diffgr2.prompts.english import AGAINST, FOR, NEITHER, Phrases
from diffgr2.prompts.request import Request
from diffgr2.prompts.vocab import BEGIN, FINISH

Who = frozenset[int]
"""The candidates that a name may mean; empty for what is none of them."""

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~])")
_REST = {"rest": True, "rest_one": True, "behind": False, "behind_one": False}
_SIDES = {"for": FOR, "because": FOR, "against": AGAINST, "weaker": AGAINST}
_WHY, _BUT = ("why", "because", "for"), ("but", "weaker", "against")
_SHORT, _ASIDE = r"[^.;]*", r"(?: \([^()]*\))?"
_STRANGER = "an item not in the list"
_HISTORY = ("history", "history_more", "history_unknown")
_WHOLE = r"(?<!\w)(?:{})(?!\w)"  # whole words

_compiled = lru_cache(maxsize=256)(re.compile)  # of what the wording alone decides


@dataclass(frozen=True)
class Point:
    """A field said to have one of these buckets."""

    who: Who
    field: int
    buckets: frozenset[int]
    side: int  # FOR, AGAINST, or NEITHER where the text does not say
    sentence: int


@dataclass(frozen=True)
class Past:
    """What the text says of the history."""

    named: tuple[tuple[str, int, int | None], ...] = ()  # kind, how many, of how many
    whole: bool | None = None  # whether these are all kinds, where the text says
    latest: str | None = None  # kind of the newest
    items: tuple[str, ...] = ()  # by name instead
    nothing: bool = False  # there is no history
    readable: bool = True


@dataclass
class Told:
    """The statements of one text."""

    pasts: list[Past] = field(default_factory=list)
    verdicts: list[tuple[tuple[str, Who], tuple[str, Who] | None]] = field(default_factory=list)
    lines: list[Who] = field(default_factory=list)  # candidates with a line of their own
    strengths: list[tuple[Who, int]] = field(default_factory=list)  # word's number, -1 unsaid
    points: list[Point] = field(default_factory=list)
    rests: list[tuple[int, bool]] = field(default_factory=list)  # how many, said to be no stronger
    unread: int = 0  # sentences that no rule can read


def form(pattern: str, *, named: bool = True, **slots: str) -> str:
    """A wording as a regular expression; `slots` are what may stand for its `{names}`.

    >>> form("{n} of {all}.", named=False, n=r"[0-9]")
    '(?:[0-9])\\\\ of\\\\ (?:.*?)\\\\.'
    """
    parts = re.split(r"\{(\w+)\}", pattern)
    return "".join(
        f"({f'?P<{part}>' if named else '?:'}{slots.get(part, '.*?')})"
        if i % 2
        else re.escape(part)
        for i, part in enumerate(parts)
    )


def one_of(texts: Iterable[str]) -> str:
    """Any of these texts, the longest first."""
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)"


def list_of(entry: str) -> str:
    """An English list of such entries."""
    return rf"(?:{entry})(?:, (?:{entry}))*(?: and (?:{entry}))?"


def plain(text: str) -> str:
    return " ".join(text.split())


def _letters(text: str) -> str:
    return "".join(character for character in text if character.isalnum())


def both(text: str) -> tuple[str, str]:
    """As it stands, and as Markdown."""
    return text, _MARKUP.sub(r"\\\1", text)


class Reader:
    """Reads the texts about one request."""

    def __init__(
        self,
        words: Mapping[str, Any],
        phrases: Phrases,
        request: Request,
        names: Sequence[str],
        kinds: Sequence[str] = (),
        newest: Sequence[str] = (),
    ) -> None:
        """`names` are the candidates', `kinds` and `newest` of the history, oldest first."""
        self._words, self._phrases = words, phrases
        self._kind = {form: kind for kind in map(plain, kinds) if kind for form in both(kind)}
        self._item = {label: item for item in map(plain, newest) for label in _bold(item) if item}
        self._who: dict[str, Who] = {}
        if "steps" in words:
            self._who |= dict.fromkeys([*self._item, _STRANGER], frozenset())
        self._learn_names(request, names)
        self._any_phrase = one_of(phrases.all())
        self._told, self._sentence = Told(), 0

    def _learn_names(self, request: Request, names: Sequence[str]) -> None:
        shown = [plain(names[i]) if i < len(names) else "" for i in range(request.k)]
        twins, same = Counter(shown), self._words.get("same_name", "{name}")
        for i, name in enumerate(shown):
            for label in _bold(name) if name else (f"#{i + 1}",):
                self._who[label] = self._who.get(label, frozenset()) | {i}
                if twins[name] > 1 and name:
                    self._who[same.format(name=label, place=i + 1)] = frozenset({i})
            if "steps" in self._words:
                sid = sid_text(request.codes_KL[i].tolist())
                self._who |= dict.fromkeys((sid, BEGIN + sid + FINISH), frozenset({i}))

    @cached_property
    def _any_name(self) -> str:
        return _WHOLE.format(one_of(self._who))

    def read(self, text: str) -> Told:
        """All that the text tells."""
        self._told, self._sentence = Told(), 0
        if "steps" in self._words:
            self._free(text)
        else:
            for line in filter(None, map(str.strip, text.split("\n"))):
                self._sentence += 1
                if not self._line(line.removeprefix("- ")):
                    self._told.unread += 1
        return self._told

    # ------------------------------------------------------------------- rendered, line by line

    def _line(self, line: str) -> bool:
        """Whether some rule could read this line."""
        return self._past(line) or self._verdict(line) or self._candidate(line) or self._rest(line)

    def _match(self, name: str, line: str, **slots: str) -> re.Match[str] | None:
        wording = self._words.get(name)
        if not wording:
            return None
        pattern = form(wording, named=True, **slots)
        return re.fullmatch(pattern, line) if slots else _compiled(pattern).fullmatch(line)

    def _with_names(
        self, shape: Callable[[str], str], line: str, *slots: str
    ) -> re.Match[str] | None:
        """The line read by the pattern that `shape` makes of one for names; `slots` hold names.

        Patterns of names take longer to compile than all else here together, so any text may
        stand for one first. The longest does, as the longest name would; thus if names were found
        everywhere, the names' own pattern finds the same.
        """
        found = _compiled(shape(_WHOLE.format(".+"))).fullmatch(line)
        said = found.groupdict() if found else {}
        if all(said[slot] in self._who for slot in slots if said.get(slot)):
            return found
        return re.fullmatch(shape(self._any_name), line)

    def _past(self, line: str) -> bool:
        about = (*_HISTORY, "history_none", "history_nameless")
        loosely = [name for name in about if self._match(name, line)]
        if not loosely:
            return False
        self._told.pasts.append(self._read_past(line, loosely))
        return True

    def _read_past(self, line: str, loosely: Sequence[str]) -> Past:
        """What it says by one of the wordings that it has, whatever stands for their slots."""
        if "history_none" in loosely:
            return Past(nothing=True)
        if "history_nameless" in loosely:
            return Past()
        kind = one_of(self._kind)
        entry = form(self._words.get("kind", "{kind}"), kind=kind, n=r"\d+", all=r"\d+")
        loose = form(self._words.get("kind", ""), named=False, kind=kind, n=r"\d+", all=r"\d+")
        for name in ("history_more", "history"):
            pattern = list_of(f"{loose}|{kind}")
            if name in loosely and (found := self._match(name, line, kinds=pattern)):
                entries = re.finditer(f"{entry}|(?P<one>{kind})", found["kinds"])
                return Past(tuple(self._counted(e) for e in entries), whole=name == "history")
        if "history_unknown" in loosely:
            item = one_of(self._item)
            if found := self._match("history_unknown", line, items=list_of(item)):
                items = re.findall(item, found["items"])
                return Past(items=tuple(self._item[each] for each in items))
        return Past(readable=False)

    def _counted(self, entry: re.Match[str]) -> tuple[str, int, int | None]:
        groups = entry.groupdict()
        if groups["one"]:
            return self._kind[groups["one"]], 1, None
        return self._kind[groups["kind"]], int(groups["n"]), int(groups["all"])

    def _verdict(self, line: str) -> bool:
        for name in ("verdict", "only"):
            wording = self._words.get(name)
            if not wording:
                continue
            if found := self._with_names(partial(_of_two, wording), line, "first", "second"):
                self._decided(found, "first")
                return True
        return False

    def _decided(self, found: re.Match[str], first: str) -> None:
        """A verdict, and what its brackets say."""
        said = found.groupdict()
        second = said.get("second")
        pair = (said[first], self._who[said[first]])
        self._told.verdicts.append((pair, (second, self._who[second]) if second else None))
        for names, subject, side in ((_WHY, first, FOR), (_BUT, "second", AGAINST)):
            for name in names:
                if said.get(name) and said.get(subject):
                    self._points(self._who[said[subject]], said[name], side)

    def _candidate(self, line: str) -> bool:
        words = self._words
        grades = [*words["strengths"], words["unsaid"]]
        sides = one_of(words["sides"].values())
        side, grade_said = form(words["points"], named=False, side=sides), one_of(grades)

        def shape(name: str) -> str:
            start = form(words["candidate"], name=name, strength=grade_said)
            return f"{start}(?P<points>(?:{side})*)"

        found = self._with_names(shape, line, "name")
        if not found:
            return False
        who, grade = self._who[found["name"]], grades.index(found["strength"])
        self._told.lines.append(who)
        self._told.strengths.append((who, grade if grade < len(words["strengths"]) else -1))
        told = form(words["points"], side=sides) + rf"(?={side}|$)"
        for part in re.finditer(told, found["points"]):
            title = next(name for name, text in words["sides"].items() if text == part["side"])
            self._points(who, part["phrases"], _SIDES[title], strict=True)
        return True

    def _points(self, who: Who, text: str, side: int, *, strict: bool = False) -> None:
        """Phrases about a candidate; `strict`: there is nothing else."""
        if strict and not _compiled(list_of(self._any_phrase)).fullmatch(text):
            self._told.unread += 1
        for number, buckets in self._phrases.find(f": {text.strip()}."):
            self._told.points.append(Point(who, number, buckets, side, self._sentence))

    def _rest(self, line: str) -> bool:
        for name, weaker in _REST.items():
            if found := self._match(name, line, n=r"\d+"):
                count = found.groupdict().get("n")
                self._told.rests.append((int(count) if count else 1, weaker))
                return True
        return False

    # ---------------------------------------------------------------------------- free text

    def _free(self, text: str) -> None:
        """First what the template's own sentences say, and on which side; then all the rest."""
        steps, name = self._words["steps"], self._any_name
        for step in ("habit_all", "habit", "newest_of", "nothing"):
            if found := re.search(form(steps.get(step, "(?!)"), n=r"\d+", all=r"\d+"), text):
                self._told.pasts.append(self._habit(step, found.groupdict()))
                break
        sided: dict[str, Any] = {"sid": name, "for": _SHORT, "against": _SHORT}
        for step in ("both", "candidate", "for", "against"):
            for found in self._taken(text, step, **sided):
                for part in ("for", "against"):
                    if said := found.groupdict().get(part):
                        self._points(self._who[found["sid"]], said, _SIDES[part])
                text = text.replace(found[0], " ", 1)
        verdict: dict[str, Any] = {"best": name, "second": name, "why": _ASIDE, "but": _ASIDE}
        for step in ("verdict", "only"):
            for found in self._taken(text, step, **verdict):
                self._decided(found, "best")
                text = text.replace(found[0], " ", 1)
        so, first, ahead = _glue(steps["verdict"])
        loose = rf"{so} (?P<best>{name}) {first}\b(?:.*?{ahead} (?P<second>{name}))?"
        for found in re.finditer(loose, text):
            self._decided(found, "best")
        self._loose_points(text)

    def _taken(self, text: str, step: str, **slots: str) -> Iterator[re.Match[str]]:
        """Sentences of this wording, one by one."""
        wording = self._words["steps"].get(step)
        for found in (
            re.finditer(form(wording.strip(), named=True, **slots), text) if wording else ()
        ):
            self._sentence += 1
            yield found

    def _habit(self, step: str, said: Mapping[str, str]) -> Past:
        """What the first sentence says; a name may be cut, and spelled with other marks."""
        kind = plain(said.get("kind", ""))
        begins = [k for k in self._kind.values() if _letters(k).startswith(_letters(kind))]
        kind = begins[0] if kind and begins and kind not in begins else kind
        if step == "nothing":
            return Past(nothing=True)
        if step == "newest_of":
            return Past(latest=kind)
        n = int(said["n"])
        whole = step == "habit_all"
        return Past(((kind, n, n if whole else int(said["all"])),), whole or None)

    def _loose_points(self, text: str) -> None:
        """Phrases that follow a name; a sentence that names nobody is about the last one named."""
        parts = re.split(f"({self._any_name})", text)
        for at in range(1, len(parts), 2):
            self._sentence += 1
            self._points(self._who[parts[at]], parts[at + 1].rstrip(" ."), NEITHER)


def _of_two(wording: str, name: str) -> str:
    return form(wording, first=name, second=name)


def _bold(name: str) -> tuple[str, str]:
    as_is, marked = both(name)
    return as_is, f"**{marked}**"


def _glue(verdict: str) -> list[str]:
    """The words before, between and behind the names of a verdict, as patterns."""
    literal = re.split(r"\{\w+\}", verdict)
    return [re.escape(re.sub(r"^\W+|\W+$", "", part)) for part in literal[:3]]
