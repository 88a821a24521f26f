"""The bundle that ships: what packing keeps, and what ranks where nothing is named."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import demo_bundle
import numpy as np
import pytest

from diffgr2.artifacts import MANIFEST, read_json, write_json
from diffgr2.cli import run
from diffgr2.cli.serve import bundles_of
from diffgr2.cli.unnamed import SAID
from diffgr2.errors import ArtifactError
from diffgr2.rerank import shipped
from diffgr2.rerank.bundle import check
from diffgr2.rerank.example import example
from diffgr2.rerank.reranker import Reranker
from support.live import Live

LISTS = 60


def state(directory: Path) -> dict[str, tuple[int, int]]:
    """Every path with its size and time."""
    paths = [directory, *sorted(directory.rglob("*"))]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in paths}


@pytest.fixture(scope="module")
def source(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory as the tool wants it."""
    root = tmp_path_factory.mktemp("run")
    (root / "bundle").symlink_to(run_dir / "bundle")
    write_json(root / "run.json", {"command": "diffgr2 run micro-shop", "recipe": {"seed": 0}})
    return root


@pytest.fixture(scope="module")
def packed(source: Path) -> Path:
    """The packed bundle, where nobody can write."""
    out = source / "demo"
    demo_bundle.pack(source, out, LISTS)
    for path in (*out.rglob("*"), out):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return out


@pytest.fixture(scope="module")
def small(packed: Path) -> Reranker:
    return Reranker.from_pretrained(packed)


@pytest.fixture
def ships(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shipped, "SHIPPED", packed)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    return packed


# ----------------------------------------------------------------------------------- packing


def test_fewer_bits_are_the_nearest_of_their_length() -> None:
    values = np.random.default_rng(0).normal(size=5_000).astype(np.float32)
    kept = demo_bundle.kept(values, 8)
    assert not (kept.view(np.uint32) & 0x7FFF).any()
    assert (np.abs(kept - values) <= np.abs(values) * 2.0**-9).all()
    assert (demo_bundle.kept(kept, 8) == kept).all()


def test_a_packed_bundle_is_a_bundle_and_says_what_packing_did(source: Path, packed: Path) -> None:
    check(packed)
    told = read_json(packed / MANIFEST)[shipped.PACKED]
    assert told["lists"] == LISTS
    assert told["same"] >= 0.9 * LISTS
    assert told["seed"] == 0
    assert told["bytes_in_a_wheel"] < 0.6 * demo_bundle.in_a_wheel(source / "bundle")
    text = (packed / "README.md").read_text(encoding="utf-8")
    assert f"Of {LISTS} lists {told['same']} rank as before" in text
    assert "`diffgr2 run micro-shop`, seed 0" in text
    assert "## Verdict" in text


def test_the_longest_list_still_has_room_under_every_decoder(
    reranker: Reranker, small: Reranker
) -> None:
    assert small.model.max_positions < reranker.model.max_positions
    raw = small.catalogue.raw_ids
    for decoder in small.decoders:
        for answer in small.answers:
            ways = {"decoder": decoder, "answer": answer}
            made = small.rank(raw[:20], raw[30 : 30 + 3 * small.k_max], decode=ways)
            assert sorted(made.items) == sorted(raw[30 : 30 + 3 * small.k_max])


def test_what_is_too_large_for_the_wheel_is_not_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(demo_bundle, "MOST", 1_000)
    assert demo_bundle.main([str(source), "--out", str(tmp_path / "demo")]) == 3
    assert "bytes in a wheel, over 1,000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- nothing is named


def test_no_request_is_an_example_with_its_reasons(ships: Path, small: Reranker, capsys) -> None:
    before = state(ships)
    assert run(["rerank"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == SAID
    assert err.splitlines()[1].startswith("no request given, so an example: shopper ")
    assert "Bought next, which the model is not told" in err
    arguments = example(small).arguments
    titles = [small.names.title(i) for i in small.names.resolve(arguments["candidates"], "x")]
    assert all(title.split()[0] in out for title in titles)
    assert "forward" in out
    told = small.rank(**arguments, return_reasoning=True)
    assert told.reasoning
    assert " ".join(told.reasoning.split())[:60] in " ".join(out.split())
    assert state(ships) == before, "nothing is written where it lies"


def test_an_example_hides_the_last_purchase(small: Reranker) -> None:
    found = example(small)
    stored = small.stored_history(found.arguments["user"])
    bought = [small.catalogue.raw_ids[i.number] for i in stored if i.number is not None]
    assert [*found.arguments["history"], found.next] == bought
    assert not {*found.arguments["candidates"]} & {*found.arguments["history"]}
    assert found == example(small)


def test_a_request_without_a_model_is_ranked_by_the_shipped_one(
    ships: Path, small: Reranker, capsys
) -> None:
    raw = small.catalogue.raw_ids
    asked = ["-H", raw[0], *(o for item in raw[30:34] for o in ("-c", item))]
    assert run(["rerank", *asked, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == f"{SAID}\n"
    assert json.loads(out)["items"] == list(small.rank(raw[:1], raw[30:34]).items)


def test_the_name_means_the_shipped_one_unless_a_directory_has_it(
    ships: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    assert Reranker.from_pretrained("demo").directory == ships
    assert bundles_of(["shop=demo"]) == [("shop", ships)]
    assert capsys.readouterr() == ("", ""), "who names it knows"
    assert bundles_of([]) == [("", ships)]
    assert capsys.readouterr().err == f"{SAID}\n"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(run_dir / "bundle")
    assert shipped.bundle_of("demo") == Path("demo")


def test_a_copy_that_ships_none_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "none")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    told = "error: demo: this copy ships no bundle (name one, or `make demo-bundle`)\n"
    for verb in (["rerank", "-c", "a"], ["serve", "--port", "0"], ["rerank", "-m", "demo"]):
        assert run(verb) == 3
        assert capsys.readouterr() == ("", told), verb
    with pytest.raises(ArtifactError, match="ships no bundle"):
        Reranker.from_pretrained("demo")


def test_it_is_served_with_its_page_and_nothing_is_written(ships: Path, small: Reranker) -> None:
    before = state(ships)
    arguments = example(small).arguments
    with Live(small) as live, live.client() as client:
        assert client.get("/").status_code == 200
        assert client.get("/page/shoppers").json()["shoppers"]
        body = {"history": arguments["history"], "documents": arguments["candidates"]}
        assert client.post("/v1/rerank", json=body).status_code == 200
    assert state(ships) == before


# ------------------------------------------------------------------- what it cannot be used for


def test_it_is_refreshed_to_another_place_only(ships: Path, tmp_path: Path, capsys) -> None:
    before = state(ships)
    (tmp_path / "sales.csv").write_text("user,item,timestamp\nsomebody,novel,2000000000\n")
    files = ["--interactions", str(tmp_path / "sales.csv")]
    for more in ([], ["--in-place"]):
        assert run(["refresh", "demo", *files, *more]) == 2
        told = "ships with the package and stays as it is (give --out DIR)\n"
        assert capsys.readouterr().err == f"error: {ships}: {told}"
    assert run(["refresh", "demo", *files, "--out", str(tmp_path / "mine")]) == 0
    assert "novel" in Reranker.from_pretrained(tmp_path / "mine").catalogue.raw_ids
    assert state(ships) == before


def test_no_training_starts_from_it(ships: Path, tmp_path: Path, capsys) -> None:
    runs = tmp_path / "runs"
    assert run(["run", "micro", "--from", "demo", "--runs", str(runs)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {ships}: packed for ranking alone")
    assert told.count("\n") == 1
    assert not runs.exists()
