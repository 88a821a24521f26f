"""What the columns of a shop's files are likely to be for, and how sure that is.

Contract: `guess(peeks, roles, said)` decides which file holds interactions, items and lists, and
which column stands for which of our words; every decision carries its reason. A name, what stands
in the column and the ids that it shares with other files all count; what cannot be told apart stays
open (`Guess.open`), and nothing is chosen in silence. Not here: reading (`peek`), asking and
writing recipes (`cli.init`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten

from diffgr2.data.hindsight import (
    flags_of,
    outcomes_of,
    parts_of,
    told_by,
    why_outcome,
    why_unread,
)
from diffgr2.data.peek import Column, Peek
from diffgr2.errors import DataError

NAMES = {  # our word -> what files call it, the commonest first
    "user": "user customer client visitor shopper member account reviewer buyer person uid cust "
    "consumer household profile login",
    "item": "item product sku asin article goods isbn movie track book ean upc gtin stock_code iid "
    "pid prod code offer listing song game content material",
    "timestamp": "timestamp time date datetime created ts moment purchased_at bought_at ordered_at "
    "unix_review_time event_time day occurred when",
    "position": "position pos seq sequence step index order_index nth",
    "title": "title name label headline product_title item_name",
    "brand": "brand manufacturer maker vendor producer store label_name publisher author artist",
    "categories": "categories category category_path category_code department genre genres group "
    "taxonomy class section cat kind type aisle",
    "price": "price cost amount unit_price list_price value",
    "description": "description desc text details summary body detail",
    "list": "list request impression query search slate session page_view qid srch response",
    "moment": "moment timestamp time date shown_at requested_at created ts position seq step",
    "place": "place position rank pos slot display_position",
    "score": "score ranker_score relevance prediction pred model_score",
    "history": "history past previous basket_history",
}
LOW = {"price", "cost", "rank", "place", "position", "distance", "age", "delivery", "returns",
       "return", "shipping", "delay", "complaints"}  # fmt: skip
NEITHER = {"margin", "profit", "weight", "size", "width", "height", "year", "month", "hour"}
ID_WORDS = ("id", "no", "number", "key", "nr", "num")
DEALS = 0.98  # share of distinct values that makes a column the key of its file
REQUIRED = {"interactions": ("user", "item"), "items": ("item",), "lists": ("list", "item")}
TEXTS = ("title", "brand", "categories", "price", "description")
MATTERS = ("user", "item", "list", "timestamp", "moment", "place")
"""Words about which nothing is taken from equals; of two brands the fuller is."""


@dataclass(frozen=True)
class Guess:
    """What a column was taken for."""

    word: str  # one of ours; "outcome", "feature"; "" = not used
    column: str
    why: str


@dataclass
class Use:
    """What one file was taken for."""

    peek: Peek
    role: str  # interactions, items or lists
    why: str
    guesses: list[Guess] = field(default_factory=list)
    open: dict[str, list[str]] = field(default_factory=dict)  # our word -> equals to choose from

    def column(self, word: str) -> str | None:
        return next((g.column for g in self.guesses if g.word == word), None)

    def columns(self, word: str) -> list[str]:
        return [g.column for g in self.guesses if g.word == word]

    def take(self, word: str, column: str, why: str) -> None:
        """Let a column stand for a word, and nothing else for it."""
        several = word in ("outcome", "feature")
        self.guesses = [
            g for g in self.guesses if g.column != column and (several or g.word != word)
        ]
        self.guesses.append(Guess(word, column, why))
        self.open.pop(word, None)


def named(name: str, word: str) -> int:
    """3 where a name is one of those for this word, 2 with an id behind, 1 as part, 0 not."""
    parts = parts_of(name)
    whole, known = "_".join(parts), NAMES[word].split()
    if whole in known or whole.rstrip("s") in known:
        return 3
    bare = "_".join(part for part in parts if part not in ID_WORDS)
    squeezed = whole.replace("_", "")
    if bare in known or squeezed in {f"{one}id" for one in known}:
        return 3 if word in ("user", "item", "list") else 2
    return 1 if any(part in known or part.rstrip("s") in known for part in parts) else 0


def is_id(column: Column) -> bool:
    """Short texts or whole numbers, which may name something."""
    if column.kind not in ("whole", "text") or column.filled < 0.8:
        return False
    return all(len(text) <= 64 for text in list(column.counts)[:200]) and column.words < 1.5


def is_time(column: Column) -> bool:
    return column.kind == "time" or (
        column.kind in ("whole", "number") and bool(column.moments_ms) and column.distinct > 1
    )


def overlap(column: Column, other: Column) -> float:
    """Share of a column's distinct values that the other has, too."""
    return len(column.counts.keys() & other.counts.keys()) / max(column.distinct, 1)


# ---------------------------------------------------------------------------------- which file


def role_of(peek: Peek) -> tuple[str, str]:
    """(role, why) of a file by itself; the role is "" where nothing speaks for one."""
    columns = peek.columns
    lists = any(named(n, "list") == 3 and is_id(c) and c.unique < 0.7 for n, c in columns.items())
    placed = any(named(n, w) >= 2 for n in columns for w in ("place", "score"))
    came = outcomes_of(peek) if lists or placed else {}
    if came and (lists or flags_of(peek)):
        what = ", ".join(came)
        return "lists", f"candidates with what came of them ({what})"
    users = [n for n, c in columns.items() if named(n, "user") and is_id(c) and c.unique < 0.9]
    keys = [n for n, c in columns.items() if is_id(c) and c.unique >= DEALS and c.filled == 1]
    texts = [n for n in columns for w in ("title", "brand", "categories", "description")
             if named(n, w)]  # fmt: skip
    if users:
        return "interactions", f"{users[0]} names who, again and again"
    if keys and (texts or any(c.words >= 2 for c in columns.values() if c.kind == "text")):
        return "items", f"each {keys[0]} stands once, with texts"
    repeated = [n for n, c in columns.items() if is_id(c) and c.unique < 0.9]
    if len(repeated) >= 2:
        return "interactions", f"{repeated[0]} and {repeated[1]} repeat"
    return ("items", f"each {keys[0]} stands once") if keys and len(columns) > 1 else ("", "")


def roles(peeks: Sequence[Peek], given: Mapping[str, str]) -> dict[str, tuple[Peek, str]]:
    """Which file is what; `given` maps a file's path to its role."""
    found: dict[str, list[tuple[Peek, str]]] = {"interactions": [], "items": [], "lists": []}
    for peek in peeks:
        role, why = given.get(str(peek.path), ""), "as you said"
        if not role:
            role, why = role_of(peek)
        if not role:
            names = ", ".join(list(peek.columns)[:8])
            raise DataError(
                f"{peek.path}: neither interactions nor items nor lists by its columns ({names}); "
                "say --interactions, --items or --lists before it"
            )
        found[role].append((peek, why))
    for role, those in found.items():
        if len(those) > 1:
            names = " and ".join(str(peek.path) for peek, _ in those[:2])
            raise DataError(
                f"{names} both look like {role}: say which with --interactions, --items, --lists"
            )
    if not found["interactions"] and not found["lists"]:
        only = found["items"][0][0].path
        raise DataError(
            f"{only}: looks like items ({found['items'][0][1]}), and no file holds interactions; "
            f"if it does, say --interactions {only}"
        )
    return {role: those[0] for role, those in found.items() if those}


# -------------------------------------------------------------------------------- which column


def guess(
    peeks: Sequence[Peek], given: Mapping[str, str], said: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, Use]:
    """Role -> use; `said` maps roles to what the caller says: (our word, column)."""
    uses = {role: Use(peek, role, why) for role, (peek, why) in roles(peeks, given).items()}
    for role, use in uses.items():
        for word, column in said.get(role, ()):
            use.take(word, column, "as you said")
    for role in ("items", "interactions", "lists"):
        if role in uses:
            _words(uses[role], uses)
    for use in uses.values():
        _rest(use)
    return uses


def _others(use: Use, uses: Mapping[str, Use]) -> list[tuple[str, int, Column]]:
    """(what, how far it is named so, column) of what may be item ids in other files."""
    found = []
    for other in uses.values():
        if other is not use:
            column = other.column("item")
            names = [column] if column else [n for n, c in other.peek.columns.items() if is_id(c)]
            found += [
                (f"{other.peek.path.name} `{n}`", named(n, "item"), other.peek.columns[n])
                for n in names
            ]
    return found


WORDS = {
    "interactions": ("item", "user", "timestamp", "position"),
    "items": ("item", *TEXTS),
    "lists": ("list", "item", "user", "moment", "place", "score", "history"),
}
"""What each kind of file may hold, in the order in which it is looked for."""


def words_of(role: str) -> tuple[str, ...]:
    """The words that a caller may map in a file of this role."""
    return (*WORDS[role], "outcome", "feature") if role == "lists" else WORDS[role]


def _words(use: Use, uses: Mapping[str, Use]) -> None:
    """The words of a role, each with the column that fits it best."""
    for name in outcomes_of(use.peek) if use.role == "lists" else ():
        if not any(guess.column == name for guess in use.guesses):
            why = why_outcome(use.peek.columns[name])
            use.guesses.append(Guess("outcome", name, why))
    for word in WORDS[use.role]:
        if use.column(word) or word in use.open:
            continue
        scored = _scored(use, word, _others(use, uses) if word == "item" else [])
        if not scored:
            continue
        best = max(score for score, _, _ in scored)
        equals = [(name, why) for score, name, why in scored if score == best]
        if len(equals) > 1 and word in MATTERS:
            use.open[word] = [name for name, _ in equals]
            continue
        equals.sort(key=lambda one: -use.peek.columns[one[0]].filled)
        name, why = equals[0]
        if len(equals) > 1:
            why += f"; or {equals[1][0]}: --map {word}={equals[1][0]}"
        use.take(word, name, why)


def _scored(
    use: Use, word: str, others: Iterable[tuple[str, int, Column]]
) -> list[tuple[float, str, str]]:
    """(score, column, why) of the columns that may stand for a word."""
    taken = {g.column for g in use.guesses}
    result = []
    for name, column in use.peek.columns.items():
        if name in taken or column.kind == "empty":
            continue
        by_name = named(name, word)
        fits, why = _fits(use, word, column)
        exact = by_name + 0.5 * (name == word)
        shared = max(
            ((overlap(column, c), like > 0, what) for what, like, c in others),
            key=lambda one: one[0] + 0.3 * one[1],
            default=(0.0, False, ""),
        )
        if word == "item" and is_id(column) and shared[0] >= 0.5 and fits:
            of = f"{shared[0]:.0%} of its {column.distinct:,} values stand in {shared[2]}"
            result.append((4.0 + 4 * shared[0] + exact / 10, name, of))
        elif fits and (by_name or fits > 1):
            reason = "by its name" if by_name else "by what it holds"
            result.append((exact + (fits - 1), name, f"{reason}; {why}"))
    return result


def _fits(use: Use, word: str, column: Column) -> tuple[float, str]:
    """(0 = cannot be, 1 = can, more = likely even without a name; what it holds)."""
    many = f"{column.distinct:,} distinct"
    lines = f"{len(column.texts) / max(column.distinct, 1):.1f} lines each"
    if word in ("user", "item", "list"):
        if not is_id(column) or (is_time(column) and column.kind == "time"):
            return 0.0, ""
        if word == "item" and use.role == "items":
            key = column.unique >= DEALS and column.filled == 1
            return (1.5 if key else 0.0), f"each of {many} stands once"
        few = column.distinct < min(20, len(column.values) / 50)
        if column.unique >= (0.9 if word != "list" else 0.7) or few:
            return 0.0, ""
        if word == "user" and not _same_in_lists(use, column):
            return 0.0, ""
        return (1.2 if use.role == "interactions" else 1.0), f"{many}, {lines}"
    if word in ("timestamp", "moment"):
        if word == "moment" and not _same_in_lists(use, column):
            return 0.0, ""
        if is_time(column):
            return 1.1, column.dates
        position = word == "moment" and column.kind == "whole"
        return (1.0 if position else 0.0), f"a place in the user's history, {column.range}"
    if word in ("place", "score") and _same_in_lists(use, column, unless=False):
        return 0.0, ""
    if word in ("position", "place"):
        return (1.0 if column.kind == "whole" else 0.0), column.range
    if word in ("price", "score"):
        return (1.0 if column.kind in ("whole", "number") or _priced(column) else 0.0), column.range
    if word == "history":
        long = column.kind == "list" or column.words > 1.5
        return (1.0 if long else 0.0), "several items each"
    if word == "categories":
        fits = column.kind == "list" or (column.kind == "text" and column.unique < 0.9)
        return float(fits), f"{many}, for example {shorten(column.range, 60, placeholder=' …')}"
    if word == "title":
        plain = column.kind == "text" and column.words >= 2 and column.unique > 0.5
        return (1.3 if plain else float(column.kind == "text")), f"{column.words:.0f} words"
    if word == "brand":
        return float(column.kind == "text" and column.unique < 0.9), many
    return float(column.kind == "text"), f"{column.words:.0f} words"


def _same_in_lists(use: Use, column: Column, *, unless: bool = True) -> bool:
    """Whether a column says one thing of each list; `unless` where no list is known."""
    name = use.column("list")
    if name is None:
        return unless
    seen: dict[str, str] = {}
    pairs = zip(use.peek.columns[name].values, column.values, strict=True)
    return all(seen.setdefault(str(one), str(value)) == str(value) for one, value in pairs)


def _priced(column: Column) -> bool:
    looked = column.texts[:100]
    return bool(looked) and all(re.fullmatch(r"\D{0,4}[\d.,]+\D{0,4}", text) for text in looked)


def _rest(use: Use) -> None:
    """What is left: features of lists, and columns that nobody reads."""
    taken = {name for names in use.open.values() for name in names}
    taken |= {guess.column for guess in use.guesses}
    rest = [_left(use, n, column) for n, column in use.peek.columns.items() if n not in taken]
    features = [guess.column for guess in rest if guess.word == "feature"]
    told = told_by(use.peek, use.columns("outcome"), features)
    for guess in rest:
        if guess.column in told:  # as evidence it would give the answer away
            why = f"filled only where {told[guess.column]} is: known only afterwards? if it was "
            why += f"known before: --map lists.feature={guess.column}"
            guess = Guess("", guess.column, why)
        use.guesses.append(guess)


def _left(use: Use, name: str, column: Column) -> Guess:
    if use.role == "lists" and column.distinct > 1 and _same_in_lists(use, column, unless=False):
        return Guess("", name, f"the same for a whole list ({column.range[:60]})")
    if use.role == "lists" and (why := why_unread(name, column)):
        return Guess("", name, why)
    if use.role == "lists" and column.distinct > 1 and not is_time(column):
        ids = is_id(column) and column.kind == "text" and column.unique > 0.5
        if column.kind in ("whole", "number", "flag"):
            return Guess("feature", name, f"{direction(name)} is good?; {column.range}")
        if column.kind == "text" and not ids and column.words < 4 and column.distinct <= 1_000:
            return Guess("feature", name, f"{column.distinct} words, for example {column.range}")
    word = "moment" if use.role == "lists" else "timestamp"
    if use.role != "items" and column.kind == "text" and named(name, word) >= 2:
        shown = column.range[:40]
        return Guess("", name, f"a time by its name, but no number or ISO date ({shown}): not read")
    if column.distinct <= 1:
        return Guess("", name, "one value only" if column.distinct else "empty")
    if use.role == "interactions" and column.kind == "text" and column.distinct <= 12:
        return Guess("", name, f"every line counts alike ({column.range})")
    return Guess("", name, f"not read ({column.kind}: {column.range[:60]})")


def direction(name: str) -> str:
    """Which end of a feature is likely to speak for a candidate, by its name."""
    parts = set(parts_of(name))
    if parts & NEITHER:
        return "neither"
    return "low" if parts & LOW else "high"
