"""Bundles that are broken, changed or hostile: one line, exit code 3, through both verbs.

Half of the cases leave the manifest as it was; the other half seal the bundle again, as somebody
would who changes a bundle by intention or by a faulty tool.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from diffgr2.artifacts import MANIFEST
from diffgr2.cli import run
from diffgr2.data.columnar import pack
from diffgr2.data.store import Dataset
from diffgr2.errors import ArtifactError, CheckpointError
from diffgr2.model.load import open_model
from diffgr2.rerank.bundle import FORMAT, MEND
from diffgr2.rerank.reranker import Reranker
from diffgr2.types import Catalogue, Histories
from support import bundles
from support.bundles import edit_arrays, edit_json, edit_weights
from support.changes import (
    Change,
    add,
    arrays,
    as_directory,
    as_link,
    as_pipe,
    config,
    contract,
    flip,
    in_files,
    in_manifest,
    in_text,
    listed_as,
    note,
    put,
    recipe,
    texts,
    vocabulary,
    weight,
    without,
)
from support.live import ids

SCALES = "calibrate/calibration.json"

UNSEALED: dict[str, Change] = {
    "no manifest": lambda b: (b / MANIFEST).unlink(),
    "an empty manifest": lambda b: (b / MANIFEST).write_text(""),
    "a manifest that is a list": lambda b: (b / MANIFEST).write_text("[]"),
    "a manifest in another encoding": lambda b: (b / MANIFEST).write_text("{}", "utf-16"),
    "a manifest of 100,000 levels": lambda b: (b / MANIFEST).write_text("[" * 100_000),
    "a cut manifest": lambda b: os.truncate(b / MANIFEST, 300),
    "a manifest that is a directory": as_directory(MANIFEST),
    "a manifest that is a pipe": as_pipe(MANIFEST),
    "a manifest that lists nothing": in_manifest(lambda m: m.update(files={})),
    "files that are a list": in_manifest(lambda m: m.update(files=[])),
    "no seal": in_manifest(lambda m: m.pop("seal"), again=False),
    "another seal": in_manifest(lambda m: m.update(seal="0" * 64), again=False),
    "a changed field": in_manifest(lambda m: m.update(recipe="other"), again=False),
    "weights not listed": in_files(lambda f: f.pop("model.safetensors")),
    "config not listed": in_files(lambda f: f.pop("config.json")),
    "histories not listed": in_files(lambda f: f.pop("data/histories.safetensors")),
    "tokenizer not listed": in_files(lambda f: f.pop("tokenizer.json")),
    "an entry twice": in_text(MANIFEST, '"config.json": {', '"config.json": {}, "config.json": {'),
    "one file under two names": listed_as("data//../config.json"),
    "a name with dots": listed_as("./config.json"),
    "a name that leads out": listed_as("../bundle/config.json"),
    "a name that leads out and back": listed_as("data/../config.json"),
    "an absolute name": listed_as("/etc/hostname"),
    "a name with a backslash": listed_as("data\\items.safetensors"),
    "a name with a null": listed_as("config.json\x00"),
    "an empty name": listed_as(""),
    "a name of 10,000 characters": listed_as("x" * 10_000),
    "an entry without a file": listed_as("other.json"),
    "another hash": in_files(lambda f: f["config.json"].update(sha256="0" * 64)),
    "a hash that is a number": in_files(lambda f: f["config.json"].update(sha256=5)),
    "no hash": in_files(lambda f: f["config.json"].pop("sha256")),
    "another size": in_files(lambda f: f["config.json"].update(size=5)),
    "a size that is true": in_files(lambda f: f["config.json"].update(size=True)),
    "a size below 0": in_files(lambda f: f["config.json"].update(size=-1)),
    "an entry that is a text": in_files(lambda f: f.update({"config.json": "whole"})),
    "weights gone": lambda b: (b / "model.safetensors").unlink(),
    "a part gone": lambda b: shutil.rmtree(b / "evidence"),
    "a bit in the weights": flip("model.safetensors"),
    "a bit in the histories": flip("data/histories.safetensors"),
    "a bit in the catalogue": flip("data/items.safetensors"),
    "cut weights": lambda b: os.truncate(b / "model.safetensors", 1000),
    "weights of no byte": lambda b: os.truncate(b / "model.safetensors", 0),
    "weights that are a link": as_link("model.safetensors"),
    "a part that is a link": as_link("items"),
    "a link beside": lambda b: (b / "more").symlink_to("/etc"),
    "config that is a directory": as_directory("config.json"),
    "weights that are a pipe": as_pipe("model.safetensors"),
    "further weights": add("model-00002-of-00002.safetensors"),
    "further settings": add("generation_config.json"),
    "a program": add("modeling_qwen3.py"),
    "further histories": add("data/more.parquet"),
}


EMBEDDING = "model.embed_tokens.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
HISTORIES, INDEX = "data/histories.safetensors", "evidence/index.safetensors"
ITEMS, USERS = "data/items.safetensors", "data/users.safetensors"
NO_ITEMS = Catalogue([], [], [], [], np.empty(0), [])
NOBODY = Histories(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.int64), 0)

SEALED: dict[str, Change] = {
    "one NaN weight": weight(EMBEDDING, lambda t: t.index_fill(0, torch.tensor([3]), math.nan)),
    "one infinite weight": weight(QUERY, lambda t: t.index_fill(0, torch.tensor([0]), math.inf)),
    "a NaN norm": weight("model.norm.weight", lambda t: t * math.nan),
    "a narrower matrix": weight(QUERY, lambda t: t[:, :-1]),
    "fewer embeddings": weight(EMBEDDING, lambda t: t[:-1]),
    "whole numbers as weights": weight(EMBEDDING, lambda t: t.to(torch.int64)),
    "a tensor missing": lambda b: edit_weights(b, lambda t: t.__delitem__(QUERY)),
    "a tensor too many": lambda b: edit_weights(b, lambda t: t.update(other=torch.ones(2))),
    "an index of weights that leads out": lambda b: (b / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "../other.safetensors"}}'
    ),
    "a verdict that is none": add("verdict.json"),
    "a verdict without words": lambda b: (b / "verdict.json").write_text('{"worse_than": []}'),
    "a verdict on a stranger": lambda b: (b / "verdict.json").write_text(
        '{"lines": ["Worse."], "worse_than": ["oracle"]}'
    ),
    "an index of weights that is none": add("model.safetensors.index.json"),
    "weights that are no tensors": lambda b: (b / "model.safetensors").write_text("{}" * 90),
    "a NaN setting": config(rms_norm_eps=math.nan),
    "an infinite setting": config(rope_theta=math.inf),
    "a setting below 0": config(rms_norm_eps=-1.0),
    "a setting that is a text": config(rope_theta="10000"),
    "another width": config(hidden_size=64),
    "a million layers": config(num_hidden_layers=1_000_000),
    "a layer less": config(num_hidden_layers=1),
    "a billion positions": config(max_position_embeddings=10**9),
    "too few positions": config(max_position_embeddings=16),
    "more heads": config(num_attention_heads=4),
    "heads that are a text": config(num_attention_heads="2"),
    "no head": config(num_key_value_heads=0),
    "another family": config(model_type="llama"),
    "another activation": config(hidden_act="gelu"),
    "a larger vocabulary": config(vocab_size=100_000),
    "config that is a list": lambda b: (b / "config.json").write_text("[]"),
    "a contract without blocks": contract(block_size=0),
    "a contract of another mask": contract(mask_token_id=5),
    "a mask outside": contract(mask_token_id=10**9),
    "an unknown alignment": contract(alignment="other"),
    "an unknown contract field": contract(more=1),
    "an older format": note(format=3),
    "a newer format": note(format=FORMAT + 1),
    "the first format": note(format=1),
    "a format beyond all numbers": note(format=10**30),
    "a format below 0": note(format=-1),
    "a format that is true": note(format=True),
    "an unknown field": note(more=1),
    "shoppers of some other kind": note(shoppers="real"),
    "a recipe that is a list": note(recipe=[]),
    "a section missing": lambda b: edit_json(
        b / "diffgr2.json", lambda n: n["recipe"].pop("decode") and None
    ),
    "a NaN threshold": recipe("decode", threshold=math.nan),
    "an infinite temperature": recipe("decode", temperature=math.inf),
    "a threshold that is a text": recipe("decode", threshold="0.5"),
    "a length below 0": recipe("decode", max_tokens=-1),
    "an unknown key": recipe("decode", more=1),
    "another longest list": recipe("candidates", k_max=7),
    "no scale of a decoder": lambda b: edit_json(b / SCALES, lambda s: s.pop("verify") and None),
    "a scale below 0": lambda b: edit_json(b / SCALES, lambda s: s.update(ar=-0.1)),
    "a scale that is a text": lambda b: edit_json(b / SCALES, lambda s: s.update(ar="1")),
    "scales that are a list": lambda b: (b / SCALES).write_text("[]"),
    "other buckets": recipe("evidence", buckets=5),
    "no vocabulary sizes": lambda b: (b / "vocabulary.json").write_text("{}"),
    "more codes than items have": vocabulary(codes=25),
    "another mask": vocabulary(mask_id=1),
    "bases that overlap": lambda b: edit_json(
        b / "vocabulary.json", lambda v: v["bases"].update(sid=0) and None
    ),
    "a tokenizer of nothing": lambda b: (b / "tokenizer.json").write_text("{}"),
    "a tokenizer without our tokens": in_text("tokenizer.json", "<c_1>", "<c_0>"),
    "no items": lambda b: pack(b / "data", Dataset(NOBODY, NO_ITEMS, [], {})),
    "an id less": texts(ITEMS, "raw_id", lambda ids: ids[:-1]),
    "an item twice": texts(ITEMS, "raw_id", lambda ids: ["same"] * len(ids)),
    "items without ids": without(ITEMS, "raw_id"),
    "ids without an end": without(ITEMS, "raw_id_starts"),
    "titles that overlap": arrays(ITEMS, "title_starts", lambda a: a[::-1]),
    "titles that are cut": arrays(ITEMS, "title", lambda a: a[:-1]),
    "titles that are no text": arrays(ITEMS, "title", put(0xFF)),
    "brands that start anywhere": arrays(ITEMS, "brand_starts", lambda a: a.astype(np.float64)),
    "paths of names that are not there": arrays(ITEMS, "path_starts", put(10**6)),
    "prices of fewer items": arrays(ITEMS, "price", lambda a: a[:-1]),
    "a shopper less": texts(USERS, "raw_id", lambda ids: ids[:-1]),
    "a shopper twice": texts(USERS, "raw_id", lambda ids: [*ids[:-1], ids[0]]),
    "no arrays": lambda b: (b / ITEMS).write_text("PAR1"),
    "histories without offsets": without(HISTORIES, "offsets"),
    "an item that is not there": arrays(HISTORIES, "items", put(10**6)),
    "an item below 0": arrays(HISTORIES, "items", put(-1)),
    "offsets that fall": arrays(HISTORIES, "offsets", lambda a: a[::-1]),
    "offsets beyond the end": arrays(HISTORIES, "offsets", put(10**6)),
    "NaN evidence": arrays(INDEX, "value_PV", put(math.nan)),
    "NaN edges": arrays(INDEX, "edges_FB", put(math.nan)),
    "evidence of fewer buyers": arrays(INDEX, "buyers_I", lambda a: a[:-1]),
    "evidence of other pairs": arrays(INDEX, "value_PV", lambda a: a[:, :1]),
    "an infinite decay": lambda b: edit_json(
        b / "evidence/index.json", lambda i: i.update(decay=math.inf)
    ),
    "evidence without fields": lambda b: (b / "evidence/index.json").write_text("[]"),
    "a NaN retriever": lambda b: edit_arrays(
        b / "retriever/model.safetensors", lambda a: put(math.nan)(next(iter(a.values())))
    ),
    "an unknown retriever": lambda b: edit_json(
        b / "retriever/config.json", lambda c: c.update(kind="oracle")
    ),
    "a retriever of other items": lambda b: edit_json(
        b / "retriever/config.json", lambda c: c.update(n_items=7)
    ),
    "codes that collide": arrays("items/codes.safetensors", "codes_IL", lambda a: a * 0),
    "a NaN codebook": arrays("items/quantizer.safetensors", "codebooks_LCD", put(math.nan)),
    "NaN word weights": arrays("items/vectorizer.safetensors", "idf_V", put(math.nan)),
    "fewer word weights": arrays("items/vectorizer.safetensors", "idf_V", lambda a: a[:-1]),
    "words that are a number": lambda b: edit_json(
        b / "items/vectorizer.json", lambda v: v.update(vocabulary=5)
    ),
}


def test_there_are_enough_of_them() -> None:
    assert len(UNSEALED) + len(SEALED) >= 120


MENDS = (MEND, "diffgr2 upgrade", "make it anew: diffgr2 run", "with a newer diffgr2", "runs/NAME/")
"""What a refusal says that helps."""


def refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Through every door: the same one line with what helps, the same exit code; the line."""
    lines = set()
    for verb in (["serve", "--port", "0"], ["rerank", "-c", "a", "-c", "b"]):
        assert run([*verb, "--model", str(bundle)]) == 3, verb
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: "), err
        assert err.count("\n") == 1
        assert "Traceback" not in err
        lines.add(err)
    with pytest.raises((ArtifactError, CheckpointError)) as problem:
        Reranker.from_pretrained(bundle)
    assert {" ".join(f"error: {problem.value}".split())} == {line.rstrip("\n") for line in lines}
    assert sum(mend in str(problem.value) for mend in MENDS) == 1
    return lines.pop()


@pytest.mark.parametrize("change", UNSEALED.values(), ids=UNSEALED)
def test_a_changed_bundle_is_refused(change, run_dir, tmp_path, capsys) -> None:
    bundle = bundles.copy_of(run_dir / "bundle", tmp_path / "bundle")
    change(bundle)
    assert str(bundle) in refused(bundle, capsys)


@pytest.mark.parametrize("change", SEALED.values(), ids=SEALED)
def test_a_bundle_sealed_with_its_fault_is_refused(change, run_dir, tmp_path, capsys) -> None:
    bundle = bundles.copy_of(run_dir / "bundle", tmp_path / "bundle")
    change(bundle)
    assert str(bundle) in refused(bundles.seal(bundle), capsys)


def test_the_same_hands_leave_a_whole_bundle_whole(run_dir: Path, tmp_path: Path) -> None:
    """Else every refusal above might be the copying's own fault."""
    bundle = bundles.copy_of(run_dir / "bundle", tmp_path / "bundle")
    edit_json(bundle / "config.json", lambda values: None)
    edit_arrays(bundle / INDEX, lambda found: None)
    edit_weights(bundle, lambda tensors: None)
    (bundle / ".cache").mkdir()  # other tools' business
    (bundle / ".cache" / "state").write_text("")
    assert Reranker.from_pretrained(bundles.seal(bundle)).k_max == 6


@pytest.mark.parametrize("what", ["nothing", "an empty directory", "a file"])
def test_no_bundle_is_said_at_once(what: str, tmp_path: Path) -> None:
    """Before anything heavy is imported; a process of its own shows it."""
    path = tmp_path / "model"
    if what == "a file":
        path.write_text("")
    elif what == "an empty directory":
        path.mkdir()
    source = "import sys; from diffgr2.cli import run; code = run(sys.argv[1:])\n"
    source += "assert 'torch' not in sys.modules and 'fastapi' not in sys.modules; sys.exit(code)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", source, "serve", "--model", str(path)]
    began = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith(f"error: {path}")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - began < 20  # 2 s on an idle machine; imports alone say the rest


def test_nothing_is_read_again_once_it_is_open(run_dir: Path, tmp_path: Path) -> None:
    bundle = bundles.copy_of(run_dir / "bundle", tmp_path / "bundle")
    reranker = Reranker.from_pretrained(bundle)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(bundle) not in maps.read_text()
    history, candidates = ids(reranker, 1, 2), ids(reranker, 5, 6, 7, 8)
    decode = {"decoder": "ar", "max_tokens": 40}
    before = reranker.rank(history, candidates, decode=decode)
    for path in bundle.rglob("*"):
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))  # in place: a mapping would show it
    assert reranker.rank(history, candidates, decode=decode).raw == before.raw
    shutil.rmtree(bundle)
    assert reranker.rank(history, candidates, decode=decode).raw == before.raw
    fresh = {"decoder": "ar", "max_tokens": 41}  # a setting never asked for before
    assert reranker.rank(history, candidates, decode=fresh).order


def test_files_exchanged_while_they_are_read_make_no_bundle(run_dir, tmp_path, monkeypatch) -> None:
    bundle = bundles.copy_of(run_dir / "bundle", tmp_path / "bundle")
    other = bundles.other_weights(run_dir / "bundle", tmp_path / "other")
    opening = Reranker.__init__

    def slowly(self: Reranker, directory: Path, **given: bool) -> None:
        opening(self, directory, **given)
        bundles.put_in_place(other, bundle)

    with monkeypatch.context() as patch:
        patch.setattr(Reranker, "__init__", slowly)
        with pytest.raises(ArtifactError, match="while it was being opened"):
            Reranker.from_pretrained(bundle)
    Reranker.from_pretrained(bundle)


def test_weights_in_several_files_are_a_bundle_too(run_dir: Path, tmp_path: Path) -> None:
    bundle = bundles.copy_of(run_dir / "bundle", tmp_path / "bundle")
    whole = Reranker.from_pretrained(bundle)
    model = open_model(bundle)
    (bundle / "model.safetensors").unlink()
    kept = (bundle / "config.json").read_text()
    model.save_pretrained(bundle, max_shard_size="40KB")
    (bundle / "config.json").write_text(kept)
    (bundle / "generation_config.json").unlink(missing_ok=True)
    assert len(list(bundle.glob("model-*.safetensors"))) > 1
    split = Reranker.from_pretrained(bundles.seal(bundle))
    history, candidates = ids(whole, 1, 2), ids(whole, 5, 6, 7, 8)
    assert split.rank(history, candidates).raw == whole.rank(history, candidates).raw
    edit_json(
        bundle / "model.safetensors.index.json",
        lambda index: index["weight_map"].update({QUERY: "../bundle/model-00001.safetensors"}),
    )
    with pytest.raises(CheckpointError, match="weight_map"):
        Reranker.from_pretrained(bundles.seal(bundle))


def test_a_mapped_bundle_ranks_alike_and_shares_its_files(run_dir: Path, tmp_path: Path) -> None:
    bundle = bundles.copy_of(run_dir / "bundle", tmp_path / "bundle")
    held, mapped = (Reranker.from_pretrained(bundle, mapped=choice) for choice in (False, True))
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(bundle / INDEX) in maps.read_text()
    assert not mapped.seats.index.pairs.value_PV.flags.writeable
    history, candidates = ids(held, 1, 2), ids(held, 5, 6, 7, 8)
    decode = {"decoder": "ar", "max_tokens": 40}
    results = [one.rank(history, candidates, decode=decode) for one in (held, mapped)]
    assert results[0].raw == results[1].raw
    bundle.rename(tmp_path / "old")  # as an exchange does: what is open goes on
    assert mapped.rank(history, candidates, decode=decode).raw == results[0].raw
