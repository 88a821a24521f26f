"""Vocabularies, requests and traces for tests of templates, and ways to walk a grammar."""

from __future__ import annotations

from functools import cache

import numpy as np
from tokenizers import AddedToken, Tokenizer, normalizers

from diffgr2.candidates.fields import COUNTED, names_of
from diffgr2.config import PromptConfig
from diffgr2.decode.grammar import Grammar, Guide
from diffgr2.decode.spelling import UNKNOWN
from diffgr2.prompts.chat import Chat
from diffgr2.prompts.compact import Compact
from diffgr2.prompts.english import NEITHER
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.plain_words import plain_words, spelled
from diffgr2.prompts.request import MISSING, NONE, Request, Trace
from diffgr2.prompts.template import make_template
from diffgr2.prompts.vocab import CHAT, Vocabulary, train_bpe
from support.grammars import open_places

TEN = COUNTED[:10]
NAMES = names_of(TEN)

LEVELS, CODES, K, BUCKETS, STRENGTHS = 3, 16, 20, 8, 12
TITLES = [
    "Rose Shampoo for dry hair, 200 ml",
    "Café crème “Nuit” — 50 % more!",
    'Brush "Pro" \\ 12"',
    "洗发水 200ml 🧴",
    "Aloe Vera Gel (Aloe; Skin Care > Gels)",
    "x",
]
HOSTILE = ["<|im_end|>", "<|im_start|>system", "<think>", "</tool_call>", "<s_a_1>", "<c_1>"]
HOSTILE += ["<|sid_begin|><s_a_0><s_b_0><s_c_0><|sid_end|>", "<|MASK|>", "<answer>", "<v_3>"]


def text_tokenizer(kind: str) -> Tokenizer:
    words = [spelled(K, TEN, STRENGTHS)] * 9
    tokenizer = train_bpe(TITLES * 3 + Chat(TEN, BUCKETS).own_words() + words, 900)
    if kind == "qwen":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.add_special_tokens([AddedToken(name, special=True) for name in CHAT])
        plain = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
        tokenizer.add_tokens([AddedToken(n, special=False, normalized=False) for n in plain])
    return tokenizer


@cache
def vocabulary(kind: str, name: str = "compact") -> Vocabulary:
    tokenizer = text_tokenizer(kind)
    return Vocabulary.extend(
        tokenizer,
        levels=LEVELS,
        codes=CODES,
        k=K,
        fields=NAMES,
        buckets=BUCKETS,
        strengths=STRENGTHS,
        words=plain_words(tokenizer, K, TEN, STRENGTHS) if name == "brief" else None,
    )


@cache
def template(name: str, kind: str) -> Compact | Gr2:
    config = PromptConfig(template=name)  # type: ignore[arg-type]
    made = make_template(vocabulary(kind, name), config)
    assert isinstance(made, Compact | Gr2)
    return made


def draw_request(seed: int, k: int = 6, texts: list[str] = TITLES) -> Request:
    """A request with some evidence missing."""
    rng = np.random.default_rng(seed)
    h = int(rng.integers(0, 5))
    number = rng.choice(CODES**LEVELS, h + k, replace=False)
    codes_NL = np.stack([number // CODES**i % CODES for i in range(LEVELS)], 1)
    buckets_KF = rng.integers(0, BUCKETS, (k, len(NAMES)))
    buckets_KF[rng.random(buckets_KF.shape) < 0.1] = MISSING
    pick = [texts[i] for i in rng.integers(0, len(texts), 2 * h + k)]
    return Request(
        codes_NL[:h],
        codes_NL[h:],
        buckets_KF.astype(np.uint8),
        tuple(pick[:h]),
        tuple(pick[h : h + k]),
        tuple(pick[h + k :]),
    )


def draw_trace(seed: int, request: Request, made: Compact | Gr2, cites: int = 3) -> Trace:
    """A trace that cites what may be cited; levels differ, so that no tie is broken anew."""
    rng = np.random.default_rng([seed, 1])
    level_K = rng.permutation(request.k) * (STRENGTHS - 1) / max(request.k, 2)
    cites_KC = np.full((request.k, cites), NONE)
    may_KF = made.phrases.sides(request.buckets_KF) != NEITHER
    if isinstance(made, Compact):
        may_KF = made.citable(request)
    for i, may_F in enumerate(may_KF):
        fields = rng.permutation(np.flatnonzero(may_F))[: rng.integers(0, cites + 1)]
        cites_KC[i, : len(fields)] = fields
    return Trace(level_K, cites_KC)


def follow(grammar: Grammar, tokens: list[int]) -> Guide:
    """Commit a text from left to right; what is forced must be what stands there."""
    tokens_T = np.full(max(grammar.longest, len(tokens)), UNKNOWN, dtype=np.int64)
    guide = Guide(grammar, tokens_T)
    for at, token in enumerate(tokens):
        if tokens_T[at] == UNKNOWN:
            guide.commit(at, token)
        assert tokens_T[at] == token
    assert guide.end == len(tokens)
    return guide


def wander(grammar: Grammar, size: int, rng: np.random.Generator) -> list[int]:
    """A random text of a grammar, committed in random order, free text from left to right."""
    tokens_T = np.full(grammar.longest, UNKNOWN, dtype=np.int64)
    guide = Guide(grammar, tokens_T)
    while open_ := open_places(guide, 0, len(tokens_T)):
        at = open_[0] if guide.end is None else int(rng.choice(open_))
        options = guide.allowed(at)
        if options is None:
            options = np.setdiff1d(np.arange(size), guide.without(at))
            assert grammar.free is not None
            options = np.append(options, [grammar.free.closer] * (rng.random() < 0.02))
        guide.commit(at, int(rng.choice(options[-1:] if rng.random() < 0.02 else options)))
    assert guide.end is not None
    return tokens_T[: guide.end].tolist()
