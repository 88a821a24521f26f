"""Answers of a language model that come as text: every shape that models write, and any rubbish."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.candidates.fields import COUNTED, names_of
from diffgr2.prompts.chat import LONGEST_EXPLANATION, Chat, Sid, pieces_of, sids_of
from diffgr2.prompts.request import MISSING, Request
from diffgr2.types import FAILURES

TEN = COUNTED[:10]
NAMES = names_of(TEN)

K = 4
REQUEST = Request(
    np.array([[9, 9]]),
    np.array([[1, 0], [2, 0], [3, 0], [4, 5]]),
    np.zeros((K, len(NAMES)), np.uint8),
    ("Soap",),
    ("Gel", "Cream", "Comb", "Brush"),
    ("Bath",),
)
CHAT = Chat(TEN, 8)
SIDS = [sid.text for sid in sids_of(REQUEST.codes_KL)]
BARE = [sid.removeprefix("<|sid_begin|>").removesuffix("<|sid_end|>") for sid in SIDS]


def body(recommendations: object, explanation: object = "Because of [2].") -> str:
    return json.dumps({"explanation": explanation, "recommendations": recommendations})


@pytest.mark.parametrize(
    "text",
    [
        body([SIDS[i] for i in (2, 0, 1, 3)]),
        body([BARE[i] for i in (2, 0, 1, 3)]),
        body([3, 1, 2, 4]),
        body(["3", "1", "2", "4"]),
        body(["[3]", " [1] ", "[ 2 ]", "[4]"]),
        body([f"{SIDS[i]} (a title)" for i in (2, 0, 1, 3)]),
        f"```json\n{body([3, 1, 2, 4])}\n```",
        f"Let me think {{aloud}}.\n```\n{body([3, 1, 2, 4])}\n```\nDone.",
        f"<think>{body([1, 2, 3, 4])}</think> {body([3, 1, 2, 4])}",
        "Because of [2]. So: [3] > [1] > [2] > [4]",
        "Because of [2]. [3]>[1]>[2]>[4].",
        "Because of [2]. " + " > ".join(SIDS[i] for i in (2, 0, 1, 3)),
        body([3, 1, 2, 4], ["Because", "of [2]."]),
        body([3, 1, 2, 4], {"step 1": "Because of", "step 2": "[2]."}),
    ],
)
def test_every_shape_of_the_same_answer(text: str) -> None:
    answer = CHAT.parse_text(text, REQUEST)
    assert answer.order == (2, 0, 1, 3)
    assert answer.valid
    assert SIDS[1] in answer.reasoning
    assert "[2]" not in answer.reasoning


@pytest.mark.parametrize(
    ("text", "failures"),
    [
        ("", ("unparseable",)),
        ("I cannot help with that.", ("unparseable",)),
        (body([1, 2, 3, 4])[:-3], ("unparseable",)),
        (body([]), ("unparseable",)),
        (body("3 1 2 4"), ("unparseable",)),
        (body([1, 2, None, 4]), ("unparseable",)),
        (body([1, 2, True, 4]), ("unparseable",)),
        (body([1, 2, "the comb", 4]), ("unparseable",)),
        (body([1, 2, 3]), ("missing",)),
        (body([1, 2, 3, 3]), ("duplicate", "missing")),
        (body([1, 2, 3, 4, 4]), ("duplicate",)),
        (body([1, 2, 3, 5]), ("missing", "out_of_set")),
        (body([0, 2, 3, 1]), ("missing", "out_of_set")),
        (body([*SIDS[:3], "<s_a_7><s_b_7>"]), ("missing", "out_of_set")),
        (body([*SIDS[:3], "<s_b_5><s_a_4>"]), ("unparseable",)),
        ("[1] > [2] > [9] > [4]", ("missing", "out_of_set")),
        (body([1, 2, 3, 4], "long " * LONGEST_EXPLANATION), ("overlong",)),
        ("[" * 50_000, ("unparseable",)),
        ('{"recommendations": [' + "1" * 9_000 + "]}", ("unparseable",)),
    ],
)
def test_what_is_wrong_is_named(text: str, failures: tuple[str, ...]) -> None:
    assert CHAT.parse_text(text, REQUEST).failures == failures


text_parts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [*SIDS, *BARE, "[1]", " > ", "{", "}", '"', "[", "]", ",", "```json", "\ud800"]
    ),
    st.sampled_from(['{"recommendations": [', '"explanation": "', body([4, 3, 2, 1])]),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(text_parts, max_size=25).map("".join))
def test_no_text_makes_the_reader_raise(text: str) -> None:
    answer = CHAT.parse_text(text, REQUEST)
    assert set(answer.failures) <= set(FAILURES)
    assert answer.valid == (sorted(answer.order) == list(range(K)))
    answer.reasoning.encode()


@given(st.lists(text_parts, max_size=12).map("".join))
def test_pieces_make_up_the_text(text: str) -> None:
    pieces = list(pieces_of(text))
    bare = "".join(p if isinstance(p, str) else p.text[13:-11] for p in pieces)
    drop = [text, bare]
    for mark in ("<|sid_begin|>", "<|sid_end|>"):
        drop = [part.replace(mark, "") for part in drop]
    assert drop[0] == drop[1]


def test_evidence_that_is_missing_is_not_told() -> None:
    buckets_KF = REQUEST.buckets_KF.copy()
    buckets_KF[:] = 5
    buckets_KF[1] = MISSING
    lines = CHAT.messages(replace(REQUEST, buckets_KF=buckets_KF))[1]["content"].splitlines()
    shown = [len(list(CHAT.phrases.find(line))) for line in lines if "Evidence" in line]
    assert shown == [len(NAMES), 0, len(NAMES), len(NAMES)]


def test_the_target_is_told_in_targeted_messages_only() -> None:
    hidden, told = CHAT.messages(REQUEST), CHAT.messages(REQUEST, target=3, knowledge=True)
    assert [m["role"] for m in hidden] == ["system", "user"]
    assert hidden[1]["content"] == told[1]["content"][: len(hidden[1]["content"])]
    added = told[1]["content"].removeprefix(hidden[1]["content"])
    assert SIDS[3] in added
    assert not any(sid in added for sid in SIDS[:3])
    assert told[0]["content"] == f"{hidden[0]['content']}\n\n{CHAT.words['knowledge']}"
    assert "orientation:\n- Purchases follow" in CHAT.words["knowledge"]
    for text in ("Soap", "Gel", "Cream", "Comb", "Brush", *SIDS, Sid((9, 9)).text):
        assert text in hidden[1]["content"]
