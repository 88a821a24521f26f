"""The best items of a catalogue: by parts, by shorter ways, and approximately."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.candidates import retrieval
from diffgr2.candidates.cells import Cells
from diffgr2.candidates.kinds import ItemKnn, Popularity
from diffgr2.candidates.ranks import Ranks
from diffgr2.candidates.retrieval import best_columns, prefixes, ragged, top_k
from diffgr2.candidates.search import searched, shared_share
from diffgr2.config import RetrieverConfig
from diffgr2.types import Histories

APPROXIMATE = RetrieverConfig(search="approximate")


def in_full(scores_CI: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: every row sorted, equals by number."""
    order_CI = np.argsort(-scores_CI, axis=1, kind="stable")[:, :k]
    return order_CI, np.take_along_axis(scores_CI, order_CI, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3_000), st.integers(1, 500), st.data()
)
def test_the_best_columns_are_those_of_a_full_sort(seed, rows, n, values, data) -> None:
    """Few values make ties, also at the edge and all along; seen items are at minus infinity."""
    rng = np.random.default_rng(seed)
    scores_CI = rng.integers(0, values, (rows, n)).astype(np.float32)
    scores_CI[rng.random((rows, n)) < 0.1] = -np.inf
    k = data.draw(st.integers(1, min(n, 12)))
    for found, wanted in zip(best_columns(scores_CI, k), in_full(scores_CI, k), strict=True):
        assert np.array_equal(found, wanted)


def crowd(rng: np.random.Generator, users: int, items: int) -> Histories:
    rows = [(items * rng.random(int(rng.integers(1, 9))) ** 2).astype(int) for _ in range(users)]
    return ragged(rows, items)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([ItemKnn, Popularity]), st.integers(5, 400))
def test_who_counts_finds_without_scores_of_all_what_scores_of_all_find(seed, kind, items) -> None:
    rng = np.random.default_rng(seed)
    model = kind.build(crowd(rng, 30, items))
    queries = ragged([*(rng.integers(0, items, n) for n in (0, 1, 3, 8))], items)
    scores_LI = model.score_all(queries)
    for row in range(queries.n_users):
        scores_LI[row, queries.of(row)] = -np.inf
    # As many as there are: the shorter way ends where too few items are left.
    for k in {1, 2, min(10, items), items - len(np.unique(queries.items_N))} - {0}:
        for found, wanted in zip(top_k(model, queries, k), in_full(scores_LI, k), strict=True):
            assert np.array_equal(found, wanted)


class Products:
    """Scores that are products; a query's state is the mean of its items' vectors."""

    def __init__(self, rng: np.random.Generator, items: int, width: int = 16) -> None:
        centres = rng.normal(size=(40, width))
        self.vectors = (
            centres[rng.integers(0, 40, items)] + rng.normal(0, 0.4, (items, width))
        ) @ (np.diag(np.linspace(1.0, 0.3, width)))
        self.vectors = self.vectors.astype(np.float32)
        self.asked = 0

    @property
    def n_items(self) -> int:
        return len(self.vectors)

    def embedded(self, queries: Histories) -> np.ndarray:
        rows = [self.vectors[queries.of(row)] for row in range(queries.n_users)]
        return np.stack([row.mean(0) if len(row) else 0 * self.vectors[0] for row in rows])

    def score_all(self, queries: Histories) -> np.ndarray:
        self.asked += queries.n_users
        return self.embedded(queries) @ self.vectors.T


def test_a_look_into_every_cell_finds_what_the_exact_search_finds() -> None:
    rng = np.random.default_rng(3)
    model, queries = Products(rng, 3_000), crowd(rng, 90, 3_000)
    cells = Cells.build(model, 0)
    assert len(cells.centre_DC) == 3_000 // 128
    assert np.array_equal(np.sort(cells.item_I), np.arange(3_000))
    items_LK, scores_LK = top_k(replace(cells, probes=1_000), queries, 12)
    wanted_LK, wanted_scores_LK = top_k(model, queries, 12)
    assert (items_LK == wanted_LK).mean() > 0.999  # but for products that differ in a last bit
    np.testing.assert_allclose(scores_LK, wanted_scores_LK, rtol=1e-4, atol=1e-5)


def test_fewer_cells_find_less_and_nothing_that_was_bought() -> None:
    rng = np.random.default_rng(4)
    model, queries = Products(rng, 4_000), crowd(rng, 200, 4_000)
    cells, wanted_LK = Cells.build(model, 1), top_k(model, queries, 10)[0]
    shares = []
    for probes in (1, 4, 16):
        items_LK, scores_LK = top_k(replace(cells, probes=probes), queries, 10)
        shares.append(shared_share(items_LK, wanted_LK))
        for row in range(queries.n_users):
            assert not set(items_LK[row].tolist()) & set(queries.of(row).tolist())
            assert len(set(items_LK[row].tolist())) == 10
        assert np.isfinite(scores_LK).all()
        assert (np.diff(scores_LK) <= 0).all()
    assert shares == sorted(shares)
    assert shares[0] < 0.99 < shares[-1]


def test_cells_with_too_few_items_are_made_good_by_an_exact_search() -> None:
    rng = np.random.default_rng(5)
    model = Products(rng, 700)
    cells = Cells.build(model, 0)
    least = int(np.diff(cells.start_D1).min())
    queries = ragged([cells.item_I[: cells.start_D1[1]], np.array([1])], 700)
    wanted_LK = top_k(model, queries, 60)[0]
    model.asked = 0
    items_LK, _ = top_k(replace(cells, probes=1), queries, 60)
    assert least < 700
    assert model.asked >= 1
    assert np.array_equal(items_LK[0], wanted_LK[0])


def test_the_search_is_chosen_by_size_or_by_the_recipe_and_says_what_it_misses() -> None:
    rng = np.random.default_rng(6)
    model, histories = Products(rng, 12_000), crowd(rng, 2_500, 12_000)
    found, facts = searched(model, histories, RetrieverConfig(), 0)
    assert found is model
    assert facts == {"search": "exact"}
    found, facts = searched(model, histories, APPROXIMATE, 0)
    assert isinstance(found, Cells)
    assert facts["search"] == "approximate"
    assert facts["search_probes"] == found.probes < len(found.centre_DC)
    ends_U = np.maximum(histories.lengths_U - 1, 0)
    queries = prefixes(histories, np.arange(400), ends_U[:400])
    share = shared_share(top_k(found, queries, 10)[0], top_k(model, queries, 10)[0])
    assert facts["search_recall@10"] == pytest.approx(share, abs=0.02)
    assert share > 0.97
    counted = Popularity.build(histories)
    assert searched(counted, histories, APPROXIMATE, 0) == (counted, {"search": "exact"})


def test_vectors_without_structure_are_searched_exactly_in_one_line() -> None:
    """Where no quarter of the cells holds the best, cells save nothing."""
    rng = np.random.default_rng(7)
    model = Products(rng, 2_000, 64)
    model.vectors = rng.normal(size=(2_000, 64)).astype(np.float32)
    lines: list[str] = []
    found, facts = searched(model, crowd(rng, 300, 2_000), APPROXIMATE, 0, lines.append)
    assert found is model
    assert facts == {"search": "exact"}
    assert len(lines) == 1


@pytest.mark.parametrize("kind", ["products", "counts"])
def test_several_processes_share_the_queries_and_each_has_all_lists(kind, monkeypatch) -> None:
    monkeypatch.setattr(retrieval, "FINDER_ROWS", 32)
    monkeypatch.setattr(retrieval, "SCORES_PER_CHUNK", 32 * 500)
    rng = np.random.default_rng(8)
    histories = crowd(rng, 150, 500)
    model = Products(rng, 500) if kind == "products" else ItemKnn.build(histories)
    alone = top_k(model, histories, 7)
    told: list[list] = []
    for rank in range(3):  # what each would tell the others
        top_k(model, histories, 7, Ranks(rank, 3, lambda value: told.append(value) or [value]))
    assert all(len(part) in (1, 2) for part in told)
    for rank in range(3):
        found = top_k(model, histories, 7, Ranks(rank, 3, lambda _: told))
        assert all(np.array_equal(one, two) for one, two in zip(found, alone, strict=True))
