"""The README's recipe for own lists, word for word, on a shop that no recipe has seen."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from diffgr2 import Reranker
from diffgr2.artifacts import read_json, read_manifest
from diffgr2.cli import app
from diffgr2.recipe import load_recipe

README = Path(__file__).parents[2] / "README.md"
PAGE = Path(__file__).parents[2] / "docs" / "own_lists.md"
LENGTHS = (2, 7, 19, 20, 23, 34)
SHORT = [
    *("threads=1", "items.min_steps=20", "items.epochs=1", "items.min_unique=0.1"),
    *("model.dim=32", "model.layers=1", "model.heads=2", "model.kv_heads=1", "model.head_dim=16"),
    *("model.ffn=64", "midtrain.steps=2", "sft.steps=12", "rl.steps=2", "rl.prompts=2"),
    *("direct_rl.steps=0", "distill.lists=12", "cft.steps=4", "opd.steps=0", "block_rl.steps=1"),
    *("block_rl.prompts=1", "evaluate.bootstrap=200", "evaluate.max_users=20"),
]
"""What makes a first look of it."""


def recipe_of(page: Path, start: str) -> str:
    """The YAML block of a page that begins so."""
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if block.startswith(start))


def write_shop(folder: Path, *, seed: int = 5) -> None:
    """lists.parquet, orders.csv and products.csv in the words of the README and of its page."""
    rng = np.random.default_rng(seed)
    ctr_I, margin_I, kind_I = (
        rng.beta(2, 30, 90),
        rng.uniform(0.05, 0.6, 90),
        rng.integers(6, size=90),
    )
    orders, rows = [], []
    for user in range(50):
        for moment in np.sort(rng.integers(0, 60, int(rng.integers(1, 9)))).tolist():
            stamp = f"2026-03-{moment // 24 + 1:02}T{moment % 24:02}:00:00"
            orders.append((f"u{user}", f"i{rng.integers(90)}", stamp))
    for number in range(160):
        items_K = rng.choice(90, LENGTHS[number % len(LENGTHS)], replace=False)
        want_K = 30 * ctr_I[items_K] + 3 * margin_I[items_K] + rng.gumbel(size=len(items_K))
        bought = int(want_K.argmax()) if rng.random() < 0.4 else -1
        for place, item in enumerate(items_K.tolist(), 1):
            row = {"list": f"L{number}", "user": f"u{number % 50}", "item": f"i{item}"}
            row |= {"moment": f"2026-03-{number % 5 + 1:02}T12:00:00", "place": place}
            row |= {
                "ctr": float(ctr_I[item]),
                "margin": float(margin_I[item]) if item % 7 else None,
            }
            click = int(want_K[place - 1] >= np.sort(want_K)[-2])
            rows.append({**row, "click": click, "purchase": int(place - 1 == bought)})
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(folder / "lists.parquet")
    names = ["customer", "article", "ordered_at"]
    pl.DataFrame(orders, schema=names, orient="row").write_csv(folder / "orders.csv")
    products = [
        {
            "code": f"i{item}",
            "product_name": f"Thing {item} of kind {kind_I[item]}",
            "maker": f"Maker {kind_I[item] // 2}",
            "department": f"All > Kind {kind_I[item]}",
        }
        for item in range(90)
    ]
    pl.DataFrame(products).write_csv(folder / "products.csv")


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_the_recipe_alone_knows_no_purchases_and_says_so(tmp_path: Path) -> None:
    write_shop(tmp_path)
    path = tmp_path / "shop.yaml"
    path.write_text(recipe_of(README, "from: demo"), encoding="utf-8")
    text = said("data", "check", str(path))
    assert "160 lists of 50 users" in text
    assert "(2 to 34, median" in text
    assert "lists longer than candidates.k_max (20) are cut to it" in text
    assert "outcomes: click (worth 1), purchase (worth 3)" in text
    assert "feature margin: number, 8" in text
    assert "histories: none, so that no evidence speaks of purchases" in text
    assert "name users alike" not in text
    runs = tmp_path / "runs"
    said("run", str(path), "--runs", str(runs), "--goal", "evidence", "--set", *SHORT)
    told = read_manifest(runs / "evidence")["metrics"]
    assert told["fields"].split()[-2:] == ["ctr", "margin"]
    assert not {"copurchase", "lift", "last", "next", "session"} & {*told["fields"].split()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both blocks as one recipe, run to its end."""
    folder = tmp_path_factory.mktemp("readme")
    write_shop(folder)
    lists, data = recipe_of(README, "from: demo"), recipe_of(PAGE, "# shop.yaml; what is not said")
    (folder / "shop.yaml").write_text(f"{lists}{data}", encoding="utf-8")
    runs = folder / "runs"
    said("run", str(folder / "shop.yaml"), "--runs", str(runs), "--goal", "story", "--set", *SHORT)
    said("report", str(folder / "shop.yaml"), "--runs", str(runs), "--set", *SHORT)
    return runs


def test_with_the_ten_lines_it_runs_to_a_bundle_and_a_verdict(run: Path) -> None:
    recipe = load_recipe(str(run.parent / "shop.yaml"))
    assert recipe.data.source == "table"
    assert recipe.lists.features["ctr"].phrase == "clicked {often}"
    told = read_json(run / "report" / "report.json")
    names = {row["name"] for row in told["rows"]}
    assert {"floor", "evidence", "lambdamart", "ar", "cft_opd_rl", "verify"} <= names
    assert told["verdict"]["own_lists"]
    fields = read_manifest(run / "evidence")["metrics"]["fields"].split()
    assert {"copurchase", "brand", "category", "ctr", "margin"} <= {*fields}


def test_its_bundle_ranks_lists_of_any_length_with_and_without_features(run: Path) -> None:
    reranker = Reranker.from_pretrained(run / "bundle")
    for length in (1, 3, 20, 41):
        items = [f"i{item}" for item in range(length)]
        given = [{"ctr": 0.2, "margin": 0.3} if at % 2 else {} for at in range(length)]
        result = reranker.rank(["i1", "i2"], items, features=given, return_reasoning=True)
        assert sorted(result.order) == list(range(length))
        assert result.warnings == ()
        assert "{" not in str(result.reasoning)
