"""The rendered reasoning: every sentence follows from request, reading and shown order."""

from __future__ import annotations

import re

import numpy as np
import pytest

from diffgr2.prompts.account import Moves, account, bold, history_line, moves_lines, strength_word
from diffgr2.prompts.english import AGAINST, FOR
from diffgr2.prompts.request import Request
from diffgr2.prompts.said import Reading, mean_reading
from support.templates import STRENGTHS, draw_request, draw_trace, template

MADE = template("compact", "trained")
WORDS, PHRASES = MADE.words, MADE.phrases
NAMES = [f"Item {i}" for i in range(20)]


def read(seed: int, k: int) -> tuple[Request, Reading]:
    request = draw_request(seed, k)
    tokens = MADE.response(request, draw_trace(seed, request, MADE)).tokens
    return request, MADE.read(tokens, request)


def said(request: Request, reading: Reading, order, names=NAMES, **how) -> str:
    kinds = ["Hair", "Skin", "Hair"]
    return account(WORDS, PHRASES, request, reading, order, STRENGTHS, names, kinds, **how)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("seed", range(15))
def test_sentences_agree_with_ranking_strengths_and_evidence(k: int, seed: int) -> None:
    request, reading = read(seed, k)
    order = reading.said_order().tolist()
    first, second, *lines = said(request, reading, order).split("\n")
    assert first == "Lately bought: Hair (2 of 3) and Skin."
    ahead = f"First choice: {NAMES[order[0]]}, ahead of {NAMES[order[-1 if k == 1 else 1]]}."
    assert second == (ahead if k > 1 else f"The only candidate: {NAMES[0]}.")
    shown = order[: WORDS["shown"]]
    side_KF = PHRASES.sides(request.buckets_KF)
    grades = []
    for position, line in zip(shown, lines, strict=False):
        name, rest = line.split(": ", 1)
        assert name == NAMES[position]
        grades.append(WORDS["strengths"].index(rest.split(".")[0]))
        for title, side in (("for", FOR), ("against", AGAINST)):
            marker = WORDS["sides"][title] + ": "
            part = rest.split(marker)[1].split(".")[0] if marker in rest else ""
            cited = [f for f in reading.cites[position] if side_KF[position, f] == side]
            phrases = [PHRASES.say(f, int(request.buckets_KF[position, f])) for f in cited]
            assert sorted(re.split(r", | and ", part)) == sorted(
                word for p in phrases or [""] for word in re.split(r", | and ", p)
            )
    assert grades == sorted(grades, reverse=True), "no weaker word for a stronger candidate"
    left = k - len(shown)
    assert lines[len(shown) :] == (
        [] if not left else [(WORDS["rest_one"] if left == 1 else WORDS["rest"]).format(n=left)]
    )


def test_nothing_is_said_of_the_rest_that_an_order_of_another_kind_belies() -> None:
    request, reading = read(1, 20)
    order = reading.said_order().tolist()[::-1]
    assert said(request, reading, order).endswith("The other 17 follow.")
    levels_K = reading.levels_K.copy()
    levels_K[order[1:]] = np.nan
    text = said(request, Reading(levels_K, reading.cites), order)
    assert text.endswith("The other 17 follow.")
    assert text.count("not judged") == 2


def test_where_nobody_was_judged_history_and_verdict_are_all() -> None:
    request, _ = read(1, 20)
    unjudged = Reading(np.full(20, np.nan), ((),) * 20)
    for order in ([4, 2, *range(5, 20)], [7], []):
        for markdown in (False, True):
            text = said(request, unjudged, order, markdown=markdown)
            lines = text.split("\n\n" if markdown else "\n")
            assert len(lines) == 1 + bool(order)
            assert not order or lines[1].startswith(("First choice", "The only candidate"))


@pytest.mark.parametrize(
    "name",
    [
        "Rose *Gold* 50_ml",
        "[x](http://a) `code`",
        "# 1 <b>brush</b> | ~new~",
        "back\\slash",
        "two\nlines\t here ",
        "**",
        "{first} {n}",
    ],
)
def test_names_in_markdown_are_bold_and_nothing_else(name: str) -> None:
    request, reading = read(2, 2)
    text = said(request, reading, [1, 0], names=["Soap", name], markdown=True)
    assert bold(name) in text
    inner = bold(name)[2:-2]
    assert re.sub(r"\\(.)", r"\1", inner) == " ".join(name.split())
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]<>#|~]", inner)
    plain = said(request, reading, [1, 0], names=["Soap", name])
    assert " ".join(name.split()) in plain, "plain text is left alone, but for its line breaks"


def test_what_has_no_name_is_called_by_its_place() -> None:
    request, reading = read(3, 3)
    assert "First choice: #3, ahead of Soap." in said(
        request, reading, [2, 0, 1], names=["Soap", ""]
    )


@pytest.mark.parametrize(
    ("kinds", "newest", "line"),
    [
        ([], [], "No earlier purchases to go by."),
        (["", ""], ["", ""], "Lately bought: items without a name."),
        (["", ""], ["Soap", "Gel"], "To go by: Gel and Soap."),
        (["Hair"], [], "Lately bought: Hair."),
        (["Hair", "Skin"], [], "Lately bought: Skin and Hair."),
        (["A", "B", "C", "D", "A"], [], "Lately bought: A (2 of 5), D and C, among others."),
        (["A", "", "A"], [], "Lately bought: A (2 of 3)."),
    ],
)
def test_the_first_line_counts_what_was_bought(kinds, newest, line) -> None:
    assert history_line(WORDS, kinds, newest) == line


def test_a_higher_level_never_has_weaker_words() -> None:
    grades = [strength_word(WORDS, x, STRENGTHS) for x in np.linspace(0, STRENGTHS - 1, 200)]
    assert list(dict.fromkeys(grades)) == WORDS["strengths"]


@pytest.mark.parametrize(
    ("moves", "line"),
    [
        (Moves(kept=[1]), "Nothing is known of B: it stays where the shop's list had it."),
        (Moves(repeats=[1, 2]), "B and C repeat earlier entries: they stay where the shop's list "
         "had them."),
        (Moves(kept=[*range(4)]), "Nothing is known of A, B, C and 1 other: they stay where the "
         "shop's list had them."),
        (Moves(limited=[*range(5)], limits=[("brand", 1)]), "The shop wants at most 1 of one "
         "brand, so A, B, C and 2 others moved back."),
    ],
)  # fmt: skip
def test_of_many_that_were_moved_three_are_named(moves: Moves, line: str) -> None:
    assert moves_lines(WORDS, moves, list("ABCDE")) == [line]


def test_views_are_averaged_where_they_judged() -> None:
    nan = np.nan
    first = Reading(np.array([1.0, nan, nan]), ((1,), (), ()))
    second = Reading(np.array([2.0, 4.0, nan]), ((2,), (), ()))
    mean = mean_reading([first, second])
    assert np.array_equal(mean.levels_K, [1.5, 4.0, nan], equal_nan=True)
    assert mean.cites == first.cites
    assert mean.said_order().tolist() == [1, 0, 2]
