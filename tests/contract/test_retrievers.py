"""What every retriever promises, whatever it knows of the histories.

`Fitted` holds the promises; a class per kind inherits them. Queries include an empty history, a
history with repeats and one of a single item.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffgr2.candidates import kinds
from diffgr2.candidates.retrieval import ragged, score, target_ranks, top_k
from diffgr2.config import RetrieverConfig
from diffgr2.progress import Progress
from diffgr2.types import Histories

ITEMS, K = 30, 6


def shop() -> Histories:
    """Forty users who walk in small steps, so that neighbours exist; nobody buys items 25 to 29."""
    rng = np.random.default_rng(0)
    rows = [
        (rng.integers(25) + np.cumsum(rng.integers(0, 3, int(rng.integers(5, 12))))) % 25
        for _ in range(40)
    ]
    return ragged(rows, ITEMS)


def queries() -> Histories:
    rows = [[], [3], [7, 7, 7, 2], [24, 0, 1], list(range(12)), [29]]
    return ragged([np.array(row, np.int32) for row in rows], ITEMS)


class Fitted:
    """The promises; a subclass names its kind."""

    kind: str

    @pytest.fixture(scope="class")
    def fit(self, tmp_path_factory: pytest.TempPathFactory):
        def build() -> kinds.Fitted:
            config = RetrieverConfig(
                kind=self.kind, dim=16, max_len=8, epochs=2, batch_users=16, layers=1
            )
            histories = shop()
            model, _ = kinds.fit(
                histories,
                np.arange(histories.n_users),
                config,
                3,
                work=tmp_path_factory.mktemp("work"),
                name=self.kind,
                progress=Progress(every_s=1e9),
            )
            return model

        return build

    @pytest.fixture(scope="class")
    def model(self, fit) -> kinds.Fitted:
        return fit()

    @pytest.fixture
    def scores_LI(self, model: kinds.Fitted) -> np.ndarray:
        scores_LI = model.score_all(queries())
        assert scores_LI.shape == (6, ITEMS) == (6, model.n_items)
        assert scores_LI.dtype == np.float32
        assert np.isfinite(scores_LI).all()
        return scores_LI

    def test_the_best_unseen_items_come_in_order_and_ties_by_number(self, model, scores_LI) -> None:
        items_LK, best_LK = top_k(model, queries(), K)
        for row in range(len(scores_LI)):
            seen = set(queries().of(row).tolist())
            unseen = [item for item in range(ITEMS) if item not in seen]
            wanted = sorted(unseen, key=lambda item: (-scores_LI[row, item], item))[:K]
            assert items_LK[row].tolist() == wanted
            assert best_LK[row].tolist() == scores_LI[row, wanted].tolist()
        empty_I = scores_LI[0]
        assert len(np.unique(empty_I)) < ITEMS, "there are ties to break"

    def test_given_candidates_get_the_scores_of_the_search(self, model, scores_LI) -> None:
        items_LK, best_LK = top_k(model, queries(), K)
        assert np.array_equal(score(model, queries(), items_LK), best_LK)
        other_LK = np.tile(np.array([29, 0, 13], np.int32), (len(scores_LI), 1))
        wanted_LK = np.take_along_axis(scores_LI, other_LK, 1)
        assert np.array_equal(score(model, queries(), other_LK), wanted_LK)

    def test_what_was_bought_is_not_found_again(self, model) -> None:
        items_LK, _ = top_k(model, queries(), K)
        for row, found in enumerate(items_LK.tolist()):
            assert not set(found) & set(queries().of(row).tolist())
            assert len(set(found)) == K

    def test_a_found_item_has_its_place_as_its_rank(self, model) -> None:
        items_LK, _ = top_k(model, queries(), K)
        for place in range(K):
            assert target_ranks(model, queries(), items_LK[:, place]).tolist() == [place] * 6

    def test_an_empty_history_works_alone_and_scores_the_same_beside_others(
        self, model, scores_LI
    ) -> None:
        nothing = ragged([np.empty(0, np.int32)], ITEMS)
        np.testing.assert_allclose(model.score_all(nothing)[0], scores_LI[0], atol=1e-6)
        items_1K, _ = top_k(model, nothing, K)
        assert len(set(items_1K[0].tolist())) == K
        assert top_k(model, ragged([], ITEMS), K)[0].shape == (0, K)

    def test_it_says_something_about_a_history(self, scores_LI) -> None:
        if self.kind == "popularity":
            assert (scores_LI == scores_LI[0]).all(), "the same for everybody"
        else:
            assert not np.array_equal(scores_LI[3], scores_LI[4])

    def test_saving_keeps_every_bit(self, model, scores_LI, tmp_path: Path) -> None:
        model.save(tmp_path)
        again = kinds.load(tmp_path)
        assert type(again) is type(model)
        assert again.score_all(queries()).tobytes() == scores_LI.tobytes()

    def test_who_only_scores_reads_the_same_from_the_directory(
        self, model, scores_LI, tmp_path: Path
    ) -> None:
        model.save(tmp_path)
        scorer = kinds.load_scores(tmp_path)
        assert scorer.n_items == ITEMS
        found_LI = scorer.score_all(queries())
        assert found_LI.dtype == np.float32
        np.testing.assert_allclose(found_LI, scores_LI, rtol=1e-5, atol=1e-5)
        assert (found_LI == found_LI[0]).all() == (self.kind == "popularity")
        assert scorer.score_all(ragged([], ITEMS)).shape == (0, ITEMS)
        some = np.array([29, 0, 13], np.int32)
        for row in range(len(scores_LI)):
            few_K = scorer.score_some(queries().of(row), some)
            assert few_K.dtype == np.float32
            np.testing.assert_allclose(few_K, found_LI[row, some], rtol=1e-6, atol=1e-7)

    def test_the_same_data_and_seed_give_the_same_bits(self, fit, scores_LI, tmp_path) -> None:
        assert fit().score_all(queries()).tobytes() == scores_LI.tobytes()


class TestSasRec(Fitted):
    kind = "sasrec"


class TestItemKnn(Fitted):
    kind = "itemknn"


class TestPopularity(Fitted):
    kind = "popularity"
