"""Category texts: which sign separates the parts is told by the column, and any text is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.data.categories import LONGEST_TEXT, read_paths, told
from diffgr2.data.values import category_path

NAMES = ["Hair Care", "Oils", "Dry", "Men", "Bath"]
TREE = [(a, b, c) for a in NAMES[:2] for b in NAMES for c in NAMES]


def paths_of(texts: list[str], separator: str | None = None) -> dict[str, tuple[str, ...]]:
    found = read_paths({text: text for text in texts}, separator)
    return {text: category_path(value, "c") for text, value in found.of.items()}


@pytest.mark.parametrize("sign", [" > ", ">", "|", " | ", "; ", ";", "/", " / ", ",", ", ", " -> "])
def test_a_tree_is_read_with_any_separator(sign: str) -> None:
    texts = {sign.join(path): path for path in TREE}
    assert paths_of(list(texts)) == texts


def test_dotted_words_are_paths() -> None:
    texts = [f"electronics.{name}.x{n}" for n in range(5) for name in ("phone", "tv")]
    assert paths_of(texts)[texts[0]] == ("electronics", "phone", "x0")
    assert paths_of(["St. Ives", "Dr. Best", "No. 7"])["No. 7"] == ("No. 7",), "no words with dots"


def test_lists_in_text_are_read() -> None:
    assert paths_of(["['Hair', 'Oils']", '["Hair", "Dry, Long"]', "Men"]) == {
        "['Hair', 'Oils']": ("Hair", "Oils"),
        '["Hair", "Dry, Long"]': ("Hair", "Dry, Long"),
        "Men": ("Men",),
    }
    nested = json.dumps([["Beauty"], ["Beauty", "Hair", "Oils"]])
    assert paths_of([nested])[nested] == ("Beauty", "Hair", "Oils")


@pytest.mark.parametrize(
    "texts",
    [
        ["Beer, Wine & Spirits", "Toys", "Food", "Books"],
        ["Beer, Wine and Spirits"] * 3,
        ["Audio/Video", "Toys", "Food", "Books"],
        ["Cups, red", "Plates, blue", "Forks, green", "Spoons, white"],
        ["[not a list", "also not]", "[1, 2]"],
        ["Toys"],
    ],
)
def test_a_sign_inside_names_separates_nothing(texts: list[str]) -> None:
    assert all(value == (text,) for text, value in paths_of(texts).items())


def test_the_recipe_has_the_last_word() -> None:
    assert paths_of(["a_b", "c"], "_") == {"a_b": ("a", "b"), "c": ("c",)}
    assert paths_of(["A > B"], "none") == {"A > B": ("A > B",)}
    assert paths_of(["A > B, C"], ",") == {"A > B, C": ("A > B", "C")}


def test_what_was_understood_is_told_with_an_example() -> None:
    texts = {str(n): ",".join(path) for n, path in enumerate(TREE)}
    said = told(read_paths({**texts, "odd": "Gifts"}))
    assert said.startswith("split at ',' in 98% of the texts, 'Hair Care,Hair Care,Hair Care' is ")
    assert said.endswith("is Hair Care > Hair Care > Hair Care")
    assert told(read_paths({"1": "Toys"})) == "taken whole, for example 'Toys'"
    assert told(read_paths({"1": "['A', 'B']"})).startswith("spelled as lists in 100% of the texts")


LISTS = st.recursive(st.text("ab'", max_size=2) | st.integers() | st.none(), st.lists, max_leaves=5)
TEXTS = (
    st.text(max_size=40)
    | LISTS.map(repr)
    | st.lists(st.sampled_from(NAMES), max_size=4).flatmap(
        lambda names: st.sampled_from([">", "|", ";", "/", ",", "."]).map(
            lambda sign: sign.join(names)
        )
    )
)


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=12), st.sampled_from([None, "none", ",", "::", " "]))
def test_any_texts_become_paths(texts: list[str], separator: str | None) -> None:
    found = read_paths({str(n): text for n, text in enumerate(texts)}, separator)
    assert set(found.of) == {str(n) for n, text in enumerate(texts) if text.strip()}
    assert 0.0 <= found.share <= 1.0
    assert "\n" not in told(found)
    for value in found.of.values():
        assert all(isinstance(part, str) for part in category_path(value, "c"))


@pytest.mark.parametrize("text", ["[" * 4_000, "[" + "-" * 4_000 + "1]", "['a'" + ",'b'" * 3_000])
def test_a_hostile_text_is_one_name_or_a_list(text: str) -> None:
    value: Any = read_paths({"x": text}).of["x"]
    assert value
    assert all(len(str(part)) <= LONGEST_TEXT for part in value)
