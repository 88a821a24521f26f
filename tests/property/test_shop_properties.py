"""What holds for the simulated shop under any configuration."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.config import ShopConfig
from diffgr2.data.shop import simulate_dataset
from diffgr2.data.shop_truth import true_probabilities


@st.composite
def configs(draw: st.DrawFn) -> ShopConfig:
    n_items = draw(st.integers(50, 700))
    return ShopConfig(
        n_items=n_items,
        n_users=draw(st.integers(10, 60)),
        mean_length=draw(st.floats(5.0, min(40.0, n_items / 4))),
        noise=draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
    )


@settings(max_examples=20, deadline=None)
@given(configs(), st.integers(0, 2**31))
def test_any_shop_is_honest(config: ShopConfig, seed: int) -> None:
    data, truth = simulate_dataset(config, seed)
    h = data.histories
    assert (h.n_users, h.n_items) == (config.n_users, config.n_items)
    assert h.lengths_U.min() >= 5
    assert h.lengths_U.max() <= config.n_items // 2
    assert len(set(data.catalogue.titles)) == config.n_items
    for user in range(h.n_users):
        assert len(set(h.of(user).tolist())) == h.lengths_U[user]
        assert (np.diff(h.timestamps_N[h.offsets_U1[user] : h.offsets_U1[user + 1]]) >= 0).all()
    users = np.arange(h.n_users)
    ends = np.random.default_rng(seed).integers(h.lengths_U + 1)
    p_LI = true_probabilities(
        truth, h, users, ends, np.tile(np.arange(config.n_items), (h.n_users, 1))
    )
    np.testing.assert_allclose(p_LI.sum(1), 1.0, rtol=1e-9)
    for user, end in zip(users.tolist(), ends.tolist(), strict=True):
        bought = h.of(user, end)
        assert (p_LI[user, bought] == 0).all()
        assert (np.delete(p_LI[user], bought) > 0).all()
