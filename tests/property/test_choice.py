"""One position by itself chooses what it chooses among others."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diffgr2.decode.choice import among, one
from diffgr2.model.backend import NO_TOKEN

LOGPS = st.one_of(st.floats(-30, 0), st.just(-np.inf), st.sampled_from([-1.0, -2.0]))


@given(st.lists(LOGPS, min_size=1, max_size=16), st.booleans(), st.randoms(use_true_random=False))
def test_one_is_among_of_one(logps: list[float], scale: bool, random) -> None:
    tokens = random.sample(range(100), len(logps))
    tokens = sorted(tokens) if scale else tokens
    padded = np.array([[*tokens, NO_TOKEN]])
    raw = np.array([[*logps, -np.inf]], dtype=np.float32)
    found = among(raw, padded, np.array([scale]))
    alone = one(raw[0, :-1].tolist(), tokens, scale=scale)
    assert alone.token == found.token_N[0]
    np.testing.assert_allclose(alone.logp, found.logp_N[0], atol=1e-9)
    np.testing.assert_allclose(alone.sure, found.sure_N[0], atol=1e-9)
    np.testing.assert_allclose(alone.level, found.level_N[0], atol=1e-9)
