"""What is rendered never contradicts anything, and what is changed in it is found."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffgr2.evaluate.coherence import Shown, contradictions
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.said import mean_reading
from support import templates
from support.accounts import K_MAX, Case, drawn, template

NEAR = {"unread", "uncited", "two_grades", "two_sides", "repeated"}
"""What else it is where a grade is another field's, or is said of the field elsewhere."""
SIDES = tuple(template().words["sides"].values())


@st.composite
def cases(draw, least: int = 1) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return drawn(rng, draw(st.integers(least, K_MAX)))


def named(case: Case) -> Case:
    """The same with names that cannot be mistaken for another."""
    return replace(case, names=tuple(f"item {chr(97 + i)}" for i in range(case.request.k)))


@given(cases(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_rendered_text_contradicts_nothing(case, markdown):
    assert case.kinds_found(case.text(markdown=markdown)) == ()


@given(cases(), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_nor_does_that_of_views_and_other_presentations(case, seed):
    rng = np.random.default_rng(seed)
    order_K = rng.permutation(case.request.k)
    seen = replace(
        case.reading,
        levels_K=case.reading.levels_K[order_K],
        cites=tuple(case.reading.cites[i] for i in order_K),
    )
    case = replace(case, reading=mean_reading([case.reading, seen.restored(order_K)]))
    assert case.kinds_found(tokens=()) == ()


@given(cases(least=2), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_a_written_order_is_incoherent_just_where_strengths_rise(case, random):
    order = list(range(case.request.k))
    random.shuffle(order)
    levels = np.round(case.reading.levels_K[order], 4)
    rises = bool((np.diff(levels[~np.isnan(levels)]) > 0).any())
    assert case.kinds_found(case.text(order), order=order) == ("rising",) * rises


@given(st.integers(0, 10_000), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_an_explanation_by_the_chat_contradicts_nothing(seed, k):
    gr2 = templates.template("gr2", "trained")
    assert isinstance(gr2, Gr2)
    request = templates.draw_request(seed, k)
    trace = templates.draw_trace(seed, request, gr2)
    tokens = gr2.response(request, trace).tokens
    names = [f"item {chr(97 + i)}" for i in range(k)]
    newest = [text.rsplit(" (", 1)[0] for text in request.history_texts]
    text, order = gr2.english(tokens, request, names), trace.order_K.tolist()
    shown = Shown(request, gr2.read(tokens, request), order, text, tokens, names, newest=newest)
    assert contradictions(gr2, shown) == ()
    if k > 1:
        turned = replace(shown, order=order[::-1])
        assert "verdict" in contradictions(gr2, turned)


def changes(case: Case, text: str):
    """(kind, changed text) of every way to spoil this text."""
    words, phrases = template().words, template().phrases.all()
    order = case.order()
    a, b = (case.names[i] for i in order[:2])
    lines = text.split("\n")
    yield "verdict", text.replace(f"{a}, ahead of {b}.", f"{b}, ahead of {a}.")
    yield "self", text.replace(f"{a}, ahead of {b}.", f"{a}, ahead of {a}.")
    yield "lines", "\n".join([*lines[:2], lines[3], lines[2], *lines[4:]])
    grades = [*words["strengths"], words["unsaid"]]
    for grade in grades:
        own = re.search(r": (.*?)\.", lines[2])
        assert own is not None
        if grade != own[1]:
            yield "strength", text.replace(f"\n{a}: {own[1]}.", f"\n{a}: {grade}.")
    if rest := re.search(r"The other (\d+)", text):
        yield "rest", text.replace(rest[0], f"The other {int(rest[1]) + 1}")
    if count := re.search(r"\((\d+) of (\d+)\)", text):
        yield "history", text.replace(count[0], f"({int(count[1]) + 1} of {count[2]})")
        yield "history", text.replace(count[0], f"({count[1]} of {int(count[2]) + 1})")
    for side, other in (SIDES, SIDES[::-1]):
        if f" {side}: " in text and f" {other}: " not in text:
            yield "wrong_side", text.replace(f" {side}: ", f" {other}: ")
    pattern = "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))
    for said in list(re.finditer(rf"(?<=: )(?:{pattern})(?=[.,]| and )", text))[:3]:
        start, end, phrase = said.start(), said.end(), said[0]
        yield "repeated", f"{text[:end]}, {phrase}{text[end:]}"
        for change in phrases:
            if change.split()[-3:] == phrase.split()[-3:] and change != phrase:
                yield "misstated", text[:start] + change + text[end:]
                yield "two_grades", f"{text[:end]}, {change}{text[end:]}"


@given(cases(least=2))
@settings(max_examples=60, deadline=None)
def test_every_change_of_a_text_is_found(case):
    case = named(case)
    text = case.text()
    assume(case.kinds_found(text) == ())
    assume(text.count("\n") > 2)  # of a list that was not judged there is little to spoil
    for kind, spoiled in changes(case, text):
        assert spoiled != text, kind
        found = contradictions(template(), case.shown(spoiled))
        assert kind in found or NEAR & set(found), (kind, spoiled)


@given(cases(), st.text(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_text_can_be_judged(case, text):
    assert set(case.kinds_found(text)) <= {"unread"}


@given(cases(), st.lists(st.integers(0, template().vocab.spec.size - 1), max_size=80))
@settings(max_examples=100, deadline=None)
def test_any_response_can_be_judged(case, tokens):
    reading = template().read(tokens, case.request)
    case = replace(case, reading=reading)
    own = {"citation", "two_sides", "two_grades", "repeated", "two_strengths"}
    assert set(case.kinds_found(tokens=tokens)) <= own
