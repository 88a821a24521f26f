"""Accounts and explanations over a shop's own fields: read back, nothing contradicts the prompt."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from diffgr2.candidates.fields import COUNTED, Field, names_of
from diffgr2.config import PromptConfig
from diffgr2.evaluate.coherence import Shown, contradictions
from diffgr2.prompts.account import account
from diffgr2.prompts.chat import Chat
from diffgr2.prompts.compact import Compact
from diffgr2.prompts.english import NEITHER
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.request import MISSING, NONE, Request, Trace
from diffgr2.prompts.said import Reading
from diffgr2.prompts.template import make_template
from diffgr2.prompts.vocab import Vocabulary, train_bpe

BUCKETS, STRENGTHS, K, CITES = 8, 16, 5, 4
WORDS = ("Best > all!", "Sale: -50%", "eco")
OWN = (
    Field("price", "price", False, "number", "low"),
    Field("margin", "margin", False, "number", "neither"),
    Field("ctr_7d", "ctr", False, "number", "high", phrase="clicked {often} in the last week"),
    Field("badge", "badge", False, "category", words=WORDS, rest=True, liked=WORDS[:1]),
    Field("in_stock", "in stock", False, "flag", "high"),
    Field("used", "used", False, "flag", "low", phrase="{grade} sold used"),
)
FIELDS = (*(field for field in COUNTED if field.name != "session"), *OWN)
NAMES = [f"Item {i}" for i in range(K)]


@cache
def template(name: str) -> Compact | Gr2:
    vocab = Vocabulary.extend(
        train_bpe(["rose soap"] * 3 + Chat(FIELDS, BUCKETS).own_words(), 500),
        levels=2,
        codes=32,
        k=K,
        fields=names_of(FIELDS),
        buckets=BUCKETS,
        strengths=STRENGTHS,
    )
    config = PromptConfig(template=name, cites=CITES, strengths=STRENGTHS)  # type: ignore[arg-type]
    return make_template(vocab, config, FIELDS)


def drawn(seed: int) -> tuple[Request, Trace]:
    """A request with values missing, and a trace that cites what has a side."""
    rng = np.random.default_rng(seed)
    buckets_KF = rng.integers(0, BUCKETS, (K, len(FIELDS)))
    buckets_KF[:, 0], buckets_KF[0, 1] = np.arange(K), 0
    for f, field in enumerate(FIELDS):
        if field.kind in ("flag", "category"):
            levels = 2 if field.kind == "flag" else len(field.words) + field.rest
            buckets_KF[:, f] = rng.integers(0, levels, K)
    buckets_KF[rng.random(buckets_KF.shape) < 0.2] = MISSING
    h = int(rng.integers(0, 4))
    codes_NL = np.stack([np.arange(K + h), np.zeros(K + h, int)], -1)
    texts = ("Tea (x)",) * h, tuple(NAMES), ("Tea",) * h
    request = Request(codes_NL[K:], codes_NL[:K], buckets_KF.astype(np.uint8), *texts)
    made = template("compact")
    assert isinstance(made, Compact)
    cites_KC = np.full((K, CITES), NONE)
    for i, may_F in enumerate(made.citable(request)):
        fields = rng.permutation(np.flatnonzero(may_F))[:CITES]
        cites_KC[i, : len(fields)] = fields
    return request, Trace(np.sort(rng.integers(0, STRENGTHS, K))[::-1].astype(float), cites_KC)


@pytest.mark.parametrize("seed", range(60))
def test_an_account_contradicts_nothing(seed: int) -> None:
    request, trace = drawn(seed)
    made = template("compact")
    cites = tuple(tuple(f for f in row if f != NONE) for row in trace.cites_KC.tolist())
    reading, order = Reading(trace.level_K, cites), trace.order_K.tolist()
    kinds = ["Tea"] * len(request.history_HL)
    given = (request, reading, order, STRENGTHS, NAMES, kinds, kinds)
    for markdown in (False, True):
        text = account(made.words, made.phrases, *given, markdown=markdown)
        tokens = made.response(request, trace, answer="said").tokens
        shown = Shown(request, reading, order, text, tokens, NAMES, kinds, kinds)
        assert contradictions(made, shown) == (), text
    assert made.citations(tokens, request) == (len(sum(cites, ())), len(sum(cites, ())))


@pytest.mark.parametrize("seed", range(60))
def test_an_explanation_cites_what_the_prompt_shows(seed: int) -> None:
    request, trace = drawn(seed)
    made = template("gr2")
    tokens = made.response(request, trace).tokens
    right, total = made.citations(tokens, request)
    assert right == total
    assert isinstance(made, Gr2)
    for i in range(K):
        shown = made.chat.evidence(request, i)
        told = {field for field, _ in made.phrases.find(f": {shown.replace(', ', '; ')}.")}
        known = np.flatnonzero(request.buckets_KF[i] != MISSING)
        wanted = {f for f in known if request.buckets_KF[i, f] or not FIELDS[f].zero_is_none}
        assert told == wanted


def test_a_field_without_a_side_is_never_cited() -> None:
    made = template("compact")
    margin = names_of(FIELDS).index("margin")
    assert (made.phrases.side_FB[margin] == NEITHER).all()
    for seed in range(60):
        _, trace = drawn(seed)
        assert margin not in trace.cites_KC
