"""The benchmark of peers on a tiny model: whoever is installed takes part, writing our tokens."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import engines
import numpy as np
import ours
import pytest
from contest import BACKENDS, Contest
from machine import Limit, Shape, Work
from peers import RIVALS, measure

from diffgr2.decode.batch import decode
from diffgr2.model.contract import SECTION
from diffgr2.model.load import save
from diffgr2.stages.score import prompts_for
from support import tiny_stages
from support.tiny_corpus import K, corpus

WANTS = {
    "llama.cpp": ("gguf", "xllamacpp"),
    "llama.cpp, Q8_0": ("gguf", "xllamacpp"),
    "ONNX Runtime, plain loop": ("onnx", "onnxruntime"),
    "MiniLM-L6 cross-encoder, ONNX Runtime": ("onnx", "onnxruntime"),
    "LightGBM": ("lightgbm",),
}
COMPILED = "transformers generate, static cache, compiled"  # takes a minute
ENTRIES: dict[str, Any] = {}
for engine, opens in BACKENDS.items():
    ENTRIES |= ours.entries(engine, opens)
ENTRIES |= RIVALS
QUICK = {name: entry for name, entry in ENTRIES.items() if name != COMPILED}
LISTS = 4


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Contest:
    root = tmp_path_factory.mktemp("models")
    # Random weights; other engines want heads of 8 n.
    save(tiny_stages.fresh(head_dim=16), root / "teacher")
    section = tiny_stages.contract_of().model_dump()
    save(tiny_stages.fresh(seed=2, head_dim=16), root / "student", {SECTION: section})
    requests = [corpus().request("validation", row) for row in range(LISTS)]
    return Contest(corpus(), requests, root / "teacher", root / "teacher", root / "student", root)


@pytest.fixture(scope="module")
def found(contest: Contest) -> dict[str, Any]:
    return measure(QUICK, contest, batches=(1, 3), threads=(1,), lists=3, rounds=1)


def rows_of(found: dict[str, Any], names: Any) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if row["name"] in names]


def test_who_is_not_installed_is_left_out_by_name(found: dict[str, Any]) -> None:
    absent = {name for name, wants in WANTS.items() if not all(map(find_spec, wants))}
    assert set(found["left_out"]) == absent
    named = [(row["name"], row["batch"]) for row in found["rows"]]
    present = [name for name in QUICK if name not in absent]
    assert named == [(name, batch) for batch in (1, 3) for name in present]


def test_whoever_writes_the_teachers_text_writes_it_token_by_token(found: dict[str, Any]) -> None:
    rivals = rows_of(found, engines.ENTRIES)
    assert {row["name"] for row in rivals} >= {"transformers generate"}
    for row in rivals:
        same = None if row["name"].endswith("Q8_0") else 1.0
        assert (row["name"], row["same_tokens"]) == (row["name"], same)
        assert (row["tokens"], row["forwards"]) == (K * 3, K * 3)


@pytest.mark.slow
def test_compiled_it_writes_the_same(contest: Contest) -> None:
    entry = {COMPILED: ENTRIES[COMPILED]}
    found = measure(entry, contest, batches=(1,), threads=(1,), lists=2, rounds=1)
    assert [row["same_tokens"] for row in found["rows"]] == [1.0] * (not found["left_out"])


def test_verify_writes_the_students_text_in_fewer_forwards(found: dict[str, Any]) -> None:
    exact = [engine for engine in BACKENDS if engine != "onnx-int8"]
    for row in rows_of(found, [f"verify ({engine})" for engine in exact]):
        assert row["same_tokens"] == 1.0
        assert row["forwards"] < row["tokens"]


def test_every_row_was_timed_and_none_beats_the_machine(found: dict[str, Any]) -> None:
    for row in found["rows"]:
        assert row["ms_per_list"] > 0
        if row["name"] != "LightGBM":
            assert 0 < row["share_of_limit"] < 1


def test_a_rival_that_writes_something_else_shows_it(contest: Contest) -> None:
    way = engines.Generate(contest, 1, 1)
    way.model.lm_head.weight.data.neg_()
    texts = [way.rank([request])[0] for request in contest.requests]
    assert contest.same(way, texts) == 0.0


def test_what_we_ask_of_a_model_is_counted_as_a_plain_loop_is(contest: Contest) -> None:
    """One token a forward: the same positions, the same bytes."""
    length = len(contest.prompts(contest.requests[:1])[0])
    noting = ours.Noting(BACKENDS["torch"](contest.teacher), contest.shape)
    settings = contest.corpus.settings(None, "ar_raw", max_tokens=6)
    asked = prompts_for(contest.corpus, contest.requests[:1], "said")
    tokens = len(decode(noting, asked, settings)[0].tokens_T)
    assert noting.total == contest.shape.written([length], tokens)
    assert noting.total.forwards == tokens


def test_the_work_of_a_forward_by_hand() -> None:
    shape = Shape(layers=2, dim=3, heads=2, kv_heads=1, head_dim=5, ffn=7, vocab=11)
    matrices = 2 * (3 * 10 + 2 * 3 * 5 + 10 * 3 + 3 * 3 * 7)  # q, k and v, o, ffn; two layers
    assert shape.matrices == matrices
    assert shape.bytes == 4 * (matrices + 33)
    work = shape.forward([([4, 5], 1)])
    assert work.flop == 2 * 2 * matrices + 2 * 33 + 4 * (4 + 5) * 2 * 2 * 5
    assert work.bytes == 4 * (matrices + 33 + 2 * 5 * 2 * 5)
    assert shape.forward([([4, 5], 0)]).bytes == work.bytes - 4 * 33
    assert shape.forward([([], 0)]) == Work()


def test_the_share_of_the_limit_is_of_whatever_binds() -> None:
    limit = Limit(threads=1, flop=100.0, bytes=10.0, memory=1.0)
    assert limit.share(Work(flop=50.0, bytes=1.0), 1.0) == pytest.approx(0.5)
    assert limit.share(Work(flop=50.0, bytes=8.0), 2.0) == pytest.approx(0.4)


def test_two_threads_can_do_what_one_could() -> None:
    one, two = Limit(1, flop=10.0, bytes=4.0, memory=2.0), Limit(2, flop=5.0, bytes=6.0, memory=2.0)
    assert two.at_least(one) == Limit(2, flop=10.0, bytes=6.0, memory=2.0)
    assert one.at_least(None) is one


def test_prompts_of_different_lengths_stand_flush_right() -> None:
    ids_BT, pad_B = engines.left_padded([[1, 2, 3], [4]], 3)
    assert ids_BT.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert np.array_equal(pad_B, [0, 2])


def test_a_checkpoint_becomes_a_file_that_llama_cpp_can_read(
    contest: Contest, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    engines.write_gguf(contest.teacher, tmp_path / "model.gguf")
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    model = tiny_stages.fresh(head_dim=16)
    assert len(tensors) == len(list(model.named_parameters()))
    query = model.model.layers[1].self_attn.q_proj.weight.detach().numpy()
    assert np.array_equal(tensors["blk.1.attn_q.weight"], query)
