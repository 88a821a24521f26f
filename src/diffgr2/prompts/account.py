"""A reading in English: what follows from strengths and prompt is rendered here, never written.

Contract: `account` says what the newest purchases are, which candidate comes first and ahead of
which, whom the shop's rules moved, and of the first few how strong they are, for which reasons and
against which; where nobody was judged, history, verdict and moves are all. Everything is computed
from the request, the reading and the order that is shown, so no sentence can contradict another or
the ranking. `kinds_of` names items by the widest category level that tells them apart.
Not here: phrases of single pieces of evidence (`english`), the model's own words (`gr2`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffgr2.prompts.english import AGAINST, FOR, Phrases, listed
from diffgr2.prompts.request import Request
from diffgr2.prompts.said import Reading

COMMON = 0.5
"""A category name that more than this share of the items has tells nothing."""

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~])")


@dataclass(frozen=True)
class Moves:
    """Whom the shop's rules moved, as positions of the list: what they did, not the model."""

    pinned: Mapping[int, int] = field(default_factory=dict)  # to the place, from 0
    boosts: Mapping[int, float] = field(default_factory=dict)  # levels that were added
    kept: Sequence[int] = ()  # nothing is known of them
    limited: Sequence[int] = ()  # behind others of their group
    limits: Sequence[tuple[str, int]] = ()  # at most so many of a group
    repeats: Sequence[int] = ()  # the same items as earlier ones of the list
    off: frozenset[int] = frozenset()  # of `kept` and `repeats`: elsewhere than in the shop's list

    def __contains__(self, at: int) -> bool:
        each = (self.pinned, self.boosts, self.kept, self.limited, self.repeats)
        return any(at in some for some in each)


def telling_level(paths: Sequence[Sequence[str]]) -> int:
    """The widest category level on which no name covers most of the items.

    >>> telling_level([["Beauty", "Hair"], ["Beauty", "Skin"], ["Beauty", "Nails"]])
    1
    """
    deepest = max(map(len, paths), default=0)
    for level in range(deepest):
        names = Counter(path[level] for path in paths if len(path) > level)
        if names.most_common(1)[0][1] <= COMMON * names.total():
            return level
    return max(deepest - 1, 0)


def kinds_of(paths: Sequence[Sequence[str]]) -> list[str]:
    """What kind of goods each item is, by a name that tells them apart; "" where none is known."""
    level = telling_level(paths)
    return [path[min(level, len(path) - 1)] if path else "" for path in paths]


def escaped(text: str) -> str:
    """Text as it stands in Markdown, whatever characters it holds."""
    return _MARKUP.sub(r"\\\1", text)


def bold(name: str) -> str:
    """A name in bold Markdown."""
    return f"**{escaped(_one_line(name))}**"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def labels(
    words: Mapping[str, Any], names: Sequence[str], k: int, *, markdown: bool = False
) -> list[str]:
    """What each of k candidates is called: by name, its place beside it where names are equal."""
    plain = [_one_line(name) for name in names[:k]] + [""] * (k - len(names))
    count, shown = Counter(plain), []
    for place, name in enumerate(plain, 1):
        label = (bold(name) if markdown else name) if name else f"#{place}"
        shared = name and count[name] > 1
        shown.append(words["same_name"].format(name=label, place=place) if shared else label)
    return shown


def strength_word(words: Mapping[str, Any], level: float, levels: int) -> str:
    """A strength in words; never weaker words for a higher level."""
    if np.isnan(level):
        return words["unsaid"]
    grades = words["strengths"]
    # A hair below an edge is on it: sums of probabilities end there.
    return grades[min(int(level / (levels - 1) * len(grades) + 1e-6), len(grades) - 1)]


def history_line(
    words: Mapping[str, Any],
    kinds: Sequence[str],
    newest: Sequence[str],
    *,
    shown: int = 0,
    markdown: bool = False,
) -> str:
    """What the shown purchases are: `kinds` and names of the newest, oldest first, or neither."""
    shown = max(shown, len(kinds), len(newest))
    if not shown:
        return words["history_none"]
    # Of equally frequent kinds the newest comes first.
    counts = Counter(kind for kind in map(_one_line, reversed(kinds)) if kind)
    if not counts:
        items = [name for name in map(_one_line, reversed(newest)) if name][: words["kinds"]]
        items = [bold(item) for item in items] if markdown else items
        name = "history_unknown" if items else "history_nameless"
        return words[name].format(items=listed(items) if items else "")
    told = []
    for kind, n in counts.most_common(words["kinds"]):
        name = escaped(kind) if markdown else kind
        told.append(words["kind"].format(kind=name, n=n, all=len(kinds)) if n > 1 else name)
    more = "history_more" if len(counts) > len(told) else "history"
    return words[more].format(kinds=listed(told))


def moves_lines(words: Mapping[str, Any], moves: Moves, name: Sequence[str]) -> list[str]:
    """A sentence per pin and boost, and one each for those not judged and those moved back."""
    lines = [
        words["pinned"].format(name=name[at], place=place + 1)
        for at, place in sorted(moves.pinned.items(), key=lambda pair: pair[1])
    ]
    for at, by in moves.boosts.items():
        told = words["raised" if by > 0 else "lowered"]
        lines.append(told.format(name=name[at], by=f"{abs(by):g}"))
    for word, those in (("kept", moves.kept), ("repeat", moves.repeats)):
        for end in ("", "_off"):
            names = [name[at] for at in those if (at in moves.off) == bool(end)]
            many = "_all" if len(names) > 1 else ""
            lines += [words[word + end + many].format(names=few(words, names))] if names else []
    if moves.limited:
        most = listed([words["limit"].format(most=most, by=by) for by, most in moves.limits])
        names = [name[at] for at in moves.limited]
        lines.append(words["limited"].format(most=most, names=few(words, names)))
    return lines


def few(words: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first names of many, and how many more there are."""
    more = len(names) - words["named"]
    rest = [words["others" if more > 1 else "other"].format(n=more)] if more > 0 else []
    return listed([*names[: words["named"]], *rest])


def account(
    words: Mapping[str, Any],
    phrases: Phrases,
    request: Request,
    reading: Reading,
    order: Sequence[int],
    levels: int,
    names: Sequence[str],
    kinds: Sequence[str] = (),
    newest: Sequence[str] = (),
    *,
    markdown: bool = False,
    moves: Moves | None = None,
) -> str:
    """The reasoning in plain English, or Markdown, for candidates in the order that is shown."""
    lines = [history_line(words, kinds, newest, shown=len(request.history_HL), markdown=markdown)]
    name = labels(words, names, request.k, markdown=markdown)
    if len(order) > 1:
        verdict = words["verdict_moved" if moves and order[0] in moves else "verdict"]
        lines.append(verdict.format(first=name[order[0]], second=name[order[1]]))
    elif len(order) == 1:
        lines.append(words["only"].format(first=name[order[0]]))
    lines += moves_lines(words, moves, name) if moves else []
    between = "\n\n" if markdown else "\n"
    if np.isnan(reading.levels_K).all():
        return between.join(lines)  # nothing was said of any candidate
    side_KF = phrases.sides(request.buckets_KF)
    for position in order[: words["shown"]]:
        strength = strength_word(words, float(reading.levels_K[position]), levels)
        line = words["candidate"].format(name=name[position], strength=strength)
        for title, side in (("for", FOR), ("against", AGAINST)):
            said = [
                phrases.say(field, int(request.buckets_KF[position, field]))
                for field in dict.fromkeys(reading.cites[position])
                if side_KF[position, field] == side
            ]
            if said:
                line += words["points"].format(side=words["sides"][title], phrases=listed(said))
        lines.append(("- " if markdown else "") + line)
    if rest := list(order[words["shown"] :]):
        lines.append(_rest_line(words, reading.levels_K, list(order[: words["shown"]]), rest))
    return between.join(lines)


def _rest_line(
    words: Mapping[str, Any], levels_K: np.ndarray, shown: list[int], rest: list[int]
) -> str:
    """What is left to say of those without a line of their own; only what is so."""
    levels_K = np.round(levels_K, 4)  # as ties are told
    lower = bool((levels_K[rest].max() <= levels_K[shown].min()) if len(shown) else False)
    name = ("rest" if lower else "behind") + ("_one" if len(rest) == 1 else "")
    return words[name].format(n=len(rest))
