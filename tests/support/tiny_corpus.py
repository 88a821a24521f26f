"""A corpus of a few lists in memory, which can be learned in seconds.

Contract: `corpus()` is a shop whose target carries the highest bucket of one evidence field and
stands among the first K of K_MAX candidates. Not here: stages on it (`tiny_stages`).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from diffgr2.candidates.fields import counted_named
from diffgr2.config import PromptConfig, Recipe
from diffgr2.data.store import Dataset
from diffgr2.items.sids import SemanticIds
from diffgr2.prompts.english import Phrases, wording
from diffgr2.prompts.template import make_template
from diffgr2.prompts.vocab import Vocabulary, train_bpe
from diffgr2.recipe import validate
from diffgr2.stages.corpus import KNOWN, Corpus
from diffgr2.streams import generator
from diffgr2.traces.decide import Scale, Traces, counting
from diffgr2.types import CandidateLists, Catalogue, Histories

K, K_MAX, LEVELS, CODES, BUCKETS, STRENGTHS, ITEMS, USERS = 3, 4, 2, 5, 3, 4, 20, 24
FIELDS = ("rank", "copurchase")
SEED = 0
WORTH_FB = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
"""Levels that a bucket is worth; `_traces` adds them up."""


@cache
def recipe() -> Recipe:
    return validate(
        {
            "name": "tiny",
            "prompt": {"history": 2, "cites": 1, "strengths": STRENGTHS, "text_vocab": 256},
            "candidates": {"k": K, "k_max": K_MAX},
            "items": {"levels": LEVELS, "codes": CODES},
            "evidence": {"buckets": BUCKETS},
        },
        "tiny",
    )


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary.extend(
        train_bpe(["soap"], 256),
        levels=LEVELS,
        codes=CODES,
        k=K_MAX,
        fields=FIELDS,
        buckets=BUCKETS,
        strengths=STRENGTHS,
    )


def _lists(split: str, cut: int, rng: np.random.Generator) -> tuple[CandidateLists, np.ndarray]:
    """Random candidates with the target among them, and buckets that give it away."""
    items_LK = np.stack([rng.permutation(ITEMS)[:K_MAX] for _ in range(USERS)]).astype(np.int32)
    hit_L = rng.integers(0, K, USERS)
    buckets_LKF = rng.integers(0, BUCKETS - 1, (USERS, K_MAX, len(FIELDS))).astype(np.uint8)
    buckets_LKF[np.arange(USERS), hit_L, 1] = BUCKETS - 1
    lists = CandidateLists(
        split,
        np.arange(USERS, dtype=np.int32),
        np.full(USERS, 6 - cut, dtype=np.int32),
        items_LK[np.arange(USERS), hit_L],
        items_LK,
        -np.sort(rng.random((USERS, K_MAX)).astype(np.float32), axis=1),
    )
    return lists, buckets_LKF


def _traces(buckets_LKF: np.ndarray) -> Traces:
    """The verdict that the buckets suggest, and the fields behind it, that of the target first."""
    worth_LKF = WORTH_FB[np.arange(len(FIELDS)), buckets_LKF]
    level_LK = np.minimum(worth_LKF.sum(-1), STRENGTHS - 1).astype(np.float32)
    side_LKF = Phrases(wording("compact"), counted_named(FIELDS), BUCKETS).sides(buckets_LKF)
    cites_LKC = counting(side_LKF * np.array([1.0, 2.0]), side_LKF, Scale(0, 1, STRENGTHS))
    return Traces(np.arange(USERS, dtype=np.int32), level_LK, cites_LKC)


@cache
def corpus() -> Corpus:
    rng = generator(SEED, "tiny", "corpus")
    items_N = rng.integers(0, ITEMS, USERS * 6).astype(np.int32)
    histories = Histories(
        np.arange(USERS + 1) * 6, items_N, np.zeros(USERS * 6, dtype=np.int64), ITEMS
    )
    words = [f"soap {item}" for item in range(ITEMS)]
    catalogue = Catalogue(
        words, words, ["ours"] * ITEMS, [["soap"]] * ITEMS, np.ones(ITEMS), [""] * ITEMS
    )
    pairs = rng.permutation(CODES**LEVELS)[:ITEMS]
    codes_IL = np.stack([pairs // CODES, pairs % CODES], axis=1).astype(np.int32)
    made = {split: _lists(split, cut, rng) for split, cut in zip(KNOWN, (2, 1), strict=True)}
    return Corpus(
        recipe=recipe(),
        dataset=Dataset(histories, catalogue, [str(u) for u in range(USERS)], {}),
        sids=SemanticIds(codes_IL, CODES),
        vocab=vocabulary(),
        template=make_template(vocabulary(), PromptConfig(**recipe().prompt.model_dump())),
        lists={split: lists for split, (lists, _) in made.items()},
        buckets={split: buckets for split, (_, buckets) in made.items()},
        traces={split: _traces(buckets) for split, (_, buckets) in made.items()},
        explanations={split: [] for split in made},
        worth_FB=WORTH_FB,
        step=0.5,
    )
