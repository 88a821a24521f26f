"""Processes of one run: shares of what is decoded, long waits, and one that dies or fails."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffgr2.artifacts import read_json, read_manifest
from diffgr2.train.dist import World, share
from support import shared_texts
from support.crew import ended, launch, script
from support.sharing import COUNTS, TIMEOUT_S

SOON_S = 20.0
"""Within which a process ends whose neighbour has died, on a busy machine."""


def run(mode: str, folder: Path, *words: str, size: int = 2, within_s: float = 100.0) -> Any:
    children = launch([script("sharing"), mode, str(folder), *words], size)
    return ended(children, within_s)


def said(folder: Path, rank: int) -> dict[str, Any]:
    return read_json(folder / f"said-{rank}.json")


@pytest.mark.parametrize("n", [0, 1, 2, 7, 64, 513])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_neighbours_that_cover_all_evenly(n: int, size: int) -> None:
    parts = [share(n, World(rank, size)) for rank in range(size)]
    assert [place for part in parts for place in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.slow  # each process imports all of training
def test_texts_decoded_in_shares_are_those_of_one_process(tmp_path: Path) -> None:
    """Uneven shares, fewer lists than ranks, none at all; weights lent by a sharded model."""
    one = shared_texts.found(COUNTS)
    assert len({tuple(text["tokens"]) for text in one["texts"]["12 by 1"]}) > 6, "draws differ"
    done = run("decoding", tmp_path, size=3)
    assert [code for code, _ in done] == [0, 0, 0], done
    for rank in range(3):
        found = said(tmp_path, rank)
        wanted = [len(share(n, World(rank, 3))) for n in COUNTS for _ in (1, 64)]
        assert found["own"] == wanted
        assert found["texts"].keys() == one["texts"].keys()
        for key, texts in one["texts"].items():
            if key.endswith("by 1"):  # the same arithmetic
                assert found["texts"][key] == texts, key
            for mine, other in zip(found["texts"][key], texts, strict=True):
                assert (mine["tokens"], mine["nfe"]) == (other["tokens"], other["nfe"]), key
                np.testing.assert_allclose(mine["logp"], other["logp"], atol=1e-6)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(1.5 * TIMEOUT_S, marks=pytest.mark.slow),
        pytest.param(60.0, marks=pytest.mark.slow),
    ],
)
def test_a_stage_of_one_process_may_outlast_a_collective(tmp_path: Path, seconds: float) -> None:
    done = run("waiting", tmp_path, str(seconds), within_s=seconds + 100.0)
    assert [code for code, _ in done] == [0, 0], done
    assert [said(tmp_path, rank)["metrics"] for rank in (0, 1)] == [{"by": 0}] * 2
    assert list(read_manifest(tmp_path / "run" / "a", verify=True)["files"]) == ["out.txt"]


@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_dies_ends_the_other_with_a_line(tmp_path: Path, who: int) -> None:
    """The first one holds the store, too."""
    done = run("dying", tmp_path, str(who))
    other = 1 - who
    assert done[who][0] == -9
    assert done[other][0] == 5, done
    found = said(tmp_path, other)
    assert found["seconds"] < SOON_S
    assert re.match(rf"process {who} of 2 is gone: |the first process is gone", found["error"])
    assert "Traceback" not in done[other][1]


@pytest.mark.parametrize(
    ("mode", "who", "codes"),
    [
        ("failing", 1, [3, 2]),
        ("failing-alone", 0, [2, 5]),
        pytest.param("failing", 0, [2, 3], marks=pytest.mark.slow),
        pytest.param("failing-alone", 1, [5, 2], marks=pytest.mark.slow),
    ],
)
def test_an_error_of_one_process_is_told_by_all(
    tmp_path: Path, mode: str, who: int, codes: list[int]
) -> None:
    """In a share, where all were to answer, or anywhere else."""
    done = run(mode, tmp_path, str(who))
    line, kind = f"process {who} of 2: row 7 is no row", "LostError"
    if mode == "failing":
        line = f"{'first process' if who == 0 else 'process 1'}: row 7 is no row"
        kind = "CheckpointError"
    assert said(tmp_path, who) == {"error": "row 7 is no row", "kind": "DataError"}
    assert said(tmp_path, 1 - who) == {"error": line, "kind": kind}
    assert [code for code, _ in done] == codes
    assert not any("Traceback" in text for _, text in done)
