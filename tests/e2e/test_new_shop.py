"""The path of somebody new: files, a recipe, a report, a server, its log, and a second training.

Every step is a command of the README, in a process of its own, in the shop's own folder.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from diffgr2.artifacts import read_manifest
from diffgr2.errors import ConfigError
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.recipe import load_recipe
from diffgr2.stages import warm
from support import new_shop
from support.live import Process
from support.new_shop import Shop

pytest.importorskip("lightgbm")

SHORT = [
    *("threads=1", "items.min_steps=50", "items.epochs=2", "retriever.kind=itemknn"),
    *("model.dim=48", "model.layers=2", "model.heads=2", "model.kv_heads=1"),
    *("model.head_dim=24", "model.ffn=96", "midtrain.steps=2", "sft.steps=20", "rl.steps=0"),
    *("distill.lists=32", "cft.steps=10", "opd.steps=0", "block_rl.steps=0"),
    *("evaluate.bootstrap=200",),
]
"""What makes a first look of it."""


@dataclass(frozen=True)
class Size:
    """How far somebody goes."""

    requests: int
    asked: int  # of the server
    first: list[str]  # beside `run RECIPE`
    second: list[str]


QUICK = Size(300, 40, ["--goal", "story", "--set", *SHORT], ["--goal", "story", "--set", *SHORT])
FULL = Size(3_000, 300, [], ["--goal", "story"])


@dataclass
class Walk:
    """What was said at each step, and what the shop knows to be true."""

    folder: Path
    shop: Shop
    size: Size
    said: dict[str, str] = field(default_factory=dict)
    sent: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # request -> events
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)  # request -> what was asked
    answers: list[dict[str, Any]] = field(default_factory=list)

    def diffgr2(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        source = Path(__file__).parents[2] / "src"
        done = subprocess.run(
            [sys.executable, "-m", "diffgr2.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr[-3000:]
        return done


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(QUICK, id="quick"),
        pytest.param(FULL, id="full", marks=pytest.mark.slow),
    ],
)
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """All of it, once."""
    size: Size = request.param
    folder = tmp_path_factory.mktemp("shop")
    path = Walk(folder, new_shop.write(folder, size.requests), size)
    files = ["orders.csv", "products.csv", "requests.csv"]
    path.said["init"] = path.diffgr2("init", *files, "--yes", "--out", "shop.yaml").stdout
    path.said["check"] = path.diffgr2("data", "check", "shop.yaml").stdout
    done = path.diffgr2("run", "shop.yaml", *size.first)
    path.said |= {"run": done.stdout, "progress": done.stderr}
    path.said["report"] = path.diffgr2("report", "runs/shop").stdout
    bundle, traffic = folder / "runs" / "shop" / "bundle", folder / "traffic"
    with Process(bundle, "--log-dir", str(traffic)) as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for _ in range(size.asked):
                visit(path, client)
        server.process.terminate()
        assert server.process.wait(60) == 0
    done = path.diffgr2("data", "lists-from-log", "traffic", "--out", "logged.parquet")
    path.said["log"] = done.stdout
    (folder / "again.yaml").write_text(again_recipe(path), encoding="utf-8")
    again = ["run", "again.yaml", "--from", "runs/shop/bundle", *size.second]
    path.said["second"] = path.diffgr2(*again).stdout
    return path


def again_recipe(walk: Walk) -> str:
    """The section as it was printed, with the shop's own gains and good ends of features."""
    said, first = walk.said["log"], (walk.folder / "shop.yaml").read_text("utf-8")
    own = next(line for line in first.splitlines() if line.startswith("  features: "))
    section = said[said.index("lists:\n") :].replace("purchase: 1", "purchase: 3")
    lines = [own if line.startswith("  features: ") else line for line in section.splitlines()]
    return "\n".join(["from: shop.yaml", *lines, ""])


def visit(walk: Walk, client: httpx.Client) -> None:
    """A shopper is shown a list, and does what the truth says; one answer in ten is told twice."""
    shop = walk.shop
    shopper = int(shop.rng.integers(len(shop.orders)))
    had = new_shop.had_by(shop, shopper, 10**12)
    items_K, score_K = new_shop.candidates(shop, had, int(shop.rng.integers(8, 17)))
    documents = [
        {"id": new_shop.name(item), "features": new_shop.features(shop, item)}
        for item in items_K.tolist()
    ]
    body = {"history": [new_shop.name(item) for item in had], "documents": documents}
    body |= {"scores": score_K.tolist(), "return_reasoning": True}
    answer = client.post("/v1/rerank", json=body)
    assert answer.status_code == 200, answer.text
    value = answer.json()
    click_K, bought = new_shop.outcomes(shop, had, items_K)
    done = [(k, "click") for k in click_K.nonzero()[0].tolist()]
    done += [(bought, "purchase")] if bought >= 0 else []
    events = [
        {"request_id": value["id"], "item": documents[k]["id"], "event": event} for k, event in done
    ]
    for status in (202, 200)[: 1 + (len(walk.answers) % 10 == 0)]:
        told = client.post("/v1/feedback", json={"events": events})
        assert told.status_code == status, told.text
    walk.answers.append(value)
    walk.bodies[value["id"]] = body
    walk.sent[value["id"]] = events


def stages_run(said: str) -> set[str]:
    return {line.split(":")[0] for line in said.splitlines() if ": runs (" in line}


def report(walk: Walk) -> dict[str, Any]:
    return json.loads((walk.folder / "runs/shop/report/report.json").read_text("utf-8"))


def test_the_recipe_has_twelve_lines_and_says_what_stands_in_the_files(walk: Walk) -> None:
    text = (walk.folder / "shop.yaml").read_text("utf-8")
    assert len([line for line in text.splitlines() if not line.startswith("#")]) <= 12
    recipe = load_recipe(str(walk.folder / "shop.yaml"))
    assert recipe.lists.gains == {"click": 1.0, "purchase": 3.0}
    good = {name: feature.good for name, feature in recipe.lists.features.items()}
    assert (good["price"], good["ctr"], good["stock"]) == ("low", "high", "high")
    assert set(good) == set(new_shop.FEATURES)
    assert "next: diffgr2 run shop.yaml   (about " in walk.said["init"]
    assert not re.search(r"\b1 minutes\b", walk.said["init"] + walk.said["progress"])


def test_the_check_and_the_run_speak_of_the_shops_lists(walk: Walk) -> None:
    table = pl.read_csv(walk.folder / "requests.csv")
    assert f"requests.csv: {len(table):,} rows, {walk.size.requests:,} lists" in walk.said["check"]
    assert "feature stock: flag" in walk.said["check"]
    known = table["price"].is_not_null().mean()
    assert f"feature price: number, {known:.1%} known" in walk.said["check"]
    assert "set aside: nothing" in walk.said["check"]
    assert "data: runs (import of interactions, items and your lists)" in walk.said["progress"]
    assert "candidates: runs (your lists, split)" in walk.said["progress"]


def test_the_report_names_the_shops_ranker_lambdamart_and_ours(walk: Walk) -> None:
    rows = {row["name"]: row for row in report(walk)["rows"] if row["population"] == "hit"}
    names = {"floor", "lambdamart", "evidence", "ar", "cft_opd_rl", "verify"}
    assert names <= rows.keys()
    for name in names:
        assert re.search(rf"^│ {name} ", walk.said["report"], re.MULTILINE), name
    assert "…" not in walk.said["report"], "no name is cut"
    text = (walk.folder / "runs/shop/report/report.md").read_text("utf-8")
    assert "The lists are the shop's own (requests.csv)" in text
    assert "## Lists that have an outcome" in text
    assert "shop · Lists that have an outcome · n = " in walk.said["report"]
    ndcg = {name: rows[name]["metrics"]["ndcg@10"] for name in names}
    # The ranker does not know price, margin and what goes together; both of these do.
    assert ndcg["lambdamart"] > ndcg["floor"] + 0.05
    assert ndcg["evidence"] > ndcg["floor"] + 0.05
    if walk.size is FULL:
        assert ndcg["cft_opd_rl"] > ndcg["floor"] + 0.05


def test_the_verdict_is_three_lines_wherever_it_stands(walk: Walk) -> None:
    verdict = report(walk)["verdict"]
    floor, rival, scorer = verdict["lines"]
    assert "the floor (the shop's own order)" in floor
    assert "rival" in rival
    assert "the scorer that taught it, `evidence`" in scorer
    for said in (walk.said["run"], walk.said["report"]):
        assert said.splitlines()[-3:] == report(walk)["closing"]
    card = (walk.folder / "runs/shop/bundle/README.md").read_text("utf-8")
    assert all(line in card for line in verdict["lines"])
    assert "this shop, its own ranker" in card
    if verdict["worse_than"]:
        refused = walk.diffgr2("serve", "--model", "runs/shop/bundle", "--port", "0", code=2)
        assert "--force" in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_the_server_ranks_every_list_whole_and_warns_of_nothing(walk: Walk) -> None:
    for value in walk.answers:
        body = walk.bodies[value["id"]]
        shown = [one["id"] for one in value["results"]]
        assert Counter(shown) == Counter(one["id"] for one in body["documents"])
        assert value["meta"]["warnings"] == []
        assert value["reasoning"].strip()


def test_the_log_joins_what_was_shown_with_what_came_of_it(walk: Walk) -> None:
    table = pl.read_parquet(walk.folder / "logged.parquet")
    assert f"logged.parquet: {walk.size.asked} lists, {len(table)} candidates" in walk.said["log"]
    assert "set aside" not in walk.said["log"]
    assert set(table["list"]) == set(walk.bodies)
    shown = {value["id"]: [one["id"] for one in value["results"]] for value in walk.answers}
    for (name,), rows in table.sort("place").group_by("list"):
        body = walk.bodies[str(name)]
        events = {(one["item"], one["event"]) for one in walk.sent[str(name)]}
        assert rows["item"].to_list() == [one["id"] for one in body["documents"]]
        assert rows["score"].to_list() == pytest.approx(body["scores"])
        for event in ("click", "purchase"):
            came = [int((item, event) in events) for item in rows["item"]]
            assert rows[event].to_list() == came, "each event once, however often it was told"
        places = [shown[str(name)].index(item) + 1 for item in rows["item"]]
        assert rows["shown"].to_list() == places
        for feature in new_shop.FEATURES:
            told = [one["features"][feature] for one in body["documents"]]
            assert rows[feature].to_list() == told, feature


def test_a_second_run_trains_on_the_log_from_the_first_ones_weights(walk: Walk) -> None:
    again = walk.folder / "runs" / "again"
    found = read_manifest(again / "candidates")["metrics"]
    lists = sum(found[f"{split}_lists"] for split in ("train", "validation", "test"))
    assert lists == walk.size.asked
    for stage in ("sft", "cft"):
        assert read_manifest(again / stage)["metrics"]["steps"] > 0
    bundles = [walk.folder / "runs" / run / "bundle" for run in ("shop", "again")]
    one, two = (Vocabulary.load(bundle) for bundle in bundles)
    assert one.spec == two.spec
    assert one.names == two.names
    recipe = load_recipe(str(walk.folder / "again.yaml"), [f"start={bundles[0]}"])
    counted = tuple(name for name in one.spec.fields if name not in new_shop.FEATURES)
    with pytest.raises(
        ConfigError, match=r"lacks: price, ctr, margin, stock \(name price, ctr, margin, stock in"
    ):
        warm.vocabulary(recipe, counted)
    assert len(walk.said["second"].splitlines()[-3:]) == 3
    assert "the floor (the shop's own order)" in walk.said["second"]
