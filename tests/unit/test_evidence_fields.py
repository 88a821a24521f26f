"""Which fields of evidence there are: what the data can tell, what is chosen, what is stored."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest

from diffgr2.candidates.fields import COUNTED, as_json, carried, field_of, fields_of, names_of
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.retrieval import prefixes
from diffgr2.choices import MOMENT, Counted
from diffgr2.config import EvidenceConfig
from diffgr2.errors import ArtifactError, ConfigError, DataError
from diffgr2.prompts.chat import Chat
from diffgr2.prompts.english import Phrases, wording
from diffgr2.recipe import validate
from diffgr2.types import MISSING, Catalogue, Histories

USERS, ITEMS, EACH, DAY = 12, 9, 6, 86_400
ALL = names_of(COUNTED)
TIMED = ("session", "fresh", "month", "later", "trend", *MOMENT)
ORDERED = ("last", "next", "title_last", "after", "before_last", "before", "right_after")
EVERY = EvidenceConfig(fields=None, moment=True)


def shop(
    times: str = "days", brands: bool = True, kinds: bool = True, titles: bool = True
) -> tuple:
    rng = np.random.default_rng(0)
    n = USERS * EACH
    stamps = {
        "none": np.zeros(n, np.int64),
        "days": np.arange(n) * DAY,
        "one each": np.repeat(np.arange(USERS) + 1, EACH) * DAY,
    }[times]
    items_N = rng.integers(0, ITEMS, n).astype(np.int32)
    histories = Histories(np.arange(USERS + 1) * EACH, items_N, stamps, ITEMS)
    words = [f"soap {i}" for i in range(ITEMS)]
    brand = ["ours" if brands and i % 2 else "" for i in range(ITEMS)]
    paths = [["Care", "Soap"] if kinds else [] for _ in range(ITEMS)]
    catalogue = Catalogue(
        words, words if titles else [""] * ITEMS, brand, paths, np.ones(ITEMS), [""] * ITEMS
    )
    return histories, catalogue, rng.normal(size=(ITEMS, 4)).astype(np.float32)


def without(*names: str) -> tuple[str, ...]:
    return tuple(name for name in ALL if name not in names)


def test_a_recipe_may_choose_what_is_counted_here() -> None:
    assert (*get_args(Counted), *MOMENT) == ALL
    assert tuple(wording("compact")["fields"]) == ALL


@pytest.mark.parametrize(
    ("lacks", "gone"),
    [
        ({}, ()),
        ({"times": "none"}, TIMED),  # the file's order is an order
        ({"times": "one each"}, (*ORDERED, "session", "month", "later")),
        ({"brands": False}, ("brand", "range")),
        ({"kinds": False}, ("category",)),
        ({"titles": False}, ("title", "title_last")),
        ({"times": "none", "brands": False}, (*TIMED, "brand", "range")),
    ],
)
def test_what_the_data_cannot_tell_leaves(lacks, gone) -> None:
    histories, catalogue, vectors = shop(**lacks)
    assert names_of(carried(histories, catalogue, vectors)) == without(*gone)
    index = EvidenceIndex.build(histories, catalogue, vectors, EVERY)
    assert index.names == without(*gone)
    assert index.edges_FB.shape == (len(ALL) - len(gone), 7)
    for template in ("compact", "gr2"):
        said = Phrases(wording(template), index.fields, 8).all()
        assert len(said) == 8 * len(index.fields)
        if "session" in gone:
            assert not [phrase for phrase in said if "day" in phrase]
            assert not [text for text in Chat(index.fields, 8).own_words() if "same day" in text]


def test_without_texts_none_is_described() -> None:
    histories, catalogue, vectors = shop()
    assert names_of(carried(histories, catalogue, vectors * 0)) == without("text")


def test_chosen_fields_are_those_of_all_in_their_order() -> None:
    histories, catalogue, vectors = shop()
    chosen = EvidenceConfig(fields=["brand", "rank", "next"])
    index = EvidenceIndex.build(histories, catalogue, vectors, chosen)
    assert index.names == ("rank", "next", "brand")
    whole = EvidenceIndex.build(histories, catalogue, vectors, EVERY)
    users = np.arange(USERS)
    queries = prefixes(histories, users, np.full(USERS, EACH - 1))
    items_LK = np.stack([np.random.default_rng(u).permutation(ITEMS)[:4] for u in users])
    scores_LK = -np.sort(-np.random.default_rng(1).normal(size=(USERS, 4)), axis=1)
    given = (queries, items_LK.astype(np.int32), scores_LK.astype(np.float32), users)
    at = [ALL.index(name) for name in index.names]
    np.testing.assert_array_equal(index.features(*given), whole.features(*given)[..., at])


def test_only_what_the_chosen_fields_read_is_counted() -> None:
    histories, catalogue, vectors = shop()
    told = {}
    names: list
    for names in (["rank", "copurchase"], ["next", "after", "before_last"], ["buyers", "title"]):
        index = EvidenceIndex.build(histories, catalogue, vectors, EvidenceConfig(fields=names))
        told[names[0]] = (index.pairs.kinds, index.titles is None)
    assert told["rank"] == (("together",), True)
    assert told["next"] == (("together", "forward", "backward"), True)
    assert told["buyers"] == (("together",), False)


def test_a_choice_that_leaves_nothing_is_said() -> None:
    histories, catalogue, vectors = shop(brands=False)
    with pytest.raises(DataError, match=r"evidence\.fields"):
        EvidenceIndex.build(histories, catalogue, vectors, EvidenceConfig(fields=["brand"]))
    with pytest.raises(ConfigError, match=r"evidence\.fields\.0.*'rank'.*\(got 'ranks'\)"):
        validate({"name": "x", "evidence": {"fields": ["ranks"]}}, "x")


def test_padding_has_no_evidence_and_moves_none() -> None:
    histories, catalogue, vectors = shop()
    index = EvidenceIndex.build(histories, catalogue, vectors, EVERY)
    queries = prefixes(histories, np.arange(2), np.array([4, 4]))
    items_LK = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)
    scores_LK = np.array([[-1, -2, -3, -4], [-1, -2, -3, -4]], np.float32)
    asked = (None, None, np.full(2, 999 * DAY))
    whole = index.features(queries, items_LK, scores_LK, *asked)
    items_LK[:, 2:], scores_LK[:, 2:] = -1, 0
    short = index.features(queries, items_LK, scores_LK, *asked)
    np.testing.assert_array_equal(short[:, :2], whole[:, :2])
    assert (short[:, 2:] == 0).all()
    assert (index.buckets(short) != MISSING).all()


def test_a_candidate_without_a_score_has_no_gap_and_moves_none() -> None:
    histories, catalogue, vectors = shop()
    index = EvidenceIndex.build(histories, catalogue, vectors, EVERY)
    queries = prefixes(histories, np.arange(2), np.array([4, 4]))
    items_LK = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)
    nan = np.nan  # scores below 0: a missing one that counted as 0 would be the best
    scores_LK = np.array([[-1, nan, -3, nan], [nan, nan, nan, nan]], np.float32)
    gap_LK = index.features(queries, items_LK, scores_LK)[..., index.names.index("gap")]
    np.testing.assert_array_equal(gap_LK, [[0, nan, 2, nan], [nan] * 4])
    assert (index.buckets(gap_LK[..., None].repeat(len(ALL), 2))[1] == MISSING).all()


def test_an_index_keeps_its_fields(tmp_path) -> None:
    histories, catalogue, vectors = shop("none", brands=False)
    index = EvidenceIndex.build(histories, catalogue, vectors, EVERY)
    index.save(tmp_path)
    again = EvidenceIndex.load(tmp_path)
    assert again.fields == index.fields
    users, items_LK = np.arange(USERS), np.tile(np.arange(4, dtype=np.int32), (USERS, 1))
    given = (prefixes(histories, users, np.full(USERS, 3)), items_LK, np.zeros((USERS, 4)), users)
    np.testing.assert_array_equal(again.features(*given), index.features(*given))
    path = tmp_path / "index.json"
    about = json.loads(path.read_text())
    for wrong in (None, [], [1], [{"name": "rank"}], about["fields"][::-1], about["fields"] * 2):
        path.write_text(json.dumps({**about, "fields": wrong}))
        with pytest.raises(ArtifactError, match=r"index\.json: fields"):
            EvidenceIndex.load(tmp_path)


@pytest.mark.parametrize("field", COUNTED, ids=names_of(COUNTED))
def test_a_counted_field_is_what_this_version_counts(field) -> None:
    assert field_of(as_json(field)) is field
    for change in ({"meaning": "other"}, {"name": "other"}, {"kind": "number"}, {"more": 1}):
        with pytest.raises(ValueError, match="fields: "):
            field_of({**as_json(field), **change})
    assert fields_of([as_json(field)]) == (field,)


def test_the_moment_of_the_request_is_a_group_of_its_own() -> None:
    histories, catalogue, vectors = shop()
    plain = EvidenceIndex.build(histories, catalogue, vectors, EvidenceConfig(fields=None))
    assert set(plain.names) == {*ALL} - {*MOMENT}
    some = EvidenceConfig(fields=["rank", "brand"], moment=True)
    index = EvidenceIndex.build(histories, catalogue, vectors, some)
    assert index.names == ("rank", "brand", *MOMENT)
    queries, items_LK = prefixes(histories, np.arange(2), np.array([4, 4])), np.array([[1, 2]] * 2)
    given = (queries, items_LK.astype(np.int32), np.zeros((2, 2), np.float32), np.arange(2))
    unknown = index.features(*given)
    assert np.isnan(unknown[..., 2:]).all(), "nobody knows when"
    assert (index.buckets(unknown)[..., 2:] == MISSING).all()
    then_L = queries.timestamps_N[[3, 7]]
    values = index.features(*given, None, then_L + 5 * DAY + 1)
    assert (values[..., index.names.index("away")] == 5).all()
    # Whatever is bought from that day on changes nothing.
    late_N = histories.timestamps_N >= then_L[0] + 5 * DAY
    items_N = np.where(late_N, (histories.items_N + 1) % ITEMS, histories.items_N)
    other = Histories(histories.offsets_U1, items_N, histories.timestamps_N, ITEMS)
    again = EvidenceIndex.build(other, catalogue, vectors, some)
    first = [prefixes(histories, np.arange(1), np.array([4])), *(part[:1] for part in given[1:])]
    asked = (None, then_L[:1] + 5 * DAY)
    np.testing.assert_array_equal(again.features(*first, *asked), index.features(*first, *asked))
