"""The shop's rules: what is read, what contradicts itself, and the order that they make."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from diffgr2.errors import DataError
from diffgr2.rerank.rules import Limit, Placing, placing_of, read_rules

NAMES = list("abcdefgh")
BRANDS = dict(zip(NAMES, ["x", "x", "x", "y", "y", None, "z", None], strict=True))


def brand_of(key: str, at: int) -> str | None:
    if key != "brand":
        raise KeyError("brand")
    return BRANDS[NAMES[at]]


def placed(rules: dict[str, Any], kept: str = "", n: int = 8) -> Placing:
    names = [{name} for name in NAMES[:n]]
    return placing_of(read_rules(rules), names, [NAMES.index(k) for k in kept], brand_of)[0]


def order(rules: dict[str, Any], ranked: str, kept: str = "") -> str:
    placing = placed(rules, kept)
    asked = [NAMES.index(name) for name in ranked]
    found, _ = placing.arranged([at for at in asked if at in placing.judged])
    return "".join(NAMES[at] for at in found)


# ------------------------------------------------------------------------------------ examples


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({}, "hgfedcba"),
        ({"pin": ["a", "c"]}, "achgfedb"),
        ({"pin": {"a": 1, "b": 8}}, "ahgfedcb"),
        ({"pin": {"h": 4}}, "gfehdcba"),
        ({"exclude": ["h", "a", "nobody"]}, "gfedcb"),
        ({"max_per": {"brand": 1}}, "hgfecdba"),
        ({"max_per": {"brand": 2}}, "hgfedcba"[:6] + "ba"),
        ({"pin": ["a"], "max_per": {"brand": 1}}, "ahgfedcb"),
        ({"pin": {"h": 2}, "exclude": ["g"]}, "fhedcba"),
    ],
)
def test_rules_make_this_order_of_a_reversed_list(rules: dict[str, Any], wanted: str) -> None:
    assert order(rules, "hgfedcba") == wanted


def test_who_is_not_judged_keeps_its_place() -> None:
    assert order({}, "hgfeda", kept="bc") == "hbcgfeda"
    assert order({"pin": {"h": 2}}, "hgfeda", kept="bc") == "ghbcfeda"  # the next free places
    assert order({"exclude": ["a"]}, "hgfed", kept="bc") == "bchgfed"
    assert order({"pin": ["h"]}, "ab" + "cdefg", kept="h") == "habcdefg"
    found, moved = placed({"pin": {"a": 8}}, "h").arranged([0, 1, 2, 3, 4, 5, 6])
    assert "".join(NAMES[at] for at in found) == "bcdefgha"
    assert moved == {0: "pinned", 7: "kept"}


def test_repeats_and_who_left_its_place_are_told_apart() -> None:
    rules = read_rules({"pin": {"h": 2}})
    kept = [NAMES.index(name) for name in "bcg"]
    placing, _ = placing_of(rules, [{name} for name in NAMES], kept, brand_of, kept[1:])
    moves = placing.moves(placing.arranged([7, 5, 4, 3, 0])[1])
    assert (list(moves.kept), list(moves.repeats)) == ([1], [2, 6])
    assert moves.off == {1, 2}


def test_only_who_comes_later_than_ranked_is_said_to_be_limited() -> None:
    ranked = [NAMES.index(name) for name in "abcdefgh"]
    _, moved = placed({"max_per": {"brand": 2}}).arranged(ranked)
    assert moved == {NAMES.index("c"): "limited"}
    _, moved = placed({"max_per": {"brand": 1}}, "deg").arranged([5, 7, 0, 1, 2])
    assert set(moved.values()) == {"kept"}  # two of x are over, but nobody comes before them


def test_what_is_asked_in_vain_is_one_warning_a_rule() -> None:
    rules = read_rules({"pin": ["a", "zz"], "boost": dict.fromkeys("vwxyz", 1.0), "exclude": ["q"]})
    placing, warnings = placing_of(rules, [{"a"}, {"b"}], [], brand_of)
    assert warnings == [
        "pin: 'zz' not in the list, ignored",
        "boost: 'v', 'w', 'x' and 2 more not in the list, ignored",
    ]
    assert dict(placing.pinned) == {0: 0}
    _, warnings = placing_of(read_rules({"boost": {"a": 2}}), [{"a"}, {"b"}], [0], brand_of)
    assert warnings == ["boost: 'a' cannot be judged, ignored"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"pins": ["a"]}, "rules: 'pins' is none (known: pin, exclude, boost, max_per)"),
        ({"pin": "a"}, "pin: expected a list of ids"),
        ({"pin": ["a", "a"]}, "pin: 'a' stands twice"),
        ({"pin": {"a": 1, "b": 1}}, "pin: 'a' and 'b' at one place (1)"),
        ({"pin": {"a": 0}}, "pin: 'a': expected a place from 1 (the top)"),
        ({"pin": {"a": True}}, "pin: 'a': expected a place from 1 (the top)"),
        ({"pin": {"a": 9}}, "pin: 'a' at place 9 of 8"),
        ({"pin": {"a": 8}, "exclude": ["b"]}, "pin: 'a' at place 8 of 7"),
        ({"pin": ["a"], "exclude": ["a"]}, "pin: 'a' is excluded as well"),
        ({"exclude": "a"}, "exclude: expected a list of ids"),
        ({"exclude": NAMES}, "exclude: leaves nothing of the list"),
        ({"boost": ["a"]}, "boost: expected an object"),
        ({"boost": {"a": float("nan")}}, "boost: 'a': expected a number of levels"),
        ({"boost": {"a": "2"}}, "boost: 'a': expected a number of levels"),
        ({"max_per": {"brand": 0}}, "max_per: 'brand': expected a whole number from 1"),
        ({"max_per": {"colour": 1}}, "max_per: 'colour' is unknown (known: brand)"),
        ({"pin": [f"{'x' * 100}", f"{'x' * 100}"]}, f"pin: '{'x' * 79}…' stands twice"),
    ],
)
def test_what_cannot_be_obeyed_is_one_line(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        placed(rules)
    assert str(caught.value) == message


def test_two_names_of_one_item_are_one_pin() -> None:
    rules = read_rules({"pin": ["a", "A"]})
    with pytest.raises(DataError, match="pin: 'A' is pinned by another name"):
        placing_of(rules, [{"a", "A"}, {"b"}], [], brand_of)


# ---------------------------------------------------------------------------------- properties

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
JSON = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=4), PLAIN, max_size=3)


@given(st.dictionaries(st.sampled_from(["pin", "exclude", "boost", "max_per", "x"]), JSON))
def test_any_value_is_rules_or_one_line(value: dict[str, Any]) -> None:
    try:
        told = repr(read_rules(value))
    except DataError as error:
        told = str(error)
        assert len(told) < 300
    assert "\n" not in told


@st.composite
def placings(draw: st.DrawFn) -> tuple[Placing, list[int]]:
    n = draw(st.integers(1, 9))
    whom = st.sets(st.integers(0, n - 1), max_size=n - 1)
    excluded, kept = frozenset(draw(whom)), frozenset(draw(whom))
    left = [at for at in range(n) if at not in excluded]
    places = draw(st.permutations(range(len(left))))
    pinned = dict(zip(draw(st.lists(st.sampled_from(left), unique=True)), places, strict=False))
    groups = [
        Limit(
            by,
            draw(st.integers(1, 3)),
            tuple(draw(st.sampled_from([None, 0, 1])) for _ in range(n)),
        )
        for by in ("brand", "category")[: draw(st.integers(0, 2))]
    ]
    placing = Placing(n, kept, excluded, pinned, {}, tuple(groups))
    assume(left)
    return placing, draw(st.permutations(placing.judged))


@given(placings())
def test_every_rule_is_obeyed(case: tuple[Placing, list[int]]) -> None:
    placing, ranked = case
    found, moved = placing.arranged(ranked)
    left = [at for at in range(placing.n) if at not in placing.excluded]
    assert sorted(found) == left  # nobody is lost, nobody comes twice
    for at, place in placing.pinned.items():
        assert found[place] == at
        assert moved[at] == "pinned"
    for at in placing.kept - placing.excluded - placing.pinned.keys():
        assert moved[at] == "kept"
        if not placing.pinned:
            assert found.index(at) == left.index(at)
    free = [at for at in found if at in placing.judged and at not in placing.pinned]
    assert free == slowly_limited(placing, [at for at in ranked if at not in placing.pinned])
    if placing.plain:
        assert found == ranked
        assert moved == {}


def slowly_limited(placing: Placing, ranked: list[int]) -> list[int]:
    """Take the first who still fits, again and again; the others follow."""
    waiting, taken = list(ranked), list[int]()
    stands = [*placing.pinned]
    for at in ranked:
        fits = True
        for limit in placing.limits:
            counts = Counter(limit.group_N[other] for other in [*stands, *taken])
            group = limit.group_N[at]
            fits &= group is None or counts[group] < limit.most
        if fits:
            taken.append(at)
            waiting.remove(at)
    return taken + waiting
