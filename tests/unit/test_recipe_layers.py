"""Recipes that start from others: what merges, what replaces, who is named when it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diffgr2 import cli
from diffgr2.cli import spread
from diffgr2.errors import ConfigError
from diffgr2.recipe import _Layers, load_recipe

KEYS = st.sampled_from(["a", "b", "c"])
TREES = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
LAYERS = st.lists(st.dictionaries(KEYS, TREES, max_size=3), min_size=1, max_size=4)


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def leaves(tree: Any, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(tree, dict):
        return {above: tree}
    return {k: v for key in tree for k, v in leaves(tree[key], (*above, key)).items()}


@given(LAYERS)
def test_the_last_to_say_a_leaf_wins_and_is_named(layers: list[dict[str, Any]]) -> None:
    found = _Layers()
    for n, values in enumerate(layers):
        found.lay(values, str(n))
    for place, value in leaves(found.values).items():
        saying = [n for n, values in enumerate(layers) if leaves(values).get(place) == value]
        assert saying, "nothing is made up"
        named = next(found.origins[place[:n]] for n in range(len(place), 0, -1)
                     if place[:n] in found.origins)  # fmt: skip
        assert int(named) in saying
    for place, value in leaves(layers[-1]).items():
        node = found.values
        for key in place[:-1]:
            node = node[key]
        assert node[place[-1]] == value, "what the recipe itself says stands"


def test_a_recipe_takes_over_all_but_the_name(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", "from: demo\nsft: {steps: 7}\nevaluate: {views: [1, 4]}\n")
    mine, demo = load_recipe(path), load_recipe("demo")
    assert mine.name == "mine"
    assert mine.sft == demo.sft.model_copy(update={"steps": 7})
    assert mine.evaluate.views == [1, 4], "lists replace"
    assert mine.evaluate.frontier_lists == demo.evaluate.frontier_lists
    assert mine.model == demo.model


def test_chains_go_through_folders(tmp_path: Path) -> None:
    write(tmp_path, "base/a.yaml", "from: micro\nseed: 3\nsft: {lr: 0.5}\n")
    write(tmp_path, "base/b.yaml", "from: a.yaml\nsft: {steps: 5}\n")
    recipe = load_recipe(write(tmp_path, "c.yaml", "from: base/b.yaml\nsft: {lr: 0.25}\n"))
    assert (recipe.name, recipe.seed, recipe.sft.steps, recipe.sft.lr) == ("c", 3, 5, 0.25)
    assert recipe.model.dim == load_recipe("micro").model.dim


def test_paths_start_from_the_file_that_says_them(tmp_path: Path, monkeypatch: Any) -> None:
    table = "data: {source: table, interactions: logs.csv, items: ../texts.csv}\n"
    write(tmp_path, "shop/base.yaml", table)
    own = "from: ../shop/base.yaml\nmodel: {base: ckpt}\nstart: bundle\n"
    path = write(tmp_path, "mine/r.yaml", own)
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("mine/r.yaml", ["lists.file=here.csv"])
    assert recipe.data.interactions == "shop/logs.csv"
    assert recipe.data.items == "texts.csv"
    assert (recipe.model.base, recipe.start) == ("mine/ckpt", "mine/bundle")
    assert recipe.lists.file == "here.csv", "--set starts from the working directory"
    monkeypatch.chdir(tmp_path / "mine")
    assert load_recipe("r.yaml").model.base == "ckpt"
    assert load_recipe(path).data.interactions == str(tmp_path / "shop/logs.csv")
    assert load_recipe("beauty").data.interactions == "../shared/data/beauty/interactions.parquet"


def test_columns_go_with_their_file(tmp_path: Path) -> None:
    own = "from: beauty\ndata: {source: table, interactions: x.csv, columns: {user: u}}\n"
    recipe = load_recipe(write(tmp_path, "own.yaml", own))
    assert recipe.data.columns == {"user": "u"}
    assert (recipe.data.items, recipe.data.tie_order, recipe.data.k_core) == (None, "file", 5)
    copy = "from: beauty\ndata: {interactions: x.csv, items: y.csv}\n"
    recipe, beauty = load_recipe(write(tmp_path, "copy.yaml", copy)), load_recipe("beauty")
    assert recipe.data.columns == beauty.data.columns
    assert recipe.data.interactions == str(tmp_path / "x.csv")


BAD = [
    ("from: nope\n", "x.yaml: from: nope: no such recipe (shipped: "),
    ("from: gone.yaml\n", "x.yaml: from: gone.yaml: no such recipe file"),
    ("from: x.yaml\n", "x.yaml: from: x.yaml starts from this recipe itself"),
    ("from: y.yaml\n", "y.yaml: from: x.yaml starts from this recipe itself"),
    ("from: [demo, beauty]\n", "x.yaml: from: expected a recipe's name or file (got ['demo', "),
    ("from: ''\n", "x.yaml: from: expected a recipe's name or file (got '')"),
    ("from: bad.yaml\n", "bad.yaml: sft.steps: Input should be greater than or equal to 0"),
    ("from: bad.yaml\nsft: {lr: 0}\n", "bad.yaml: sft.steps: Input should be greater than"),
    ("from: bad.yaml\nsft: {steps: 1, lr: 0}\n", "x.yaml: sft.lr: Input should be greater than 0"),
    ("from: odd.yaml\ncandidates: {k: 30}\n", "x.yaml: candidates: k: at most candidates.k_max"),
    ("from: broken.yaml\n", "broken.yaml: line 2: not valid YAML"),
    ("from: demo\ndata: 5\n", "x.yaml: data: Input should be a valid dictionary"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD, ids=[text for text, _ in BAD])
def test_one_line_names_the_file_that_said_it(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "y.yaml", "from: x.yaml\n")
    write(tmp_path, "bad.yaml", "sft: {steps: -1}\n")
    write(tmp_path, "odd.yaml", "candidates: {k_max: 25}\n")
    write(tmp_path, "broken.yaml", "a: [1\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, "x.yaml", text))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_alias_is_not_shared(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "rl: &r {lr: 0.5, steps: 1}\ndirect_rl: *r\n")
    recipe = load_recipe(write(tmp_path, "x.yaml", "from: base.yaml\nrl: {steps: 9}\n"))
    assert (recipe.rl.steps, recipe.direct_rl.steps, recipe.rl.lr) == (9, 1, 0.5)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["run", "x", "--set", "a=1", "b.c=2"], ["run", "x", "--set", "a=1", "--set", "b.c=2"]),
        (["run", "--set", "a=1", "b=2", "c=3", "x"],
         ["run", "--set", "a=1", "--set", "b=2", "--set", "c=3", "x"]),
        (["run", "--set", "a=1", "x", "b=2"], ["run", "--set", "a=1", "x", "b=2"]),
        (["run", "--set", "a=x=y", "--force"], ["run", "--set", "a=x=y", "--force"]),
        (["data", "check", "f.csv", "--column", "user=u", "item=i"],
         ["data", "check", "f.csv", "--column", "user=u", "--column", "item=i"]),
        (["run", "--goal", "a=1", "b=2"], ["run", "--goal", "a=1", "b=2"]),
    ],
)  # fmt: skip
def test_several_values_behind_one_option(given: list[str], meant: list[str]) -> None:
    assert spread(given) == meant


def test_set_takes_several_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "micro", "--set", "sft.steps=7", "rl.lr=0.5"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["sft"]["steps"], shown["rl"]["lr"]) == (7, 0.5)
