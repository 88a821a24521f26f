"""A sparse prompt says what a full one says: absent is none, and missing has a token of its own."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.prompts.compact import Compact
from diffgr2.prompts.request import MISSING
from support.accounts import NAMES, drawn, template

FULL = template()
SPARSE = Compact(FULL.vocab, FULL.config.model_copy(update={"sparse": True}))
NONE_F = np.array([name not in ("rank", "gap", "text") for name in NAMES])


def read_back(tokens: list[int], k: int) -> np.ndarray:
    """The buckets that a sparse prompt tells."""
    vocab, missing = FULL.vocab, SPARSE.vocab.missing_ids.tolist()
    found_KF = np.where(NONE_F, 0, -1) + np.zeros((k, len(NAMES)), int)
    at = -1
    for token in tokens[tokens.index(vocab.control["<candidates>"]) :]:
        at = at + 1 if vocab.index_of(token) is not None else at
        if (told := vocab.evidence_of(token)) is not None:
            found_KF[at, told[0]] = told[1]
        elif token in missing:
            found_KF[at, missing.index(token)] = MISSING
    return found_KF


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_every_bucket_can_be_read_out_of_a_sparse_prompt(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    request = drawn(rng, k).request
    request.buckets_KF[rng.random(request.buckets_KF.shape) < 0.3] = 0
    tokens = SPARSE.prompt(request)
    np.testing.assert_array_equal(read_back(tokens, k), request.buckets_KF)
    none, missing = NONE_F & (request.buckets_KF == 0), request.buckets_KF == MISSING
    assert len(tokens) == len(FULL.prompt(request)) - none.sum() + missing.sum()
    assert len(set(SPARSE.vocab.missing_ids) & set(FULL.prompt(request))) == 0
    # What may be said of it stays the same.
    places = [compact.grammar(request).head.allowed_TA for compact in (FULL, SPARSE)]
    np.testing.assert_array_equal(*places)
