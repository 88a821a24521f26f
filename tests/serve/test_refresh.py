"""A bundle with new purchases and items: what moved moved truly, what did not read it did not."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffgr2 import Reranker, cli
from diffgr2.artifacts import MANIFEST, list_files, read_json, read_manifest
from diffgr2.rerank.bundle import check
from diffgr2.serve.keys import Keys
from diffgr2.stages import refresh as module
from diffgr2.stages.refresh import News, refresh
from diffgr2.types import MISSING
from support.bundles import copy_of
from support.live import Live

DAY = 86_400
DECODE = {"decoder": "verify"}
FRESH = ("N1", "N2", "N3", "COLD")


def table(path: Path, header: str, rows: Iterable[tuple[Any, ...]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def arrived(reranker: Reranker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Purchases of ten known and five new shoppers; three new items they bought, one nobody did."""
    folder, shop = tmp_path_factory.mktemp("news"), reranker.histories
    last = int(shop.timestamps_N.max()) + 30 * DAY
    ids, users = reranker.catalogue.raw_ids, reranker.raw_users
    rows = []
    for n, user in enumerate([*users[:10], *(f"new-{k}" for k in range(5))]):
        rows += [(user, ids[n], last), (user, FRESH[n % 3], last + DAY), (user, ids[n + 20], last)]
    rows.append(rows[0])  # it stands twice
    at = int(shop.offsets_U1[5])
    rows.append((users[5], ids[shop.items_N[at]], int(shop.timestamps_N[at])))  # known already
    like = reranker.catalogue
    items = [
        (raw, f"Novel {like.titles[n]}", like.brands[n], " > ".join(like.categories[n]))
        for n, raw in enumerate(("N1", "N2", "COLD"))
    ]
    return (
        table(folder / "sales.csv", "user,item,timestamp", rows),
        table(folder / "items.csv", "item,title,brand,categories", items),
    )


@pytest.fixture(scope="module")
def fresh(run_dir: Path, arrived: tuple[Path, Path], tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("fresh") / "bundle"
    before = list_files(run_dir / "bundle")
    made = refresh(run_dir / "bundle", News(*arrived), out=out)
    assert made.bundle == out
    assert list_files(run_dir / "bundle") == before, "the old bundle is whole"
    assert not [path for path in out.parent.iterdir() if path.name not in ("bundle", LOCK)]
    return out


LOCK = ".bundle.refresh.lock"


def test_it_says_what_moved(run_dir: Path, fresh: Path, reranker: Reranker) -> None:
    check(fresh)
    (facts,) = read_manifest(fresh, verify=True)["refreshed"]
    users, items = len(reranker.raw_users), len(reranker.catalogue)
    wanted = {
        "purchases_added": 45, "purchases_known": 2, "users_added": 5, "users_touched": 10,
        "users": users + 5, "items_added": 4, "items_without_text": 1, "items_unbought": 1,
        "catalogue": items + 4, "edges": 0, "lift_users": users,
    }  # fmt: skip
    assert {name: facts[name] for name in wanted} == wanted
    assert facts["pairs_added"] > 0
    assert facts["interactions"]["file"] == "sales.csv"
    assert 0 < facts["moved_share"] < 1
    card = (fresh / "README.md").read_text()
    assert f"; {items + 4:,} items, {users + 5:,} users, {facts['purchases']:,} inter" in card
    unchanged = set(list_files(run_dir / "bundle")) - {
        name for name in list_files(fresh) if name.split("/")[0] in ("data", "evidence")
    }
    moved = {"items/codes.safetensors", "items/items.index.json", "README.md"}
    moved |= {"retriever/model.safetensors", "retriever/config.json"}
    for name in unchanged - moved:
        assert (fresh / name).read_bytes() == (run_dir / "bundle" / name).read_bytes(), name


def test_ids_that_stand_stay_and_new_ones_are_unique(fresh: Path, reranker: Reranker) -> None:
    after = Reranker.from_pretrained(fresh)
    n = len(reranker.catalogue)
    assert np.array_equal(after.sids.codes_IL[:n], reranker.sids.codes_IL)
    assert len(np.unique(after.sids.codes_IL, axis=0)) == n + 4
    assert after.catalogue.raw_ids[:n] == reranker.catalogue.raw_ids
    assert sorted(after.catalogue.raw_ids[n:]) == sorted(FRESH)
    assert after.stored_history("new-0")[0].number is not None


def untouched(before: Reranker, after: Reranker, rng: np.random.Generator) -> list[list[str]]:
    """A history and candidates that nobody bought anew."""
    n = len(before.catalogue)
    same = before.seats.index.pairs.buyers_I == after.seats.index.pairs.buyers_I[:n]
    assert same.sum() > n // 2
    chosen = rng.permutation(np.flatnonzero(same))[:9]
    names = [before.catalogue.raw_ids[item] for item in chosen]
    return [names[:4], names[4:]]


def test_a_request_that_reads_nothing_new_is_answered_as_before(
    fresh: Path, reranker: Reranker
) -> None:
    after, rng = Reranker.from_pretrained(fresh), np.random.default_rng(0)
    for _ in range(8):
        history, candidates = untouched(reranker, after, rng)
        one, two = (
            model.rank(history, candidates, decode=DECODE, return_reasoning=True)
            for model in (reranker, after)
        )
        for name in ("items", "scores", "levels", "reasoning", "decode"):
            assert getattr(one, name) == getattr(two, name)
        (first,), (second,) = one.trajectories, two.trajectories
        assert np.array_equal(first.tokens_T, second.tokens_T)
        tasks = [model.prepare(history, candidates) for model in (reranker, after)]
        prompts = [[request.prompt for _, request in task.pending()] for task in tasks]
        assert prompts[0] == prompts[1], "token for token"


def test_new_items_are_ranked_and_their_evidence_is_counted(
    fresh: Path, reranker: Reranker
) -> None:
    after = Reranker.from_pretrained(fresh)
    ids, number = after.catalogue.raw_ids, {r: i for i, r in enumerate(after.catalogue.raw_ids)}
    buyers = after.seats.index.pairs.buyers_I
    assert [int(buyers[number[raw]]) for raw in FRESH] == [5, 5, 5, 0]
    # Everybody who bought N1 bought it right after one of these.
    history, candidates = [ids[0], ids[20]], ["COLD", "N1", "N3", ids[50]]
    result = after.rank(history, candidates, decode=DECODE, return_reasoning=True)
    assert sorted(result.items) == sorted(candidates)
    assert "Novel" in str(result.reasoning)
    request = after.prepare(history, candidates).whole
    fields = list(after.vocab.spec.fields)
    bucket = {raw: request.buckets_KF[k] for k, raw in enumerate(candidates)}
    assert bucket["N1"][fields.index("copurchase")] > 0
    assert bucket[ids[50]][fields.index("copurchase")] == 0
    assert bucket["COLD"][fields.index("copurchase")] == MISSING, "unknown is not never"
    assert bucket["COLD"][fields.index("text")] != MISSING
    assert bucket["COLD"][fields.index("brand")] != MISSING
    named = after.rank(["Novel " + reranker.catalogue.titles[0], ids[3]], candidates, decode=DECODE)
    assert sorted(named.items) == sorted(candidates), (
        "a new item may stand in a history by its title"
    )


def test_the_same_files_again_change_nothing(
    fresh: Path, arrived: tuple[Path, Path], tmp_path: Path
) -> None:
    before = list_files(fresh)
    again = refresh(fresh, News(*arrived))
    assert again.bundle is None
    assert again.lines == [f"nothing new (47 purchases were known): {fresh} stands as it is"]
    assert list_files(fresh) == before
    copy = refresh(fresh, News(*arrived), out=tmp_path / "copy")
    assert copy.bundle == tmp_path / "copy"
    assert list_files(tmp_path / "copy") == before
    assert len(read_manifest(tmp_path / "copy")["refreshed"]) == 2


def test_in_two_halves_is_as_at_once(
    run_dir: Path, fresh: Path, arrived: tuple[Path, Path], tmp_path: Path
) -> None:
    """Counts do not depend on how the news were cut up; items come first so that numbers agree."""
    header, *rows = arrived[0].read_text().splitlines()
    first = refresh(run_dir / "bundle", News(items=arrived[1]), out=tmp_path / "items")
    assert first.bundle is not None
    for n, part in enumerate((rows[::2], rows[1::2])):
        half = tmp_path / f"half{n}.csv"
        half.write_text("\n".join([header, *part]))
        source = tmp_path / ("items" if n == 0 else "one")
        refresh(source, News(half), out=tmp_path / ("one" if n == 0 else "two"))
    once, twice = Reranker.from_pretrained(fresh), Reranker.from_pretrained(tmp_path / "two")
    history, candidates = once.catalogue.raw_ids[3:8], [*once.catalogue.raw_ids[20:24], "N1", "N2"]
    requests = [
        one.prepare(history, candidates, scores=range(6, 0, -1)).whole for one in (once, twice)
    ]
    assert np.array_equal(requests[0].buckets_KF, requests[1].buckets_KF)
    assert once.histories.lengths_U.sum() == twice.histories.lengths_U.sum()


def test_in_place_changes_places_and_keeps_the_old_one(
    run_dir: Path, arrived: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = copy_of(run_dir / "bundle", tmp_path / "bundle")
    before = list_files(bundle)
    made = refresh(bundle, News(arrived[0]), in_place=True)
    assert made.bundle == bundle
    assert list_files(tmp_path / "bundle.before") == before
    assert Reranker.from_pretrained(bundle).user_number("new-4") > 0
    middle = list_files(bundle)
    refresh(bundle, News(items=arrived[1]), in_place=True)
    assert list_files(tmp_path / "bundle.before") == middle, "one backup is kept"
    assert len(read_manifest(bundle)["refreshed"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle.before", LOCK}


def test_a_running_server_takes_the_new_bundle_on_reload(
    run_dir: Path, arrived: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = copy_of(run_dir / "bundle", tmp_path / "bundle")
    key = "a-key-that-may-do-all"
    headers = {"authorization": f"Bearer {key}"}
    keys = Keys([f"{key} name=ops roles=rank,shoppers,admin"])
    with Live(Reranker.from_pretrained(bundle), keys=keys) as live:
        refresh(bundle, News(*arrived), in_place=True)
        with live.client(headers=headers) as client:
            body = {"user_id": "new-0", "documents": ["N1", "COLD", "P0000003"]}
            body |= {"return_reasoning": True}
            assert client.post("/rerank", json=body).status_code == 422, "not yet"
            assert client.post("/admin/reload").status_code == 200
            answer = client.post("/rerank", json=body)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["results"]) == 3
            assert "Novel" in answer.json()["reasoning"]


def test_in_place_works_where_directories_cannot_change_places(
    run_dir: Path, arrived: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "exchange", lambda one, two: False)
    bundle = copy_of(run_dir / "bundle", tmp_path / "bundle")
    before = list_files(bundle)
    refresh(bundle, News(arrived[0]), in_place=True)
    assert list_files(tmp_path / "bundle.before") == before
    assert Reranker.from_pretrained(bundle).user_number("new-4") > 0


def test_edges_move_only_where_asked(run_dir: Path, arrived, tmp_path: Path) -> None:
    made = refresh(run_dir / "bundle", News(arrived[0]), out=tmp_path / "one", edges=True)
    assert made.facts["edges"] > 0
    assert made.facts["lift_users"] == made.facts["users"]
    assert any(line.startswith("edges      fitted anew") for line in made.lines)
    alone = refresh(run_dir / "bundle", News(), edges=True, out=tmp_path / "two")
    assert alone.facts["purchases_added"] == 0
    before, after = (read_json(tmp_path / n / "evidence/index.json") for n in ("one", "two"))
    assert before["n_users"] == after["n_users"] + 5


REFUSED = [
    ([], 2, "refresh: --interactions, --items, --edges or --keep-last is needed"),
    (["--interactions", "gone.csv"], 2, "gone.csv: no such file"),
    (["--items", "gone.csv"], 2, "gone.csv: no such file"),
    (
        ["--edges", "--out", "x", "--in-place"],
        2,
        "refresh: --out and --in-place exclude each other",
    ),
    (["--edges", "--out", "."], 2, ".: stands already (give --out another name, or --in-place)"),
    (["--edges", "--out", "no/where"], 2, "no: no such directory"),
    (["--items", "i.csv", "--item-column", "item"], 2, "--item-column item: expected word=column"),
    (
        ["--interactions", "s.csv", "--column", "user=a", "--column", "user=b"],
        *(2, "--column user=b: user stands twice"),
    ),
    (["--interactions", "untimed.csv"], 2, "interactions: timestamp is missing"),
    (
        ["--interactions", "other.csv"],
        2,
        "other.csv: --column user=…: no column 'user' (it has:",
    ),
    (["--items", "other.csv"], 2, "other.csv: --item-column item=…: no column 'item' (it has:"),
    (
        ["--items", "other.csv", "--item-column", "item=sku"],
        *(2, "other.csv: --item-column item=…: no column 'sku' (it has:"),
    ),
    (["--interactions", "bad.csv"], 2, "bad.csv: 1 of 2 lines are malformed (50.0%"),
]


@pytest.mark.parametrize(("options", "code", "line"), REFUSED)
def test_what_is_refused_is_one_line_and_leaves_nothing(
    options: list[str],
    code: int,
    line: str,
    run_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "untimed.csv", "user,item", [("a", "b")])
    table(tmp_path / "other.csv", "who,what", [("a", "b")])
    table(tmp_path / "bad.csv", "user,item,timestamp", [("a", "b", 1), ("a", "b", "soon")])
    there = {*tmp_path.iterdir()}
    target = [] if {"--out", "--in-place"} & {*options} else ["--out", "new"]
    assert cli.run(["refresh", str(run_dir / "bundle"), *options, *target]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1
    assert {path for path in tmp_path.iterdir() if path.suffix != ".lock"} == there


def test_a_new_bundle_within_the_old_one_is_refused(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copy_of(run_dir / "bundle", tmp_path / "bundle")
    assert cli.run(["refresh", str(bundle), "--edges", "--out", str(bundle / "new")]) == 2
    assert capsys.readouterr().err == f"error: {bundle / 'new'}: lies within the old bundle\n"
    check(bundle)


def test_a_broken_bundle_is_refused(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copy_of(run_dir / "bundle", tmp_path / "bundle")
    (bundle / "data" / "users.safetensors").write_bytes(b"")
    assert cli.run(["refresh", str(bundle), "--edges"]) == 3
    assert "size differs from the manifest" in capsys.readouterr().err
    assert cli.run(["refresh", str(tmp_path / "nowhere"), "--edges"]) == 3
    assert "no such directory" in capsys.readouterr().err


def test_the_verb_prints_what_moved(
    run_dir: Path, arrived, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copy_of(run_dir / "bundle", tmp_path / "bundle")
    files = ["--interactions", str(arrived[0]), "--items", str(arrived[1])]
    assert cli.run(["refresh", str(bundle), *files]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert (err, lines[-1]) == ("", f"new        {tmp_path / 'bundle-refreshed'}")
    assert lines[0] == "purchases  45 new, 2 known already (dropped), now " + lines[0].split()[-1]
    assert [line.split()[0] for line in lines] == [
        *("purchases", "users", "items", "counts", "retriever", "evidence", "edges", "new")
    ]
    assert json.loads((tmp_path / "bundle-refreshed" / MANIFEST).read_text())["refreshed"]
    assert cli.run(["refresh", str(bundle), *files]) == 2
    assert "stands already" in capsys.readouterr().err
