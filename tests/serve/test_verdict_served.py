"""What a bundle's verdict means to whoever serves it: refused, forced, exchanged under way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from diffgr2.cli import run
from diffgr2.rerank.bundle import VERDICT, read_verdict
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.keys import Keys
from support import bundles
from support.live import Live, body_of, ids

OPS = "a-key-that-may-reload"
WORSE = ["floor", "scorer"]


def judged(run_dir: Path, to: Path, worse_than: list[str]) -> Path:
    """A copy whose verdict says this."""
    copy = bundles.copy_of(run_dir / "bundle", to)
    (copy / VERDICT).write_text(json.dumps({"lines": ["Said."], "worse_than": worse_than}))
    return bundles.seal(copy)


def test_every_bundle_is_packed_with_its_verdict_in_the_card(run_dir: Path) -> None:
    for name, row in (("bundle", "cft_opd_rl"), ("bundle_ar", "ar")):
        found = read_verdict(run_dir / name)
        assert found is not None
        card = (run_dir / name / "README.md").read_text()
        assert all(line in card for line in found.lines)
        assert found.lines[0].startswith(f"`{row}`: ")
        assert len(found.lines) == 3
        assert ("Worse than its" in card) == bool(found.worse_than)
        whole = json.loads((run_dir / name / VERDICT).read_text())
        assert f"| {row} |" in card
        assert [one["part"] for one in whole["against"]] == ["floor", "rival", "scorer"]
        (index,) = yaml.safe_load(card.split("---\n")[1])["model-index"]
        hit, everybody = index["results"]
        floor = whole["against"][0]
        value = hit["metrics"][0]["value"], hit["dataset"]["args"]["n"]
        assert value == (floor["metrics"]["ndcg@10"]["value"], floor["n"])
        assert everybody["dataset"]["args"] == {"population": "all", "n": whole["n_lists"]}


def test_what_is_worse_is_not_served_and_says_what_to_do(run_dir, tmp_path, capsys) -> None:
    copy = judged(run_dir, tmp_path / "worse", WORSE)
    assert run(["serve", "--port", "0", "-m", str(copy)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {copy}: worse than its floor and its scorer")
    assert err.count("\n") == 1
    assert "--force" in err


def test_one_bad_bundle_of_two_is_enough(run_dir: Path, tmp_path: Path, capsys) -> None:
    good = judged(run_dir, tmp_path / "good", [])
    bad = judged(run_dir, tmp_path / "bad", ["scorer"])
    assert run(["serve", "--port", "0", "-m", f"a={good}", "-m", f"b={bad}"]) == 2
    assert f"{bad}: worse than its scorer" in capsys.readouterr().err


def test_a_worse_bundle_still_ranks_for_who_asks_it_directly(run_dir, tmp_path) -> None:
    reranker = Reranker.from_pretrained(judged(run_dir, tmp_path / "worse", WORSE))
    assert len(reranker.rank(ids(reranker, 1), ids(reranker, 2, 3)).items) == 2


@pytest.mark.parametrize("forced", [False, True])
def test_an_exchange_takes_in_what_is_worse_only_by_force(run_dir, tmp_path, forced) -> None:
    good = judged(run_dir, tmp_path / "good", [])
    bad = judged(run_dir, tmp_path / "bad", ["floor"])
    place = bundles.copy_of(good, tmp_path / "served")
    reranker, keys = Reranker.from_pretrained(place), Keys([f"{OPS} name=ops roles=rank,admin"])
    allowed = {"authorization": f"Bearer {OPS}"}
    with Live(reranker, keys=keys) as server, server.client(headers=allowed) as client:
        server.state.any_worth = forced
        bundles.put_in_place(bad, place)
        answer = client.post("/admin/reload")
        assert answer.status_code == (200 if forced else 409), answer.text
        if not forced:
            assert "worse than its floor" in answer.json()["message"]
        body = body_of(server.reranker, 1)
        assert client.post("/v1/rerank", json=body).status_code == 200
        bundles.put_in_place(good, place)
        assert client.post("/admin/reload").status_code == 200
