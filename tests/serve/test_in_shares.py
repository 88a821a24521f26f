"""`rerank --engine`: every row once, whoever is killed; what is bad costs itself and is named."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from diffgr2.bulk.job import Share, opened
from diffgr2.bulk.places import Place
from diffgr2.bulk.rank_all import rank_all
from diffgr2.bulk.sources import Reader, survey
from diffgr2.bulk.work import CAREFUL_FROM, DEADLY_FROM, Worker
from diffgr2.cli import run
from diffgr2.errors import ConfigError, DataError
from diffgr2.rerank.reranker import Reranker

SOURCE = Path(__file__).parents[2] / "src"
BAD = 7  # the row whose list is empty


def lists_of(reranker: Reranker, n: int) -> list[dict]:
    raw = reranker.catalogue.raw_ids
    some = len(raw) - 60
    rows = [
        {"day": i, "history": raw[i % some :][:2], "candidates": raw[30 + i % some :][:4]}
        for i in range(n)
    ]
    rows[BAD]["candidates"] = []
    return rows


TYPES = {"day": pl.Int64, "history": pl.List(pl.String), "candidates": pl.List(pl.String)}


@pytest.fixture(scope="module")
def lists(reranker: Reranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "lists.parquet"
    pl.DataFrame(lists_of(reranker, 40), TYPES).write_parquet(path)
    return path


def parts(output: Path) -> list[dict]:
    rows = [
        row
        for path in sorted(output.glob("part-*"))
        for row in (
            pl.read_parquet(path).to_dicts()
            if path.suffix == ".parquet"
            else map(json.loads, path.read_text().splitlines())
        )
    ]
    return sorted(rows, key=lambda row: row["row"])


def aside(output: Path) -> list[dict]:
    return list(map(json.loads, (output / "_set_aside.jsonl").read_text().splitlines()))


def check_whole(output: Path, n: int) -> None:
    rows = [row["row"] for row in parts(output)]
    named = [one["row"] for one in aside(output)]
    assert Counter([*rows, *named]) == Counter(range(n))
    assert named == [BAD]


def test_rows_are_ranked_as_alone_and_the_bad_one_is_named(
    run_dir: Path, reranker: Reranker, lists: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "ranked"
    line = ["rerank", "-m", run_dir / "bundle", "--engine", "local", "-i", lists, "-o", output]
    assert run([*map(str, line), "--workers", "2"]) == 6
    said = capsys.readouterr()
    assert f"{output}: 39 rankings, 1 rows set aside" in said.out
    assert f"row {BAD} is set aside: candidates: the list is empty" in said.err
    check_whole(output, 40)
    given = lists_of(reranker, 40)
    for row in parts(output):
        wanted = reranker.rank(given[row["row"]]["history"], given[row["row"]]["candidates"])
        assert row["items"] == list(wanted.items)
        assert row["scores"] == pytest.approx(wanted.scores)
        assert row["day"] == row["row"]
    whole = {path.name: path.read_bytes() for path in output.glob("part-*")}
    assert run([*map(str, line)]) == 6  # again: all of it stands
    assert {path.name: path.read_bytes() for path in output.glob("part-*")} == whole


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv"])
def test_other_sources_give_the_same_rankings(
    kind: str, run_dir: Path, reranker: Reranker, lists: Path, tmp_path: Path
) -> None:
    import gzip

    rows = lists_of(reranker, 12)
    folder = tmp_path / "lists"
    folder.mkdir()
    for number, part in enumerate((rows[:5], rows[5:])):
        if kind == "csv":
            lines = ["day,history,candidates"]
            for row in part:
                past = "|".join(row["history"])
                lines.append(f'{row["day"]},{past},"{",".join(row["candidates"]) or "[]"}"')
        else:
            lines = [json.dumps({k: row[k] for k in ("history", "candidates")}) for row in part]
        text = "".join(line + "\n" for line in lines).encode()
        (folder / f"{number}.{kind}").write_bytes(gzip.compress(text) if "gz" in kind else text)
    (folder / "_note.txt").write_text("not a row")
    output = tmp_path / "ranked"
    got = rank_all(run_dir / "bundle", folder, output, workers=1, per_share=4)
    assert (got.rows, got.ranked, got.set_aside) == (12, 11, 1)
    check_whole(output, 12)
    assert aside(output)[0]["file"] == f"1.{kind}"
    assert aside(output)[0]["at"] == BAD - 5
    for row in parts(output):
        given = rows[row["row"]]
        assert row["items"] == list(reranker.rank(given["history"], given["candidates"]).items)


def test_a_reader_gives_any_range_of_any_blocks(tmp_path: Path) -> None:
    frame = pl.DataFrame({"candidates": [[str(i)] for i in range(50)], "history": [[]] * 50})
    frame[:20].write_parquet(tmp_path / "a.parquet", row_group_size=7)
    frame[20:].write_parquet(tmp_path / "b.parquet")
    place = Place(str(tmp_path))
    reader = Reader(place, *survey(place))
    draw = random.Random(1)
    for _ in range(30):
        first = draw.randrange(50)
        count = draw.randrange(1, 51 - first)
        rows = [row["candidates"] for row in reader.rows(first, count)]  # type: ignore[index]
        assert rows == [[str(i)] for i in range(first, first + count)]


def test_another_input_model_or_option_is_refused_by_name(
    run_dir: Path, reranker: Reranker, lists: Path, tmp_path: Path
) -> None:
    output, model = tmp_path / "ranked", run_dir / "bundle"
    rank_all(model, lists, output, workers=1)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    other = tmp_path / "other.parquet"
    pl.read_parquet(lists).with_columns(pl.col("day") + 1).write_parquet(other)
    changed = tmp_path / "bundle"
    changed.mkdir()
    for path in model.iterdir():
        (changed / path.name).symlink_to(path)
    (changed / "manifest.json").unlink()
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["files"]["diffgr2.json"]["sha256"] = "0" * 64
    (changed / "manifest.json").write_text(json.dumps(manifest))
    for given, source, more, told in (
        (model, other, {}, "rankings of another input"),
        (changed, lists, {}, "rankings by another model"),
        (model, lists, {"top_k": 2}, "was begun with --top-k None, not 2"),
        (model, lists, {"form": "jsonl"}, "was begun with --format parquet, not jsonl"),
    ):
        with pytest.raises(ConfigError, match=told):
            rank_all(given, source, output, workers=1, **more)
    stands = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert stands == before
    with pytest.raises(DataError, match="no such file or folder"):
        rank_all(model, tmp_path / "none.parquet", tmp_path / "new", workers=1)


def test_a_batch_that_fails_costs_the_row_that_it_fails_of(
    run_dir: Path, lists: Path, tmp_path: Path, monkeypatch
) -> None:
    output = tmp_path / "ranked"
    rank_all(run_dir / "bundle", lists, output, workers=1, per_share=40)
    share = Share(0, 40)
    whole = (output / opened(Place(str(output))).part(share)).read_bytes()
    worker = Worker(str(output), "here")
    assert worker.do(share)["ranked"] == 39
    assert (output / f"part-{share.name}.parquet").read_bytes() == whole
    run_all, asked = worker.reranker.run, []

    def fails(tasks, *, batch: int) -> None:
        asked.append(len(tasks))
        if any(task.query.named[0] == poison for task in tasks):
            raise RuntimeError("a forward failed")
        run_all(tasks, batch=batch)

    poison = lists_of(worker.reranker, 40)[20]["candidates"][0]
    monkeypatch.setattr(worker.reranker, "run", fails)
    entry = worker.do(share)
    assert [one["row"] for one in entry["set_aside"]] == [BAD, 20]
    assert entry["set_aside"][1]["reason"] == "RuntimeError: a forward failed"
    assert max(asked) > 1


def test_a_row_that_workers_die_of_is_set_aside_in_the_end(
    run_dir: Path, lists: Path, tmp_path: Path, monkeypatch
) -> None:
    output = tmp_path / "ranked"
    rank_all(run_dir / "bundle", lists, output, workers=1, per_share=40)
    deaths = 0
    for _ in range(CAREFUL_FROM + DEADLY_FROM + 1):
        worker = Worker(str(output), "here")
        good, poison = worker.reranker.prepare, lists_of(worker.reranker, 40)[11]["candidates"]

        def deadly(history, candidates, _good=good, _poison=poison, **more):
            if candidates == _poison:
                raise SystemExit  # nothing is caught of it, as of a kill
            return _good(history, candidates, **more)

        monkeypatch.setattr(worker.reranker, "prepare", deadly)
        try:
            entry = worker.do(Share(0, 40))
        except SystemExit:
            deaths += 1
    assert deaths == CAREFUL_FROM + DEADLY_FROM
    assert [one["row"] for one in entry["set_aside"]] == [BAD, 11]
    assert entry["ranked"] == 38


def test_workers_that_die_soon_after_their_beginning_cost_no_row(
    run_dir: Path, lists: Path, tmp_path: Path, monkeypatch
) -> None:
    output = tmp_path / "ranked"
    rank_all(run_dir / "bundle", lists, output, workers=1, per_share=40)
    worker = Worker(str(output), "here")
    whole = worker.reranker.prepare

    def killed(*_: object, **__: object) -> None:
        raise SystemExit

    for _ in range(CAREFUL_FROM + 3 * DEADLY_FROM):
        monkeypatch.setattr(worker.reranker, "prepare", killed)
        with pytest.raises(SystemExit):
            worker.do(Share(0, 40))
    monkeypatch.setattr(worker.reranker, "prepare", whole)
    assert [one["row"] for one in worker.do(Share(0, 40))["set_aside"]] == [BAD]


# ------------------------------------------------------------------------------------- kills


def command(bundle: Path, lists: Path, output: Path, *more: str) -> subprocess.Popen:
    line = [sys.executable, "-m", "diffgr2.cli", "rerank", "-m", bundle, "-i", lists, "-o", output]
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    given = [*map(str, line), "--workers", "2", *more]
    return subprocess.Popen(given, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(text) for text in found.read_text().split()] if found.exists() else []


@pytest.mark.slow
def test_twenty_kills_of_workers_and_driver_lose_and_double_nothing(
    run_dir: Path, reranker: Reranker, tmp_path: Path
) -> None:
    n, draw = 2_000, random.Random(7)
    lists, output = tmp_path / "lists.parquet", tmp_path / "ranked"
    pl.DataFrame(lists_of(reranker, n), TYPES).write_parquet(lists)
    kills = drivers = 0
    while True:
        driver = command(run_dir / "bundle", lists, output, "--engine", "local")
        while driver.poll() is None and kills < 20:
            before = len(list((output / "_ledger").glob("*.json")))
            end = time.monotonic() + 30
            while (  # until something more stands, so that the work goes on between kills
                driver.poll() is None
                and time.monotonic() < end
                and len(list((output / "_ledger").glob("*.json"))) <= before
            ):
                time.sleep(0.02)
            hands = children(driver.pid)
            if driver.poll() is not None or not hands:
                continue
            kills += 1
            if draw.random() < 0.3:
                drivers += 1
                driver.kill()
                driver.wait()
                # Its workers end with the shares that they have.
                break
            os.kill(draw.choice(hands), signal.SIGKILL)
        else:
            out, _ = driver.communicate(timeout=600)
            if driver.returncode == 6:
                break
            raise AssertionError(out)
    assert drivers
    check_whole(output, n)
    assert f"{n - 1} rankings, 1 rows set aside" in out.decode()
