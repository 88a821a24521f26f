"""The shop's own rules for one ranking: pin, exclude, boost, at most so many of a kind.

Contract: `read_rules` checks what a caller gave and says in one line what contradicts itself;
`placing_of` finds the ids in a list; `Placing.arranged` turns the model's ranking of the candidates
that it may judge into the order of the answer. Excluded candidates leave the answer, pinned ones
stand at their place (1 is the top), and those of which nothing is known keep the place in which the
shop's list had them. The others follow as ranked, strengths changed by their boost; of a group that
is full, the rest comes behind them. `Placing.moved` says what was done to whom. Not here: strengths
(`task`), words (`prompts.account`).

    reranker.rank(history, ids, rules={"pin": ["P7"], "max_per": {"brand": 2}})
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from diffgr2.errors import DataError
from diffgr2.prompts.account import Moves

RULES = ("pin", "exclude", "boost", "max_per")

Moved = Literal["pinned", "boosted", "kept", "limited"]
"""Why an item does not stand where the model alone would put it."""

GROUPS = ("brand", "category")
"""What `max_per` may count by, besides the lists' own features."""

STRONGEST = 1e6  # levels that a boost may add


@dataclass(frozen=True)
class Rules:
    """Rules by id, as they were given."""

    pin: tuple[tuple[str, int | None], ...] = ()  # None: the next place from the top
    exclude: tuple[str, ...] = ()
    boost: tuple[tuple[str, float], ...] = ()
    max_per: tuple[tuple[str, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.pin or self.exclude or self.boost or self.max_per)


def read_rules(given: Mapping[str, Any] | None) -> Rules:
    """See the module's docstring.

    >>> read_rules({"pin": ["a"], "exclude": ["a"]})
    Traceback (most recent call last):
    diffgr2.errors.DataError: pin: 'a' is excluded as well
    """
    given = {key: value for key, value in (given or {}).items() if value is not None}
    for key in given:
        if key not in RULES:
            raise DataError(f"rules: {str(key)[:80]!r} is none (known: {', '.join(RULES)})")
    rules = Rules(
        _pins(given.get("pin", [])),
        tuple(_ids(given.get("exclude", []), "exclude")),
        tuple((id_, _levels(id_, by)) for id_, by in _pairs(given.get("boost", {}), "boost")),
        tuple((k, _count(k, most)) for k, most in _pairs(given.get("max_per", {}), "max_per")),
    )
    gone = set(rules.exclude)
    for id_, _ in rules.pin:
        if id_ in gone:
            raise DataError(f"pin: {shown(id_)} is excluded as well")
    return rules


def shown(id_: str) -> str:
    """An id in a message, cut short."""
    return repr(id_ if len(id_) <= 80 else id_[:79] + "…")


def _ids(value: Any, rule: str) -> list[str]:
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not listed or not all(isinstance(id_, str) and id_ for id_ in value):
        raise DataError(f"{rule}: expected a list of ids")
    return list(value)


def _pairs(value: Any, rule: str) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and k for k in value):
        raise DataError(f"{rule}: expected an object")
    return list(value.items())


def _pins(value: Any) -> tuple[tuple[str, int | None], ...]:
    """A list of ids for the top, or an object of places."""
    if not isinstance(value, Mapping):
        ids = _ids(value, "pin")
        twice = [id_ for id_, n in Counter(ids).items() if n > 1]
        if twice:
            raise DataError(f"pin: {shown(twice[0])} stands twice")
        return tuple((id_, None) for id_ in ids)
    first: dict[int, str] = {}
    for id_, place in _pairs(value, "pin"):
        if isinstance(place, bool) or not isinstance(place, int) or place < 1:
            raise DataError(f"pin: {shown(id_)}: expected a place from 1 (the top)")
        if first.setdefault(place, id_) != id_:
            raise DataError(f"pin: {shown(first[place])} and {shown(id_)} at one place ({place})")
    return tuple((id_, place) for place, id_ in first.items())


def _levels(id_: str, by: Any) -> float:
    number = isinstance(by, int | float) and not isinstance(by, bool)
    if not number or not math.isfinite(by) or abs(by) > STRONGEST:
        raise DataError(f"boost: {shown(id_)}: expected a number of levels")
    return float(by)


def _count(key: str, most: Any) -> int:
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise DataError(f"max_per: {shown(key)}: expected a whole number from 1")
    return most


# ------------------------------------------------------------------------------------ one list


@dataclass(frozen=True)
class Limit:
    """At most so many of a group; `group_N` is each candidate's, None where it has none."""

    by: str
    most: int
    group_N: tuple[Hashable, ...]


@dataclass(frozen=True)
class Placing:
    """The rules as positions of a list of n."""

    n: int
    kept: frozenset[int] = frozenset()  # not judged: nothing is known of them, or they are repeats
    excluded: frozenset[int] = frozenset()
    pinned: Mapping[int, int] = field(default_factory=dict)  # position -> place from 0
    boosts: Mapping[int, float] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    repeats: frozenset[int] = frozenset()  # those of `kept` that stand earlier in the list, too

    @property
    def judged(self) -> list[int]:
        """Whom the model is asked about."""
        return [at for at in range(self.n) if at not in self.kept and at not in self.excluded]

    @property
    def plain(self) -> bool:
        """Nothing but the model has a say."""
        return not (self.kept or self.excluded or self.pinned or self.boosts or self.limits)

    def arranged(self, ranked: Sequence[int]) -> tuple[list[int], dict[int, Moved]]:
        """The answer's order, and who was moved; `ranked` are the judged, boosts included."""
        moved: dict[int, Moved] = {at: "boosted" for at in self.boosts if at not in self.excluded}
        left = [at for at in range(self.n) if at not in self.excluded]
        places: list[int | None] = [None] * len(left)
        for at, place in self.pinned.items():
            places[place], moved[at] = at, "pinned"
        for at, place in self.kept_places().items():
            places[place], moved[at] = at, "kept"
        waiting = iter(self._limited([at for at in ranked if at not in self.pinned], moved))
        return [next(waiting) if at is None else at for at in places], moved

    def kept_places(self) -> dict[int, int]:
        """Where those stand that nobody judges: as the shop's list had them, but for the rules."""
        left = [at for at in range(self.n) if at not in self.excluded]
        free = sorted({*range(len(left))} - {*self.pinned.values()})
        found: dict[int, int] = {}
        for at in sorted(self.kept - self.excluded - self.pinned.keys()):
            # Its own place, or the next one that no pin has taken (at the end: the last free one).
            own = left.index(at)
            found[at] = next((place for place in free if place >= own), free[-1])
            free.remove(found[at])
        return found

    def moves(self, moved: Mapping[int, Moved]) -> Moves:
        """The same for whoever tells it; a pin says all that there is to say of an item."""
        limited = [at for at, why in moved.items() if why == "limited"]
        told = self.boosts.keys() - self.pinned.keys() - self.excluded
        boosts = {at: by for at, by in self.boosts.items() if at in told}
        kept = sorted(at for at, why in moved.items() if why == "kept")
        off = {at for at, place in self.kept_places().items() if place != at}
        limits = [(limit.by, limit.most) for limit in self.limits]
        repeats = [at for at in kept if at in self.repeats]
        unknown = [at for at in kept if at not in self.repeats]
        return Moves(self.pinned, boosts, unknown, limited, limits, repeats, frozenset(off))

    def _limited(self, ranked: list[int], moved: dict[int, Moved]) -> list[int]:
        """As ranked, but who comes when a group of theirs is full comes behind all others."""
        counts: Counter[tuple[str, Hashable]] = Counter()
        for at in self.pinned:  # they stand whatever else, and count
            counts.update(self._groups(at))
        first, rest = list[int](), list[int]()
        most = {limit.by: limit.most for limit in self.limits}
        for at in ranked:
            groups = self._groups(at)
            full = any(counts[group] >= most[group[0]] for group in groups)
            (rest if full else first).append(at)
            if not full:
                counts.update(groups)
        order, before = first + rest, {at: place for place, at in enumerate(ranked)}
        for place, at in enumerate(order):
            if place > before[at]:  # who comes last anyway was not moved
                moved[at] = "limited"
        return order

    def _groups(self, at: int) -> list[tuple[str, Hashable]]:
        groups = [(limit.by, limit.group_N[at]) for limit in self.limits]
        return [group for group in groups if group[1] is not None]


def placing_of(
    rules: Rules,
    names_N: Sequence[Collection[str]],
    kept: Collection[int],
    group_of: Callable[[str, int], Hashable],
    repeats: Collection[int] = (),
) -> tuple[Placing, list[str]]:
    """The rules for a list whose candidates go by these names; and what they ask for in vain.

    `group_of(key, position)` is a candidate's group, None where it has none; a KeyError with the
    known keys if there is no such key.
    """
    where: dict[str, list[int]] = {}
    for at, names in enumerate(names_N):
        for name in names:
            where.setdefault(name, []).append(at)
    n, warnings = len(names_N), list[str]()
    excluded = frozenset(at for id_ in rules.exclude for at in where.get(id_, ()))
    if len(excluded) == n:
        raise DataError("exclude: leaves nothing of the list")
    pins = [(id_, where[id_][0], place) for id_, place in rules.pin if id_ in where]
    pinned: dict[int, int] = {}
    for place_, (id_, at, place) in enumerate(pins, 1):
        place = place_ if place is None else place
        if at in pinned or at in excluded:
            told = "is excluded by another name" if at in excluded else "is pinned by another name"
            raise DataError(f"pin: {shown(id_)} {told}")
        if place > n - len(excluded):
            raise DataError(f"pin: {shown(id_)} at place {place} of {n - len(excluded)}")
        pinned[at] = place - 1
    boosts = {
        at: by for id_, by in rules.boost for at in where.get(id_, ()) if by and at not in kept
    }
    for rule, ids in (("pin", dict(rules.pin)), ("boost", dict(rules.boost))):
        lost = [shown(id_) for id_ in ids if id_ not in where]
        if lost:
            more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            warnings.append(f"{rule}: {', '.join(lost[:3])}{more} not in the list, ignored")
    vain = [id_ for id_, _ in rules.boost if any(at in kept for at in where.get(id_, ()))]
    warnings += [f"boost: {shown(id_)} cannot be judged, ignored" for id_ in vain]
    limits = [
        Limit(key, most, tuple(_group(group_of, key, at) for at in range(n)))
        for key, most in rules.max_per
    ]
    whom = frozenset(kept), excluded, pinned, boosts, tuple(limits), frozenset(repeats)
    return Placing(n, *whom), warnings


def _group(group_of: Callable[[str, int], Hashable], key: str, at: int) -> Hashable:
    try:
        return group_of(key, at)
    except KeyError as error:
        raise DataError(f"max_per: {shown(key)} is unknown (known: {error.args[0]})") from None
