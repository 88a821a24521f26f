"""The model card of a bundle: YAML that any reader takes, figures with n and interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffgr2.config import Recipe
from diffgr2.recipe import validate
from diffgr2.stages.card import SHOWN, card, origin

COUNTS = {"n_items": 1_200, "n_users": 300, "n_interactions": 4_500}
MADE = {"command": "diffgr2 run shop", "commits": "`0123abc`"}


def row(name: str, population: str, n: int, value: float) -> dict[str, Any]:
    metrics = dict.fromkeys(SHOWN, value)
    ci = {metric: [value - 0.01, value + 0.02] for metric in SHOWN}
    return {"name": name, "population": population, "n": n, "metrics": metrics, "ci": ci}


ROWS = [
    row("ar", "hit", 1_010, 0.5), row("ar", "all", 4_000, 0.125),
    row("floor", "hit", 1_010, 0.25), row("floor", "all", 4_000, 0.0625),
]  # fmt: skip
VERDICT = {
    "row": "ar",
    "split": "test",
    "own_lists": False,
    "lines": ["`ar`: better."],
    "worse_than": [],
}


def recipe(file: str = "", name: str = "shop") -> Recipe:
    data = {"source": "table", "interactions": file} if file else {}
    return validate({"name": name, "data": data}, "toy")


def front(text: str) -> dict[str, Any]:
    """What stands between the lines of dashes, as YAML."""
    start, matter, body = text.split("---\n", 2)
    assert start == ""
    assert body.lstrip().startswith("# ")
    return yaml.safe_load(matter)


def made(
    recipe: Recipe, *, verdict: dict[str, Any] | None = VERDICT, diffusion: bool = True
) -> str:
    rows = ROWS if verdict else []
    return card(recipe, "block_rl", COUNTS, verdict, rows, MADE, diffusion=diffusion)


def test_the_front_matter_says_what_hubs_ask_for() -> None:
    matter = front(made(recipe()))
    assert matter["license"] == "apache-2.0"
    assert matter["language"] == "en"
    assert matter["library_name"] == "diffgr2"
    assert matter["pipeline_tag"] == "text-ranking"
    assert "block-diffusion" in matter["tags"]
    assert matter["datasets"] == ["simulated-shop"]
    assert matter["metrics"] == [*SHOWN]


def test_figures_are_the_reports_rows_with_n_and_interval() -> None:
    text = made(recipe())
    (index,) = front(text)["model-index"]
    hit, all_ = index["results"]
    assert [one["dataset"]["args"] for one in (hit, all_)] == [
        {"population": "hit", "n": 1_010},
        {"population": "all", "n": 4_000},
    ]
    first = hit["metrics"][0]
    assert (first["type"], first["value"]) == ("ndcg@10", 0.5)
    assert first["args"]["confidence_interval_95"] == pytest.approx([0.49, 0.52])
    assert "n = 1,010" in text
    assert "| ar | .5000 [.4900, .5200] |" in text
    assert "| floor | .2500 [.2400, .2700] |" in text


@pytest.mark.parametrize(
    "file",
    [
        'a: b "c" #1.csv',
        "{braces} [and] |pipes|.csv",
        "ünïcode 'quoted' & *star*.csv",
        "---.csv",
        "line\nbreak.csv",
        "%@`tick.csv",
    ],
)
def test_odd_names_of_files_leave_the_yaml_whole(file: str) -> None:
    matter = front(made(recipe(file)))
    (index,) = matter["model-index"]
    assert index["results"][0]["dataset"]["name"] == f"table: {' '.join(file.split())}"
    assert matter["license"] == "other"


@pytest.mark.parametrize("name", ["1e3", "no", "2026-01-01", "0x1F", "a.b_c-d"])
def test_names_that_yaml_would_take_for_something_else_stay_text(name: str) -> None:
    (index,) = front(made(recipe(name=name)))["model-index"]
    assert index["name"] == name


def test_a_bundle_that_nobody_judged_has_a_card_without_figures() -> None:
    text = made(recipe(), verdict=None, diffusion=False)
    matter = front(text)
    assert not {"model-index", "metrics"} & matter.keys()
    assert "autoregressive" in matter["tags"]
    assert "Not judged" in text


def test_the_command_is_the_runs_without_paths(tmp_path: Path) -> None:
    stage = tmp_path / "data"
    stage.mkdir()
    (stage / "manifest.json").write_text(
        json.dumps({"files": {}, "versions": {"commit": "0123abc"}})
    )
    shop = recipe()
    assert origin({"data": stage}, shop) == {"command": "diffgr2 run shop", "commits": "`0123abc`"}
    command = "diffgr2 run beauty --set data.interactions=/home/me/logs.parquet --set seed=1"
    (tmp_path / "run.json").write_text(json.dumps({"command": command}))
    told = origin({"data": stage}, shop)["command"]
    assert told == "diffgr2 run beauty --set data.interactions=…/logs.parquet --set seed=1"
