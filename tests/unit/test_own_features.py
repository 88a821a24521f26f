"""A shop's own features: fields, buckets, values of a request, and what is said of them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffgr2.candidates.edges import bucket_edges
from diffgr2.candidates.fields import COUNTED, Field, as_json, field_of
from diffgr2.candidates.own_fields import (
    MOST,
    Column,
    Own,
    bucket_of,
    fitted,
    read_own,
    write_own,
)
from diffgr2.candidates.own_fields import given as value_of
from diffgr2.candidates.scorers import LinearScorer, fit_mlp
from diffgr2.data.own_values import resolved
from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.own import OwnFeature
from diffgr2.prompts.english import AGAINST, FOR, NEITHER, Phrases, label_of, wording
from diffgr2.recipe import validate
from diffgr2.types import MISSING

TEMPLATES = ("compact", "gr2")
NUMBER = Field("ctr", "ctr", False, "number", "high")
FLAG = Field("in_stock", "in stock", False, "flag", "high")
KIND = Field("badge", "badge", False, "category", words=("new", "sale"), rest=True, liked=("new",))


def level_of(edges: np.ndarray, value: np.ndarray) -> np.ndarray:
    return (value[:, None] >= edges).sum(1)


def fields_from(values: dict[str, tuple[Column, list[float]]], n: int = 8, **config: Any):
    """Fields of columns with these values, and the columns."""
    longest = max(len(value) for _, value in values.values())
    raw_XG = np.full((longest, len(values)), np.nan, np.float32)
    for g, (_, value) in enumerate(values.values()):
        raw_XG[: len(value), g] = value
    columns = {name: column for name, (column, _) in values.items()}
    own = Own(columns, {"train": raw_XG[None]})
    wanted = {name: OwnFeature(**config.get(name, {})) for name in columns}
    return own, fitted(own, raw_XG, wanted, n)


# ------------------------------------------------------------------------------------- numbers

distinct = st.lists(st.integers(-1000, 1000), min_size=1, max_size=60)


@given(distinct, st.integers(2, 16), st.sampled_from([100.0, 0.01, 3.0, 1e6]))
@settings(max_examples=200, deadline=None)
def test_no_scale_moves_a_bucket(values: list[int], n: int, scale: float) -> None:
    value = np.array(values, np.float32)
    other = (value * np.float32(scale)).astype(np.float32)
    one = level_of(bucket_edges(value, n, NUMBER), value)
    two = level_of(bucket_edges(other, n, NUMBER), other)
    assert one.tolist() == two.tolist()


@given(distinct, st.integers(2, 16))
@settings(max_examples=200, deadline=None)
def test_larger_numbers_never_have_a_lower_bucket_and_the_ends_are_the_ends(values, n) -> None:
    value = np.sort(np.array(values, np.float32))
    edges = bucket_edges(value, n, NUMBER)
    assert edges.shape == (n - 1,)
    assert (edges[:-1] <= edges[1:]).all()
    level = level_of(edges, value)
    assert (np.diff(level) >= 0).all()
    assert level.max() < n
    if value[0] == value[-1]:
        assert set(level) == {(n - 1) // 2}, "of equal numbers none is high or low"
    elif len(value) >= n:
        assert level[0] == 0
        assert level[-1] == n - 1 or (value == value[-1]).mean() < 1 / n


def test_many_different_numbers_fill_all_buckets_evenly() -> None:
    value = np.random.default_rng(0).gamma(2.0, size=8000).astype(np.float32)
    share = np.bincount(level_of(bucket_edges(value, 8, NUMBER), value)) / len(value)
    np.testing.assert_allclose(share, 1 / 8, atol=0.01)


@pytest.mark.parametrize("high", [1, 2, 3])
def test_few_numbers_are_spread_from_the_lowest_to_the_highest_words(high: int) -> None:
    value = np.repeat(np.arange(high + 1), 50).astype(np.float32)
    level = level_of(bucket_edges(value, 8, NUMBER), value)
    assert level.min() == 0
    assert level.max() == 7
    phrases = Phrases(wording("compact"), [NUMBER], 8)
    assert phrases.say(0, int(level[0])) == "with a very low ctr"
    assert phrases.say(0, int(level[-1])) == "with a remarkably high ctr"


def test_a_number_that_never_changes_is_neither_good_nor_bad() -> None:
    _, (field,) = fields_from({"ctr": (Column("number"), [0.3] * 9 + [math.nan])})
    assert field.good == "neither"
    assert (Phrases(wording("compact"), [field], 8).side_FB == NEITHER).all()


def test_a_column_without_a_value_is_no_field() -> None:
    own, fields = fields_from(
        {"ctr": (Column("number"), [math.nan] * 4), "x": (Column("flag"), [1])}
    )
    assert [field.name for field in fields] == ["x"]
    assert own.values("train", fields).shape == (1, 4, 1)


# --------------------------------------------------------------------------- categories and flags


def test_frequent_words_have_buckets_the_others_share_one() -> None:
    words = tuple(f"w{i}" for i in range(12))
    number = [i for i in range(12) for _ in range(30 - i)]
    own, (field,) = fields_from({"badge": (Column("category", words), [*number, math.nan])}, 5)
    assert field.words == ("w0", "w1", "w2", "w3")
    assert field.rest
    bucket = own.values("train", (field,))[0, :, 0]
    assert bucket[:-1].tolist() == [min(i, 4) for i in number]
    assert math.isnan(bucket[-1])
    assert [bucket_of(field, word) for word in ("w0", "w9", "never met")] == [0, 4, 4]
    few, (field,) = fields_from({"badge": (Column("category", words), [0, 1, 1, 2])}, 5)
    assert field.words == ("w1", "w0", "w2")
    assert math.isnan(bucket_of(field, "never met")), "nothing was learned about others"
    assert few.values("train", (field,))[0, :, 0].tolist() == [1, 0, 0, 2]


def test_words_with_a_side_have_buckets_however_rare_they_are() -> None:
    words = tuple(f"w{i}" for i in range(12))
    number = [i for i in range(12) for _ in range(30 - i)]
    given_ = {"badge": (Column("category", words), number)}
    _, (field,) = fields_from(given_, 4, badge={"good": ["w11"], "bad": ["w7"]})
    assert field.words == ("w7", "w11", "w0")
    sides = Phrases(wording("compact"), [field], 4).side_FB[0]
    assert sides.tolist() == [AGAINST, FOR, NEITHER, NEITHER]


@pytest.mark.parametrize(
    ("column", "config", "told"),
    [
        (Column("number"), {"good": ["x"]}, "words are for a category, this is a number"),
        (Column("flag"), {"bad": ["x"]}, "words are for a category, this is a flag"),
        (Column("category", ("a", "b")), {"good": ["c"]}, r"'c' does not occur .*: a, b\)"),
        (Column("category", ("a", "b")), {"bad": ["c"]}, "features.f.bad: 'c' does not occur"),
    ],
)
def test_sides_that_cannot_be_are_one_line(column, config, told) -> None:
    with pytest.raises(ConfigError, match=rf"^lists\.features\.f\.\w+: .*{told}|{told}"):
        fields_from({"f": (column, [0, 1])}, 8, f=config)


def test_a_flag_has_two_buckets_and_may_be_good_when_it_is_not_set() -> None:
    _, (one,) = fields_from({"used": (Column("flag"), [0, 1])}, 8, used={"good": "low"})
    edges = bucket_edges(np.array([0, 1], np.float32), 8, one)
    assert level_of(edges, np.array([0, 1], np.float32)).tolist() == [0, 1]
    phrases = Phrases(wording("compact"), [one], 8)
    assert [phrases.say(0, b) for b in (0, 1)] == ["not marked used", "marked used"]
    assert phrases.side_FB[0, :2].tolist() == [FOR, AGAINST]


# --------------------------------------------------------------------------------- one request

REFUSED: dict[str, tuple[Field, list[Any]]] = {
    "expected a number": (NUMBER, [True, False, "new", "1_0", b"7", [], [7], {}, (), 1j]),
    "expected a finite number": (NUMBER, [math.inf, -math.inf, np.float32(math.inf)]),
    "expected true or false": (FLAG, [2, -1, 0.5, math.inf, "maybe", [True], {}, 1j]),
    "expected text, the name of a category": (KIND, [b"new", ["new"], {"new": 1}, (), object()]),
}
TAKEN: list[tuple[Field, list[tuple[Any, float]]]] = [
    (NUMBER, [("7", 7), (" 12.5", 12.5), (Decimal("2.50"), 2.5)]),
    (NUMBER, [(7, 7), (-1e300, -MOST), (10**400, MOST), (np.int64(3), 3), (np.float32(0.5), 0.5)]),
    (FLAG, [("yes", 1), ("true", 1), ("0", 0), ("F", 0)]),
    (FLAG, [(True, 1), (False, 0), (1, 1), (0.0, 0), (np.bool_(True), 1)]),
    (
        KIND,
        [("new", 0), (" new\n", 0), ("<b>new</b>", 0), ("sale", 1), ("odd", 2), (5, 2), (True, 2)],
    ),
]
MISSED = [None, math.nan, np.float32(math.nan), "", " ", "n/a", "NA", "-", "None", "null"]


@pytest.mark.parametrize("told", REFUSED)
def test_a_value_that_the_field_cannot_hold_is_refused_in_a_few_words(told: str) -> None:
    field, values = REFUSED[told]
    for value in values:
        with pytest.raises(ValueError, match=f"^{told}$"):
            value_of(field, value)


@pytest.mark.parametrize(("field", "values"), TAKEN)
def test_a_value_is_what_the_field_makes_of_it(field: Field, values: list) -> None:
    for value, wanted in values:
        assert value_of(field, value) == wanted
    for value in MISSED:
        assert math.isnan(value_of(field, value))


def test_values_mean_what_the_lists_meant() -> None:
    numbers = replace(KIND, words=("3", "true"), rest=False)
    assert value_of(numbers, 3) == value_of(numbers, 3.0) == value_of(numbers, "3") == 0
    assert value_of(numbers, True) == 1
    assert math.isnan(value_of(numbers, 4))


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()))
@example("Best&amp;Sold")
@example("N/A")
@example("<i>new</i>")
@example("x" * 101)
def test_a_request_says_a_category_as_a_file_does(value) -> None:
    column = resolved("badge", [value], "category")
    field = replace(KIND, words=column.words, rest=False)
    if column.bad:
        with pytest.raises(ValueError, match=r"^expected text, the name of a category"):
            value_of(field, value)
    elif column.words:
        assert value_of(field, value) == 0
    else:
        assert math.isnan(value_of(field, value))


def test_a_recipe_names_words_as_the_file_spells_them() -> None:
    column = Column("category", ("Best&Sold", "Old"))
    wanted = {"good": ["Best&amp;Sold"], "bad": [" Old "]}
    _, (field,) = fields_from({"badge": (column, [0.0, 1.0])}, badge=wanted)
    assert (field.liked, field.disliked) == (("Best&Sold",), ("Old",))


# ------------------------------------------------------------------------------------- English

names = st.from_regex(r"[a-zA-Z][\w-]{0,20}", fullmatch=True)
words = st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=7, unique=True)


@given(names, words, st.booleans(), st.sampled_from(TEMPLATES), st.integers(2, 16))
@settings(max_examples=150, deadline=None)
def test_what_is_said_of_any_word_is_read_back_as_that_field(name, words, rest, template, n):
    kept = tuple(words[: n - rest]) or ("x",)
    field = Field(name, "", False, "category", words=kept, rest=rest)
    phrases = Phrases(wording(template), [*COUNTED, field], n)
    f = len(COUNTED)
    for bucket in range(len(kept) + rest):
        said = phrases.say(f, bucket)
        assert re.fullmatch(r"[^\n.;:,()\[\]{}<>*_`#|~\"\\]+", said), said
        text = f"It is: {said}, {phrases.say(0, 0)} and {said}."
        assert [field for field, _ in phrases.find(text)] == [f, 0, f]
        assert all(bucket in meant for at, meant in phrases.find(text) if at == f)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8])
def test_every_bucket_of_a_number_has_words_of_its_own(template: str, n: int) -> None:
    for field in (NUMBER, replace(NUMBER, phrase="clicked {often}")):
        phrases = Phrases(wording(template), [field], n)
        assert len({phrases.say(0, b) for b in range(n)}) == n
        assert phrases.side_FB[0, 0] == AGAINST
        assert phrases.side_FB[0, -1] == FOR
        low = Phrases(wording(template), [replace(field, good="low")], n)
        assert (low.side_FB == -phrases.side_FB).all()
        assert (Phrases(wording(template), [replace(field, good="neither")], n).side_FB == 0).all()


def test_nothing_is_said_of_what_is_missing() -> None:
    phrases = Phrases(wording("compact"), [NUMBER, FLAG], 8)
    assert phrases.sides(np.array([[MISSING, 1], [7, MISSING]])).tolist() == [[0, FOR], [FOR, 0]]
    assert phrases.alone_F.all(), "they say something of shoppers without purchases"


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("at a {grade} margin", "at a very low margin"),
        ("clicked {often}", "clicked hardly ever"),
        ("{grade} in our shoppers’ ratings", "very low in our shoppers’ ratings"),
    ],
)
def test_a_recipe_says_it_in_its_own_words(phrase: str, said: str) -> None:
    OwnFeature(phrase=phrase)
    assert Phrases(wording("gr2"), [replace(NUMBER, phrase=phrase)], 8).say(0, 0) == said


def test_own_words_of_categories_and_flags() -> None:
    kind = Phrases(wording("compact"), [replace(KIND, phrase="sold as {grade}")], 8)
    assert [kind.say(0, b) for b in range(3)] == ["sold as new", "sold as sale", "sold as other"]
    flag = Phrases(wording("compact"), [replace(FLAG, phrase="{grade} in stock")], 8)
    assert [flag.say(0, b) for b in range(2)] == ["not in stock", "in stock"]


def test_two_fields_that_would_say_the_same_are_refused() -> None:
    twin = replace(NUMBER, name="click_rate", phrase="with a {grade} ctr")
    with pytest.raises(ConfigError, match="click_rate and ctr would both say"):
        Phrases(wording("compact"), [NUMBER, twin], 8)


@given(st.text(max_size=200), st.integers(0, 15))
def test_a_label_is_words_on_one_line(word: str, number: int) -> None:
    label = label_of(word, number)
    assert label
    assert label == " ".join(label.split())
    assert not set(label) & set('.;:,()[]{}<>*_`#|~"\\/\n')


# -------------------------------------------------------------------------------------- recipes

BAD = {
    "a phrase without a slot": {"phrase": "often clicked"},
    "a phrase with two slots": {"phrase": "{grade} or {often}"},
    "a phrase with another slot": {"phrase": "{grade} {name}"},
    "a phrase that looks into things": {"phrase": "{grade.__class__}"},
    "a phrase of two lines": {"phrase": "{grade}\nctr"},
    "a phrase that ends": {"phrase": "{grade} ctr."},
    "a phrase with a colon": {"phrase": "ctr: {grade}"},
    "a phrase in bold": {"phrase": "**{grade}** ctr"},
    "a phrase with a quote": {"phrase": 'a "{grade}" ctr'},
    "a phrase with a tag": {"phrase": "<b>{grade}</b>"},
    "an empty phrase": {"phrase": ""},
    "a phrase of 1,000 characters": {"phrase": "{grade} " + "x" * 1000},
    "a phrase that is a number": {"phrase": 5},
    "an unknown kind": {"kind": "text"},
    "an unknown direction": {"good": "more"},
    "a direction that is true": {"good": True},
    "words of a number": {"kind": "number", "good": ["a"]},
    "words of a flag": {"kind": "flag", "bad": ["a"]},
    "a word on both sides": {"good": ["a"], "bad": ["a"]},
    "words that are numbers": {"good": [1]},
    "an unknown key": {"colour": "red"},
    "a column that is a number": {"column": 3},
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_malformed_feature_is_one_line_that_names_it(value: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^x: lists\.features\.ctr") as error:
        validate({"name": "x", "lists": {"features": {"ctr": value}}}, "x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", " ", "a b", "ctr (7d)", "_x", "x" * 41, "a.b", "<x>", "a\nb"])
def test_a_name_that_cannot_be_said_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^x: lists: features: .*a name is up to 40") as error:
        validate({"name": "x", "lists": {"features": {name: {}}}}, "x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [field.name for field in COUNTED])
def test_a_name_that_counts_already_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="counted already"):
        validate({"name": "x", "lists": {"features": [name]}}, "x")


# ---------------------------------------------------------------------------- files and scorers


def test_columns_survive_writing(tmp_path) -> None:
    assert read_own(tmp_path, ("train",)) is None
    columns = {"z": Column("number"), "a": Column("category", ("x", "y")), "f": Column("flag")}
    own_LKG = np.array([[[1.5, 0, 1], [math.nan, 1, 0]]], np.float32)
    write_own(tmp_path, columns, {"train": own_LKG, "test": own_LKG[:0]})
    own = read_own(tmp_path, ("train", "test"))
    assert own is not None
    assert list(own.columns.items()) == list(columns.items())
    np.testing.assert_array_equal(own.raw["train"], own_LKG)
    write_own(tmp_path, columns, {"train": own_LKG[..., :2]})
    with pytest.raises(ArtifactError, match=r"own_train\.safetensors: not as own\.json says"):
        read_own(tmp_path, ("train",))


@pytest.mark.parametrize("field", [NUMBER, FLAG, KIND], ids=lambda field: field.kind)
def test_an_own_field_survives_writing_and_nothing_else_is_taken_for_one(field: Field) -> None:
    told = as_json(field)
    assert field_of(told) == field
    wrong = [{"name": "rank"}, {"name": "a b"}, {"kind": "counted"}, {"kind": 5}, {"good": "more"}]
    wrong += [{"phrase": "{grade.x}"}, {"phrase": 1}, {"words": "new"}, {"words": [1]}, {"rest": 1}]
    wrong += [{"meaning": None}, {"meaning": "x" * 999}, {"zero_is_none": "no"}, {"more": 1}]
    for change in wrong:
        with pytest.raises(ValueError, match="fields: "):
            field_of({**told, **change})


def test_what_is_missing_is_a_level_of_its_own_to_the_scorers() -> None:
    rng = np.random.default_rng(0)
    n, k, buckets = 500, 5, 4
    buckets_LKF = rng.integers(0, buckets, (n, k, 2)).astype(np.uint8)
    buckets_LKF[rng.random((n, k)) < 0.3, 1] = MISSING
    worth_LK = np.where(buckets_LKF[..., 1] == MISSING, 2.0, 0.0) + buckets_LKF[..., 0]
    hit_L = (worth_LK + rng.gumbel(size=worth_LK.shape)).argmax(1)
    share_LK = np.eye(k)[hit_L]
    scorer = LinearScorer.fit(buckets_LKF, share_LK, buckets, 1e-4)
    assert scorer.weight_FV.shape == (2, buckets + 1)
    assert scorer.weight_FV[0, -1] == 0, "it was never missing"
    gap = scorer.weight_FV[1, -1] - scorer.weight_FV[1, :-1]
    assert ((gap > 1.5) & (gap < 2.5)).all()
    mlp = fit_mlp(buckets_LKF, share_LK, buckets, 0)
    right = [(s.score(buckets_LKF).argmax(1) == hit_L).mean() for s in (scorer, mlp)]
    assert min(right) > 0.5


def test_scorers_that_never_met_a_gap_take_it_for_nothing_special() -> None:
    rng = np.random.default_rng(0)
    buckets_LKF = rng.integers(0, 4, (300, 5, 3)).astype(np.uint8)
    share_LK = np.eye(5)[buckets_LKF[..., 0].argmax(1)]
    linear = LinearScorer.fit(buckets_LKF, share_LK, 4, 1e-3)
    mlp = fit_mlp(buckets_LKF, share_LK, 4, 0)
    other_LKF = buckets_LKF.copy()
    other_LKF[:, 0, 2] = MISSING
    worth_LKF = linear.contributions(other_LKF)
    assert (worth_LKF[:, 0, 2] == 0).all()
    usual = np.bincount(buckets_LKF[..., 2].ravel()).argmax()
    known_LKF = np.where(other_LKF == MISSING, usual, other_LKF).astype(np.uint8)
    np.testing.assert_array_equal(mlp.score(other_LKF), mlp.score(known_LKF))


def test_where_nearly_all_are_alike_the_few_others_stand_out() -> None:
    value = np.array([3.0] * 50 + [7.0, 9.0], np.float32)
    assert set(level_of(bucket_edges(value, 8, NUMBER), value[:50])) == {0}
    assert set(level_of(bucket_edges(value, 8, NUMBER), value[50:])) == {7}
