"""Bundles of every format that ever landed, and what the versions that packed them answered.

`tools/golden.py` makes them: each was trained, packed and asked by the source of its own time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from diffgr2.artifacts import read_json
from diffgr2.cli import run
from diffgr2.errors import ArtifactError
from diffgr2.rerank.bundle import FORMAT, NOTE, UPGRADED
from diffgr2.rerank.parts import check_config
from diffgr2.rerank.reranker import Reranker
from diffgr2.stages.upgrade import ROWS, grow, upgrade
from support.goldens import ANSWERED, GOLDEN, NAMES, answers, unpacked

LARGEST = 300_000  # bytes of an archive


def test_there_is_a_golden_bundle_of_every_format() -> None:
    formats = {int(name.split("-")[1]) for name in NAMES}
    assert formats == set(range(1, FORMAT + 1))
    assert {int(name.split("-")[1]) for name in ANSWERED} == {*UPGRADED, FORMAT}
    assert all((GOLDEN / f"{name}.tar.xz").stat().st_size <= LARGEST for name in NAMES)


@pytest.mark.parametrize("name", ANSWERED)
def test_it_ranks_as_the_version_that_packed_it(name: str, tmp_path: Path) -> None:
    bundle = unpacked(name, tmp_path)
    if name != f"format-{FORMAT}":
        with pytest.raises(ArtifactError, match="diffgr2 upgrade"):
            Reranker.from_pretrained(bundle)
        before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
        bundle, old = upgrade(bundle), bundle
        assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
        assert read_json(bundle / NOTE)["format"] == FORMAT
    reranker = Reranker.from_pretrained(bundle)
    for then in answers(name):
        now = reranker.rank(**then["request"])
        assert list(now.order) == then["order"]
        assert now.scores == pytest.approx(then["scores"], abs=1e-3)
        assert now.levels == pytest.approx(then["levels"], abs=1e-2)


def test_the_answers_are_no_matter_of_course() -> None:
    """Lists that keep their order would hold under any weights."""
    for name in ANSWERED:
        moved = sum(one["order"] != sorted(one["order"]) for one in answers(name))
        assert moved >= 3, name


def test_the_first_format_is_named_with_what_to_do(tmp_path: Path, capsys) -> None:
    bundle = unpacked("format-1", tmp_path)
    for verb in (
        ["serve", "--port", "0", "--model"],
        ["rerank", "-c", "a", "--model"],
        ["upgrade"],
    ):
        assert run([*verb, str(bundle)]) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert err == (
            f"error: {bundle / NOTE}: a bundle of format 1, this version opens format {FORMAT} "
            "(nothing converts it; make it anew: diffgr2 run micro --goal bundle)\n"
        )


def test_an_upgrade_is_refused_where_it_would_do_harm(tmp_path: Path, capsys) -> None:
    bundle = unpacked(f"format-{UPGRADED[-1]}", tmp_path)
    for out, told in ((tmp_path, "stands already"), (bundle / "in", "lies within the old bundle")):
        assert run(["upgrade", str(bundle), "--out", str(out)]) == 2
        assert told in capsys.readouterr().err
    (bundle / "config.json").write_text("{}")
    assert run(["upgrade", str(bundle)]) == 3
    assert f"{bundle / 'config.json'}: size differs" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_a_bundle_of_this_format_needs_no_upgrade(tmp_path: Path, capsys) -> None:
    bundle = unpacked(f"format-{FORMAT}", tmp_path)
    assert run(["upgrade", str(bundle)]) == 3
    assert f"a bundle of format {FORMAT} already" in capsys.readouterr().err


def test_rows_for_more_tokens_are_like_the_masks(tmp_path: Path) -> None:
    bundle = unpacked(f"format-{FORMAT}", tmp_path)
    (known,) = (load_file(path) for path in bundle.glob("*.safetensors"))
    size, mask_id = read_json(bundle / "config.json")["vocab_size"], 300
    grow(bundle, size, mask_id)
    assert read_json(bundle / "config.json")["vocab_size"] == size
    grow(bundle, size + 1, mask_id)
    check_config(bundle)  # the sizes are those of the weights
    (grown,) = (load_file(path) for path in bundle.glob("*.safetensors"))
    assert grown.keys() == known.keys()
    for name, tensor in known.items():
        assert (grown[name][: len(tensor)] == tensor).all()
        assert (grown[name][len(tensor) :] == tensor[mask_id : mask_id + 1]).all()
    assert len(grown["model.embed_tokens.weight"]) == size + ROWS
