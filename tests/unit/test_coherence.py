"""Every kind of contradiction, made by hand; the numbers of the rate by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from diffgr2.evaluate.coherence import (
    KINDS,
    MEANING,
    Shown,
    coherence_rate,
    contradictions,
)
from diffgr2.prompts.english import Phrases
from diffgr2.prompts.said import Reading
from support.accounts import STRENGTHS, Case, request_of, template

# The columns are rank, gap, copurchase, lift, last, next, session, brand, category, text.
EVIDENCE = [
    [0, 0, 6, 2, 7, 0, 5, 7, 7, 1],
    [1, 3, 6, 6, 0, 1, 0, 4, 6, 6],
    [2, 5, 0, 1, 2, 5, 0, 0, 4, 6],
    [3, 6, 1, 1, 1, 1, 1, 1, 1, 1],
    [4, 7, 0, 0, 0, 0, 0, 0, 0, 0],
]
CASE = Case(
    request_of(EVIDENCE, history=4),
    Reading(np.array([10.0, 14.0, 7.0, 3.0, 1.0]), ((2, 4, 3), (2, 9, 6), (5, 7), (), ())),
    ("Fern balm", "Oro soap", "Vela oil", "Mira cream", "Nord gel"),
    ("Soap", "Oil", "Soap", "Oil"),
    ("a", "b", "c", "d"),
)
LEVEL = replace(CASE, reading=replace(CASE.reading, levels_K=np.array([13.0, 14.0, 13.0, 1, 0])))
FERN, VELA, REST = (CASE.text().split("\n")[i] for i in (3, 4, 5))


def test_the_text_itself_contradicts_nothing():
    assert CASE.text() == (
        "Lately bought: Oil (2 of 4) and Soap (2 of 4).\n"
        "First choice: Oro soap, ahead of Fern balm.\n"
        "Oro soap: a very strong match. In its favour: very frequently bought together with "
        "earlier purchases and described very much like earlier purchases. Against it: not once "
        "bought on the same day as the latest purchase.\n"
        "Fern balm: a strong match. In its favour: very frequently bought together with earlier "
        "purchases and most frequently paired with the latest purchase. Against it: bought "
        "with earlier purchases slightly more than its popularity suggests.\n"
        "Vela oil: a fair match. In its favour: often bought soon after earlier purchases. "
        "Against it: of a brand that this shopper never buys.\n"
        "The other 2 follow, none of them stronger."
    )
    assert CASE.kinds_found() == ()
    assert CASE.kinds_found(CASE.text(markdown=True)) == ()


SOON = "often bought soon after earlier purchases"
CHANGED = [
    ("unread", REST, f"{REST}\nEverybody loves it."),
    ("unread", SOON, f"{SOON} and loved by all"),
    ("unread", "ahead of Fern balm", "ahead of Rose water"),
    ("history", "Oil (2 of 4)", "Oil (3 of 4)"),
    ("history", "Soap (2 of 4)", "Soap (2 of 3)"),
    ("history", "Oil (2 of 4) and Soap (2 of 4)", "Oil (2 of 4)"),
    ("history", "Oil (2 of 4)", "Cars (2 of 4)"),
    ("history", "Lately bought: Oil (2 of 4) and Soap (2 of 4)", "No earlier purchases to go by"),
    ("misstated", SOON, f"very {SOON}"),
    ("uncited", SOON, f"{SOON} and ranked third by the shop"),
    ("two_grades", SOON, f"{SOON} and very {SOON}"),
    ("two_sides", "Against it: of", f"Against it: {SOON} and of"),
    ("repeated", SOON, f"{SOON} and {SOON}"),
    ("wrong_side", ". Against it: of a brand", " and of a brand"),
    ("strength", "Vela oil: a fair match", "Vela oil: a weak match"),
    ("strength", "Vela oil: a fair match", "Vela oil: not judged"),
    ("verdict", "ahead of Fern balm", "ahead of Vela oil"),
    ("verdict", "choice: Oro soap", "choice: Mira cream"),
    ("verdict", "First choice: Oro soap, ahead of Fern balm", "The only candidate: Vela oil"),
    ("self", "ahead of Fern balm", "ahead of Oro soap"),
    ("rest", "The other 2 follow", "The other 3 follow"),
]


@pytest.mark.parametrize(("kind", "old", "new"), CHANGED)
def test_one_change_of_the_text_is_one_contradiction(kind, old, new):
    assert CASE.text().count(old) == 1
    assert CASE.kinds_found(CASE.text().replace(old, new)) == (kind,)


def test_two_contradictions_are_two():
    text = CASE.text().replace(SOON, f"{SOON}, {SOON} and {SOON}")
    assert CASE.kinds_found(text) == ("repeated", "repeated")
    text = CASE.text().replace("ahead of Fern balm", "ahead of Vela oil").replace("2 f", "9 f")
    assert CASE.kinds_found(text) == ("verdict", "rest")


def test_what_is_said_of_the_favourite_needs_no_saying():
    told = f"{FERN.replace('Against', 'Against')}"
    praised = told.replace(" and most", ", scored level with the shop's favourite and most")
    reading = replace(CASE.reading, cites=((2, 4, 3, 1), *CASE.reading.cites[1:]))
    text = CASE.text().replace(FERN, praised)
    assert CASE.kinds_found(text, reading=reading, tokens=()) == ("wrong_side",)


def test_lines_out_of_order():
    fern, vela = LEVEL.text().split("\n")[3:5]
    text = LEVEL.text().replace(fern, "...").replace(vela, fern).replace("...", vela)
    assert LEVEL.kinds_found(text) == ("lines",)


def test_a_line_that_stands_twice_with_two_strengths():
    text = CASE.text().replace(REST, "Vela oil: a weak match.\nThe other one follows.")
    assert CASE.kinds_found(text) == ("two_strengths", "lines")


def test_strengths_against_the_ranking():
    order = [1, 2, 0, 3, 4]
    assert CASE.kinds_found(CASE.text(order), order=order) == ("rising",)
    order = [1, 0, 2, 4, 3]  # among those without a line of their own
    assert CASE.kinds_found(CASE.text(order), order=order) == ("rising",)


def test_the_rest_is_said_to_be_weaker_than_it_is():
    order = [1, 0, 3, 4, 2]
    text = CASE.text(order)
    assert "The other 2 follow." in text
    assert CASE.kinds_found(text, order=order) == ("rising",)
    text = text.replace("follow.", "follow, none of them stronger.")
    assert CASE.kinds_found(text, order=order) == ("rising", "rest")


def changed_tokens(before: tuple[int, int], *after: int) -> list[int]:
    """The response with other tokens in place of one piece of evidence."""
    tokens = CASE.tokens()
    at = tokens.index(evidence(*before))
    return [*tokens[:at], *after, *tokens[at + 1 :]]


def evidence(field: int, bucket: int) -> int:
    buckets_KF = np.zeros((1, len(EVIDENCE[0])), int)
    buckets_KF[0, field] = bucket
    return int(template().vocab.evidence_ids(buckets_KF)[0, field])


def test_contradictions_in_the_response_itself():
    other = evidence(5, 6)
    assert CASE.kinds_found(tokens=changed_tokens((5, 5), other)) == ("citation",)
    own = evidence(5, 5)
    assert CASE.kinds_found(tokens=changed_tokens((5, 5), own, own)) == ("repeated",)
    found = CASE.kinds_found(tokens=changed_tokens((5, 5), own, other))
    assert found == ("two_grades", "citation")
    found = CASE.kinds_found(tokens=changed_tokens((5, 5), own, evidence(5, 0)))
    assert found == ("two_sides", "citation")
    strengths = [template().vocab.strength_id(level) for level in (7, 3)]
    tokens = CASE.tokens()
    at = tokens.index(strengths[0]) + 1
    assert CASE.kinds_found(tokens=[*tokens[:at], strengths[1], *tokens[at:]]) == ("two_strengths",)
    hidden = replace(CASE, request=request_of([[255] * 10, *EVIDENCE[1:]], history=4))
    silent = replace(CASE.reading, cites=((), *CASE.reading.cites[1:]))
    text = replace(hidden, reading=silent).text()
    assert hidden.kinds_found(text, tokens=CASE.tokens()) == ("citation",) * 3


def test_every_kind_has_a_meaning_and_its_example_here():
    elsewhere = {"two_strengths", "lines", "rising", "citation"}
    assert {kind for kind, _, _ in CHANGED} | elsewhere == set(KINDS) == set(MEANING)


def test_equal_names_are_told_apart_by_their_places():
    twins = replace(CASE, names=("Fern", "Fern", "Vela", "", ""))
    assert "First choice: Fern (#2), ahead of Fern (#1)." in twins.text()
    assert twins.kinds_found() == ()
    assert twins.kinds_found(twins.text(markdown=True)) == ()
    text = twins.text().replace("ahead of Fern (#1)", "ahead of Fern (#2)")
    assert twins.kinds_found(text) == ("self",)


# ------------------------------------------------------------------------------- other wordings


@dataclass(frozen=True)
class Worded:
    """A template of another wording over the same tokens."""

    words: dict[str, Any]

    @property
    def vocab(self):
        return template().vocab

    @property
    def phrases(self) -> Phrases:
        return template().phrases

    def thought(self, tokens):
        return template().thought(tokens)

    def citations(self, tokens, request):
        return template().citations(tokens, request)


FIRST = Worded(
    {
        "history": "History: lately {kinds}.",
        "candidate": "{name} is {strength}.",
        "points": " {side}: {phrases}.",
        "sides": {"for": "Best points", "against": "Weaker points"},
        "verdict": "First choice is {first} ({because}), ahead of {second} (weaker: {weaker}).",
        "rest": "The other {n} are less likely.",
        "unsaid": "not judged",
        "strengths": ["very unlikely", "unlikely", "possible", "likely", "very likely"],
    }
)
MORE = "bought with earlier purchases slightly more than its popularity suggests"
FIRST_TEXT = """Oro soap is very likely. Best points: very frequently bought together with earlier \
purchases. Weaker points: not once bought on the same day as the latest purchase.
Fern balm is likely. Best points: most frequently paired with the latest purchase.
First choice is Oro soap (very frequently bought together with earlier purchases), \
ahead of Fern balm (weaker: bought with earlier purchases slightly more than its popularity \
suggests).
The other 3 are less likely."""


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        ("", "", ()),
        ("ahead of Fern balm", "ahead of Oro soap", ("misstated", "uncited", "self")),
        ("Fern balm is likely", "Fern balm is very likely", ("strength",)),
        (
            "points: most",
            f"points: {MORE} and most",
            ("two_sides",),
        ),
        ("The other 3", "The other 7", ("rest",)),
    ],
)
def test_texts_in_the_manner_of_the_first_version(old, new, kinds):
    assert contradictions(FIRST, CASE.shown(FIRST_TEXT.replace(old, new), tokens=())) == kinds


CHAT = Worded(
    {
        "steps": {
            "candidate": " In favour of {sid}: {for}; less so: {against}.",
            "verdict": " So {best} comes first ({for}), ahead of {second} (weaker: {against}).",
            "only": " So {best} comes first ({for}).",
        },
        "strengths": FIRST.words["strengths"],
    }
)
CHAT_TEXT = (
    "The shopper mostly buys from Oil, most recently d. In favour of Oro soap: very frequently "
    "bought together with earlier purchases; less so: not once bought on the same day as the "
    "latest purchase. So Oro soap comes first (very frequently bought together with earlier "
    f"purchases), ahead of Fern balm (weaker: {MORE})."
)
UNSAID = Reading(np.full(5, np.nan), ((),) * 5)
SID = "<|sid_begin|><s_a_0><s_b_0><|sid_end|>"


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        ("", "", ()),
        ("ahead of Fern balm", "ahead of Vela oil", ("misstated", "verdict")),
        ("ahead of Fern balm (weaker", "ahead of Oro soap (weaker", ("misstated", "self")),
        ("So Oro", "Vela oil, often bought soon after earlier purchases, is good. So Oro", ()),
        ("So Oro", "Vela oil, rarely bought soon after earlier purchases. So Oro", ("misstated",)),
        ("So Oro", "<s_a_0><s_b_0> (ranked first by the shop). So Oro", ()),
        ("So Oro", "<s_a_0><s_b_0> (ranked third by the shop). So Oro", ("misstated",)),
        (
            "first (very frequently bought together with earlier purchases)",
            "first because I say",
            (),
        ),
        ("less so: not once", "less so: regularly", ("misstated", "wrong_side")),
        (
            "less so",
            "and very frequently bought together with earlier purchases; less so",
            ("repeated",),
        ),
    ],
)
def test_free_text(old, new, kinds):
    text = CHAT_TEXT.replace(old, new)
    shown = Shown(CASE.request, UNSAID, CASE.order(), text, names=CASE.names, newest=CASE.newest)
    assert contradictions(CHAT, shown) == kinds


# ---------------------------------------------------------------------------------------- rates


def test_the_rate_and_its_interval_by_hand():
    rate, (low, high) = coherence_rate([0, 2, 0, 0, 1, 0, 0, 0, 0, 3])
    assert rate == 0.7
    assert (low, high) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    assert coherence_rate(np.array([], dtype=int)) == (0.0, (0.0, 1.0))
    assert template().vocab.spec.strengths == STRENGTHS
