"""What can be said of the GPU paths without a GPU: sizes, tokens, the attention they use.

The decoding benchmark runs on the CPU at a tiny shape and must commit what the engine commits.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from diffgr2.config import load_recipe
from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.model.forward import KVCache, LeanQwen3
from diffgr2.model.layout import causal_mask
from diffgr2.model.load import build

NEVER = 2**31  # an end id that no token has
TOKENS, PROMPT = 64, 11


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "gpu_decode.py"
    spec = importlib.util.spec_from_file_location("gpu_decode", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_decode"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lean(bench: ModuleType) -> LeanQwen3:
    return bench.build(bench.SHAPES["tiny"], torch.device("cpu"), torch.float32, 256)


@pytest.fixture(scope="module")
def prompt_BP(bench: ModuleType) -> torch.Tensor:
    ids = np.random.default_rng(0).integers(0, bench.SHAPES["tiny"].mask_id, (3, PROMPT))
    return torch.from_numpy(ids)


def engine(lean: LeanQwen3, prompt_BP: torch.Tensor, mask_id: int, **values: Any) -> list:
    settings = DecodeSettings(
        mask_id=mask_id, end_id=NEVER, origin="response", max_tokens=TOKENS, **values
    )
    return decode(lean, [DecodeRequest(p) for p in prompt_BP.tolist()], settings)


def decoded(bench: ModuleType, lean: LeanQwen3, prompt_BP: torch.Tensor, decoder: str, tpf: int):
    """(the decoding at its end, open positions per row before every step and at the end)."""
    mask_id = bench.SHAPES["tiny"].mask_id
    decoding = bench.Decoding(lean, prompt_BP, TOKENS, mask_id)
    decoding.reset(decoder)
    steps, order = bench.plan(decoding, decoder, tpf, TOKENS)
    left = [(decoding.outputs() == mask_id).sum(1).tolist()]
    for step in order:
        steps[step]()
        left.append((decoding.outputs() == mask_id).sum(1).tolist())
    return decoding, np.array(left)


# ------------------------------------------------------------------------------------ the recipe


def test_the_gpu_recipe_has_50_to_100_million_parameters() -> None:
    recipe = load_recipe("beauty_gpu")
    vocabulary = recipe.prompt.text_vocab + recipe.items.levels * recipe.items.codes + 500
    with torch.device("meta"):
        model = build(recipe.model, vocabulary, recipe.seed)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert 50e6 <= sum(p.numel() for p in model.parameters()) <= 100e6


# --------------------------------------------------------------------------------- the benchmark


def test_ar_steps_give_the_engines_tokens(bench, lean, prompt_BP) -> None:
    decoding, left = decoded(bench, lean, prompt_BP, "ar", 1)
    expected = engine(lean, prompt_BP, decoding.mask_id, decoder="ar")
    assert decoding.outputs().tolist() == [t.tokens_T.tolist() for t in expected]
    assert (np.diff(left, axis=0) == -1).all()


@pytest.mark.parametrize("tpf", [2, 4, 8])
def test_block_steps_commit_exactly_tpf_and_give_the_engines_tokens(
    bench, lean, prompt_BP, tpf
) -> None:
    decoding, left = decoded(bench, lean, prompt_BP, "block", tpf)
    assert (np.diff(left, axis=0) == -tpf).all()
    assert (left[-1] == 0).all()
    expected = engine(
        lean,
        prompt_BP,
        decoding.mask_id,
        decoder="block",
        block_size=bench.WIDTH,
        accept="static",
        per_step=tpf,
    )
    assert decoding.outputs().tolist() == [t.tokens_T.tolist() for t in expected]
    assert {t.nfe for t in expected} == {len(left) - 1}


@pytest.mark.parametrize("tpf", [1, 2, 4, 8])
def test_verify_commits_tpf_a_step_and_begins_as_ar(bench, lean, prompt_BP, tpf) -> None:
    decoding, left = decoded(bench, lean, prompt_BP, "verify", tpf)
    ar, _ = decoded(bench, lean, prompt_BP, "ar", 1)
    assert len(left) - 1 == TOKENS // tpf
    assert (left[-1] == 0).all()
    assert int(decoding.at) == PROMPT - 1 + TOKENS
    # Behind its first wrong draft token a forced check means nothing; up to there it is AR.
    same = TOKENS if tpf == 1 else 1
    assert decoding.outputs()[:, :same].tolist() == ar.outputs()[:, :same].tolist()


def test_a_reset_decoding_gives_the_same_tokens_again(bench, lean, prompt_BP) -> None:
    decoding, _ = decoded(bench, lean, prompt_BP, "block", 4)
    before = decoding.outputs().clone()
    decoding.reset("block")
    assert (decoding.outputs() == decoding.mask_id).all()
    steps, order = bench.plan(decoding, "block", 4, TOKENS)
    for step in order:
        steps[step]()
    assert torch.equal(decoding.outputs(), before)


def test_the_benchmark_writes_what_it_measured(bench, tmp_path: Path, capsys) -> None:
    out = tmp_path / "results" / "gpu_decode.json"
    asked = "--device cpu --shape tiny --batch 1,2 --tpf 2,8 --tokens 32 --prompt 8 --rounds 1"
    bench.main([*asked.split(), "--out", str(out)])
    report = json.loads(out.read_text())
    rows = {(r["decoder"], r["batch"], r["tpf"]): r for r in report["rows"]}
    plans = [("ar", 1), ("block", 2), ("block", 8), ("verify", 2), ("verify", 8)]
    assert set(rows) == {(d, b, t) for d, t in plans for b in (1, 2)}
    shape = bench.SHAPES["tiny"]
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    per_layer = shape.dim * (heads + shape.heads * shape.head_dim + 3 * shape.ffn)
    norms = shape.layers * (2 * shape.dim + 2 * shape.head_dim) + shape.dim
    read = shape.layers * per_layer + norms + shape.vocab * shape.dim
    assert report["weight_bytes"] == 2 * read, "bf16, the embedding table left out"
    assert report["parameters"] == read + shape.vocab * shape.dim
    floor = report["bandwidth_bytes_per_s"] / report["weight_bytes"]
    assert report["floor_tokens_per_s"] == pytest.approx(floor)
    for (_, batch, tpf), row in rows.items():
        assert row["tokens_per_s"] > 0
        assert row["share_of_floor"] == pytest.approx(row["tokens_per_s"] / (floor * tpf * batch))
        assert row["vs_ar"] == pytest.approx(
            row["tokens_per_s"] / rows["ar", batch, 1]["tokens_per_s"]
        )
    assert report["cuda_graphs"] is False
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("--tokens 40", "--tokens: expected a multiple of 32"),
        ("--tpf 3", "--tpf: expected divisors of 16"),
        ("--batch 0", "--batch: invalid numbers value"),
        pytest.param(
            "--device cuda",
            "--device cuda: there is none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_impossible_measurements_are_refused(bench, capsys, asked: str, complaint: str) -> None:
    with pytest.raises(SystemExit):
        bench.read_arguments(["--device", "cpu", *asked.split()])
    assert complaint in capsys.readouterr().err


def test_the_large_shape_is_qwen3_8b(bench) -> None:
    lean = bench.build(bench.SHAPES["qwen3-8b"], torch.device("meta"), torch.bfloat16, 16)
    assert lean.dtype == torch.bfloat16
    assert bench.parameter_count(lean) == 8_190_735_360


# ----------------------------------------------------------------------------------- the attention


def test_folded_attention_equals_grouped_attention(bench, lean, prompt_BP) -> None:
    ids_BT = torch.cat([prompt_BP, prompt_BP.flip(1)], 1)
    length = ids_BT.shape[1]
    given = (
        ids_BT,
        torch.arange(length).expand(len(ids_BT), -1),
        KVCache(lean, len(ids_BT), length),
        0,
        causal_mask(length).expand(len(ids_BT), -1, -1),
        length,
    )
    settings = {"decoder": "block", "accept": "static", "per_step": 4}
    logits_BTV = lean(*given)
    expected = engine(lean, prompt_BP, bench.SHAPES["tiny"].mask_id, **settings)
    lean.folded = True
    try:
        torch.testing.assert_close(lean(*given), logits_BTV, atol=1e-5, rtol=0)
        got = engine(lean, prompt_BP, bench.SHAPES["tiny"].mask_id, **settings)
    finally:
        lean.folded = False
    assert [t.tokens_T.tolist() for t in got] == [t.tokens_T.tolist() for t in expected]
