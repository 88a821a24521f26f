"""The shipped recipes: valid, commented on every key, and within what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from diffgr2.candidates.fields import Field
from diffgr2.prompts.english import AGAINST, FOR, Phrases, wording
from diffgr2.recipe import RECIPES, load_recipe

SHIPPED = sorted(RECIPES.glob("*.yaml"))


def test_these_recipes_ship() -> None:
    known = "beauty beauty_gpu demo games micro paper text_gpu text_small text_smol"
    assert [path.stem for path in SHIPPED] == known.split()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_recipe_is_valid_and_named_after_its_file(path: Path) -> None:
    assert load_recipe(path.stem).name == path.stem


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_key_carries_a_trailing_comment(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    keys = 0

    def walk(node: yaml.Node) -> None:
        nonlocal keys
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            keys += 1
            line = lines[key.start_mark.line]
            code, mark, comment = line.partition(" # ")
            assert mark, f"{path.name}: line {key.start_mark.line + 1} has no comment: {line}"
            assert comment.strip(), line
            assert f"{key.value}:" in code
            walk(value)

    walk(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
    assert keys > 50
    assert lines[0].startswith("# "), "the first line says what the recipe is for"
    assert max(map(len, lines)) <= 100


def test_places_in_other_lists_are_told_from_the_top() -> None:
    """Place 0 is the first bucket: it counts for a candidate, and is near the top in words."""
    features = load_recipe("games").lists.features
    fields = [
        Field(name, name, False, "number", "low", phrase=one.phrase)
        for name, one in features.items()
        if one.good == "low"
    ]
    assert len(fields) == 6
    phrases = Phrases(wording("compact"), fields, 8)
    grades = wording("compact")["scales"]["standing"]
    for f, field in enumerate(fields):
        said = [phrases.say(f, bucket) for bucket in range(8)]
        assert [text.partition(" in the list ")[0] for text in said] == grades
        assert all(text.partition(" in the list ")[2] for text in said), field.name
        assert (phrases.side_FB[f, :3] == FOR).all()
        assert (phrases.side_FB[f, -4:] == AGAINST).all()
