"""The README's picture: values of one file, times of another, refusals in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from readme_picture import main, picture_rows

from diffgr2.artifacts import write_json


def rows(names: list[str], **more: Any) -> dict[str, Any]:
    values = {"r@1": 0.3, "ndcg@3": 0.4}
    ci = {"r@1": [0.28, 0.32], "ndcg@3": [0.38, 0.42]}
    made = [{"name": n, "population": "hit", "n": 9, "metrics": values, "ci": ci} for n in names]
    return {"rows": [{**row, **more} for row in made]}


TIMED = {"ms_per_list": 5.0, "low_ms": 4.0, "high_ms": 7.0}
POOLED = {"r@1": {"mean": 0.5, "sd": 0.01}, "ndcg@3": {"mean": 0.6, "sd": None}}


def test_values_come_from_one_file_and_times_from_the_other() -> None:
    quality = rows(["floor", "ar", "tutor"], metrics=POOLED)
    found = {r["name"]: r for r in picture_rows(quality, rows(["ar", "verify"], **TIMED))}
    assert set(found) == {"floor", "ar", "tutor"}
    assert found["ar"]["metrics"] == {"r@1": 0.5, "ndcg@3": 0.6}
    assert (found["ar"]["ms_per_list"], found["ar"]["high_ms"]) == (5.0, 7.0)
    assert "ms_per_list" not in found["tutor"]


def test_a_picture_is_drawn_and_drawn_alike(tmp_path: Path) -> None:
    names = ["floor", "evidence", "tutor", "ar", "cft_opd_rl", "verify", "naive"]
    write_json(tmp_path / "q.json", rows(names, metrics=POOLED))
    write_json(tmp_path / "t.json", rows(names[1:], **TIMED))
    for name in ("a", "b"):
        files = [str(tmp_path / file) for file in ("q.json", "t.json", f"{name}.png")]
        assert main(files) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_timed_is_no_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "q.json", rows(["ar"]))
    write_json(tmp_path / "no.json", {"rows": [{"population": "hit"}]})
    out = str(tmp_path / "x.png")
    assert main([str(tmp_path / "q.json"), str(tmp_path / "q.json"), out]) != 0
    assert "no row of both files was timed" in capsys.readouterr().err
    assert main([str(tmp_path / "no.json"), str(tmp_path / "q.json"), out]) != 0
    assert "not reports" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
