"""The GPU benchmark on a tiny shape without a GPU: its rows, its tokens per forward, its texts.

Contract: what it drives is the decoders' way: texts equal `decode`'s. Not here: any figure of time.
"""

from __future__ import annotations

import json
from pathlib import Path

import gpu
import pytest

from diffgr2.decode.batch import decode
from diffgr2.errors import ConfigError

TINY = ["--device", "cpu", "--shapes", "tiny", "--prompt", "24", "--written", "16", "--block", "8"]
LOAD = gpu.Load(batch=3, prompt=24, written=16, block=8)


def test_all_rows_are_there_and_keep_what_was_asked(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    gpu.main([*TINY, "--batches", "1", "3", "--rounds", "1", "--out", str(out)])
    told = json.loads(out.read_text(encoding="utf-8"))
    plans = [("ar", 1), ("ar_eager", 1)]
    plans += [(how, tpf) for how in ("block", "verify") for tpf in (2, 4, 8)]
    found = {(r["batch"], r["decoder"], r["tpf_asked"]): r for r in told["rows"]}
    assert set(found) == {(batch, *plan) for batch in (1, 3) for plan in plans}
    assert len(found) == len(told["rows"])
    for (_, _, tpf), row in found.items():
        assert row["tokens_per_forward"] == tpf
        assert row["forwards"] == 16 // tpf
        assert 0 < row["forward_ms"] <= row["step_ms"]
        assert row["floor_ms"] > 0
    assert told["left_out"] == []
    assert "--out" not in told["command"]


@pytest.mark.parametrize(("decoder", "tpf"), [("ar", 1), ("block", 2), ("block", 4)])
def test_texts_are_the_decoders(decoder: str, tpf: int) -> None:
    model = gpu.model_of("tiny", "cpu")
    settings = gpu.settings(decoder, tpf, model.vocab_size, LOAD)
    wanted = decode(model, gpu.prompts(model.vocab_size, LOAD), settings)
    for eager in (False, True):
        (text,) = gpu.texts(model, decoder, tpf, LOAD, 1, eager=eager)
        assert text.tokens == [t.tokens_T.tolist() for t in wanted]
        assert text.forwards == wanted[0].nfe


def test_a_forward_reads_every_matrix_once_and_what_rows_remember() -> None:
    model = gpu.model_of("tiny", "cpu")
    products = [p for y in model.layers for p in (y.qkv, y.out, y.gate_up, y.down)]
    weights = model.head.numel() + sum(p.weight.numel() for p in products)
    remembered = 3 * (24 + 8) * 2 * 2 * 2 * 8  # rows, tokens, keys and values, layers, heads, size
    assert gpu.read_bytes(gpu.sizes_of(gpu.TINY), LOAD, 2) == 2 * (weights + remembered)


def test_a_spent_budget_starts_nothing_and_says_so() -> None:
    told = gpu.main([*TINY, "--seconds", "1e-9"])
    assert told["rows"] == []
    assert told["left_out"] == ["tiny"]


def test_lengths_that_give_no_whole_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="--block must divide"):
        gpu.parsed([*TINY, "--tpf", "3"])
