"""What others build on stays: no name that was ever promised is gone (docs/compatibility.md).

The lists stand in tests/golden/names, one name a line; `support.names` says how they grow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffgr2.cli import app
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.results import build_report
from diffgr2.renames import GONE, KEYS
from diffgr2.rerank.bundle import FORMAT
from diffgr2.rerank.reranker import Reranker
from support.goldens import unpacked
from support.live import Live
from support.measured import META, first, lists_with_hits
from support.names import fields_of, gone, http_names, python_names, recipe_keys, verbs

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    bundle = unpacked(f"format-{FORMAT}", tmp_path_factory.mktemp("served"))
    with Live(Reranker.from_pretrained(bundle)) as server:
        yield server


def requests_of(reranker: Reranker) -> dict[str, tuple[str, Any]]:
    """One of each kind of answer: path and body."""
    ids = reranker.catalogue.raw_ids
    one: dict[str, Any] = {"history": ids[:2], "documents": ids[5:8], "pin": [ids[6]]}
    full = {**one, "return_reasoning": True, "return_documents": True, "strange": 1}
    full["decode"] = {"details": True}
    return {
        "/v1/rerank": ("/v1/rerank", full),
        "/rerank (texts)": ("/rerank", {"query": "a wish", "texts": ids[5:8], "return_text": True}),
        "/v1/rerank/batch": ("/v1/rerank/batch", {"requests": [one, {"documents": []}]}),
        "an error": ("/v1/rerank", {"documents": 5}),
        "an error (texts)": ("/rerank", {"texts": 5}),
        "/v1/models": ("/v1/models", None),
        "/health/live": ("/health/live", None),
        "/health/ready": ("/health/ready", None),
    }


def test_no_http_field_is_gone(live: Live) -> None:
    with live.client() as client:
        names = [*http_names(client, requests_of(live.reranker))]
    assert gone("http", names) == []


def test_no_python_name_is_gone() -> None:
    assert gone("python", python_names()) == []


def test_no_verb_or_option_is_gone() -> None:
    assert gone("cli", verbs(app)) == []


def test_a_recipe_key_that_is_gone_is_understood() -> None:
    """It stands in a table of `renames`, so that recipes that say it are still read."""
    assert {*gone("recipe", recipe_keys())} <= {*KEYS, *GONE}


def test_no_field_of_committed_results_is_gone() -> None:
    """All of a whole run's report, of other results what stands on top and one below."""
    reports = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    assert gone("report", fields_of(reports["demo"])) == []
    names = {
        f"{name}: {'.'.join(field.split('.')[:2])}"
        for name, report in reports.items()
        for field in fields_of(report)
    }
    assert gone("results", names) == []


def test_no_field_of_a_report_is_gone() -> None:
    """Of one over hand-made lists; of a whole run's, the micro recipe's test looks at the same."""
    lists = lists_with_hits([0, 1, 3, -1])
    systems = [SystemOutputs(name, first([0, 1, 0, 0]), 4) for name in ("ar", "cft_opd_rl")]
    assert gone("report-by-hand", fields_of(build_report(META, lists, systems, resamples=99))) == []


def test_a_name_that_goes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFGR2_NAMES", raising=False)
    assert "rerank --model" in gone("cli", [])
    names = [name for name in python_names() if name != "Reranker.rank(candidates)"]
    assert gone("python", names) == ["Reranker.rank(candidates)"]
    call = "Reranker.rank: needs history, candidates"
    names = [name for name in python_names() if name != call]
    assert gone("python", [*names, f"{call}, more"]) == [call]
    assert gone("python", [*names, "Reranker.rank: needs candidates"]) == []  # asks for less
    assert [*fields_of({"a": [{"b": 1}, {"c": []}], "d": {}})] == ["a[].b", "a[].c", "d"]
