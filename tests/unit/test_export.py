"""Exports, reloaded by whoever they are for: the same tokens, or a refusal in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from diffgr2.artifacts import finish
from diffgr2.cli import run
from diffgr2.decode import reference
from diffgr2.errors import ConfigError, Diffgr2Error
from diffgr2.export import sdar
from diffgr2.export.llama_cpp import neighbours, numbered, write_gguf
from diffgr2.export.widened import padded
from diffgr2.export.writing import export
from diffgr2.model.contract import BlockContract
from diffgr2.model.load import save
from support.exported import (
    BLOCK,
    END,
    MASK,
    PAD,
    VOCAB,
    model_directory,
    prompts,
    settings,
    slow,
    write_tokenizer,
)
from support.tiny_qwen import tiny


def reloaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()


# ------------------------------------------------------------------------------------ hf

CONTRACTS = [
    BLOCK,
    BLOCK | {"origin": "response", "clean_attention": "causal"},
    BLOCK | {"alignment": "shifted", "block_size": 3},
    BLOCK | {"alignment": "shifted", "origin": "response", "clean_attention": "block_causal"},
]


@pytest.mark.parametrize("section", CONTRACTS)
@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_hf_writes_the_tokens_and_steps_of_the_slow_decoder(tmp_path, section, tau) -> None:
    module = model_directory(tmp_path / "m", 3, section, marker=1.5)
    export(tmp_path / "m", tmp_path / "out", "hf", threshold=tau)
    model = reloaded(tmp_path / "out")
    ways = {"causal", "block_causal"} & {section["clean_attention"]} or {"causal", "block_causal"}
    for clean_kv in sorted(ways):
        for prompt in prompts(6, seed=5):
            how = settings(section, threshold=tau, clean_kv=clean_kv)
            expected = reference.block(slow(module), prompt, how)
            found = model.block_generate(prompt, 14, clean_kv=clean_kv)
            assert found.tokens == expected.tokens
            assert found.steps == expected.steps
            assert (found.forwards, found.finished) == (expected.nfe, expected.finished)


def test_hf_ends_with_the_end_token(tmp_path) -> None:
    module = model_directory(tmp_path / "m")
    with torch.no_grad():
        module.lm_head.weight[END] *= 3  # tied: it is likelier, and still not certain
    save(module, tmp_path / "m", {"block_diffusion": BLOCK})
    export(tmp_path / "m", tmp_path / "out", "hf")
    model, ended = reloaded(tmp_path / "out"), 0
    for prompt in prompts(20):
        expected = reference.block(slow(module), prompt, settings())
        found = model.block_generate(prompt, 14)
        assert found.tokens == expected.tokens
        ended += found.finished and found.tokens.index(END) == len(found.tokens) - 1
    assert ended >= 3


class Heard:
    def __init__(self) -> None:
        self.parts: list[list[int]] = []
        self.over = False

    def put(self, value: torch.Tensor) -> None:
        self.parts.append(value.tolist())

    def end(self) -> None:
        self.over = True


def test_a_streamer_hears_the_prompt_and_then_every_token_once(tmp_path) -> None:
    model_directory(tmp_path / "m", 1)
    export(tmp_path / "m", tmp_path / "out", "hf", threshold=0.2)
    heard, (prompt, *_) = Heard(), prompts(1)
    found = reloaded(tmp_path / "out").block_generate(torch.tensor([prompt]), 14, streamer=heard)
    assert heard.over
    assert heard.parts[0] == prompt
    assert [token for part in heard.parts[1:] for token in part] == found.tokens
    assert len(heard.parts) > 2


def test_hf_refuses_what_it_was_not_trained_for(tmp_path) -> None:
    model_directory(tmp_path / "m", 0, BLOCK | {"clean_attention": "causal"})
    export(tmp_path / "m", tmp_path / "out", "hf")
    model = reloaded(tmp_path / "out")
    with pytest.raises(ValueError, match="trained causal"):
        model.block_generate([1, 2], clean_kv="block_causal")
    with pytest.raises(ValueError, match="one prompt"):
        model.block_generate(torch.tensor([[1], [2]]))


# --------------------------------------------------------------------------------- qwen3


@pytest.mark.parametrize("section", [BLOCK, None])
def test_qwen3_is_a_stock_model_that_writes_what_ar_writes(tmp_path, section) -> None:
    module = model_directory(tmp_path / "m", 2, section)
    export(tmp_path / "m", tmp_path / "out", "qwen3")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert "block_diffusion" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert torch.equal(model.state_dict()["lm_head.weight"], module.state_dict()["lm_head.weight"])
    for prompt in prompts(8):
        expected = reference.ar(slow(module), prompt, settings(decoder="ar"))
        written = model.generate(torch.tensor([prompt]), max_new_tokens=14)[0, len(prompt) :]
        assert written.tolist() == expected.tokens


# ---------------------------------------------------------------------------------- sdar


@pytest.fixture(scope="module")
def padded_sdar(tmp_path_factory) -> tuple[Any, Path]:
    base = tmp_path_factory.mktemp("sdar")
    module = model_directory(base / "m", 4, marker=1.5)
    export(base / "m", base / "out", "sdar", pad_vocab=True, threshold=0.3)
    return module, base / "out"


def test_sdar_says_all_that_engines_would_take_from_a_default(padded_sdar) -> None:
    _, out = padded_sdar
    raw = json.loads((out / "config.json").read_text())
    assert raw["architectures"] == ["SDARForCausalLM"]
    assert raw["model_type"] == "sdar"
    assert (raw["vocab_size"], raw["tie_word_embeddings"]) == (sdar.ROWS, False)
    config = AutoConfig.from_pretrained(out, trust_remote_code=True)
    assert float(config.rope_theta) == raw["rope_theta"] == raw["rope_parameters"]["rope_theta"]
    assert config.block_diffusion["mask_token_id"] == sdar.MASK_ID
    assert (out / sdar.ALGORITHM).read_text() == "block_size: 4\nthreshold: 0.3\n"


def test_sdar_keeps_every_id_but_the_masks(padded_sdar, tmp_path) -> None:
    _, out = padded_sdar
    write_tokenizer(tmp_path)
    ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs = Tokenizer.from_file(str(out / "tokenizer.json"))
    moved = {token: id_ for token, id_ in ours.get_vocab().items() if id_ != MASK}
    assert theirs.get_vocab() == moved | {"<|MASK|>": sdar.MASK_ID}
    text = "cab<|im_end|><|MASK|>ab"
    ids = [sdar.MASK_ID if id_ == MASK else id_ for id_ in ours.encode(text).ids]
    assert theirs.encode(text).ids == ids


def test_sdar_decodes_aligned_prompts_as_we_do_block_causally(padded_sdar) -> None:
    module, out = padded_sdar
    model = reloaded(out)
    for prompt in prompts(8, multiple=4):
        how = settings(threshold=0.3, clean_kv="block_causal")
        expected = reference.block(slow(module), prompt, how)
        found = model.block_generate(prompt, 14)
        assert (found.tokens, found.steps) == (expected.tokens, expected.steps)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silent_rows_take_nothing_and_the_others_are_as_before(tied: bool, dtype) -> None:
    """Against the model itself, the mask banned; zero rows would take a share."""
    module = tiny(6, tied=tied).to(dtype)
    config = module.config
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    made, width = padded(tensors, config.to_dict(), MASK, 40, 64)
    wide = type(module)(type(config)(**config.to_dict() | {"hidden_size": width, "vocab_size": 64}))
    wide.config.tie_word_embeddings = False
    wide.lm_head.weight = torch.nn.Parameter(wide.lm_head.weight.clone())
    wide = wide.to(dtype)
    wide.load_state_dict(made)
    ids = torch.tensor([[1, 5, MASK, 9, MASK]])
    with torch.no_grad():
        old = module(ids).logits[0].float()
        new = wide.eval()(torch.where(ids == MASK, 40, ids)).logits[0].float()
    old[:, MASK] = -torch.inf
    share = new.softmax(-1)
    silent = [MASK, *range(VOCAB, 64)]
    assert (share[:, silent] == 0).all()
    assert new[:, silent].max() < -1e4
    close = 2e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(share[:, :VOCAB], old.softmax(-1), atol=close, rtol=0)
    zero = torch.cat([old, torch.zeros(len(old), 64 - VOCAB)], 1).softmax(-1)
    assert (zero[:, VOCAB:].sum(-1) > 0.01).all()


# ----------------------------------------------------------------------------------- gguf


def test_gguf_holds_weights_tokens_and_the_end(tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    module = model_directory(tmp_path / "m")
    export(tmp_path / "m", tmp_path / "out", "gguf")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    tensors = {one.name: one.data for one in reader.tensors}
    assert len(tensors) == len(list(module.named_parameters()))  # tied: no head of its own
    query = module.model.layers[1].self_attn.q_proj.weight.detach().numpy()
    assert (tensors["blk.1.attn_q.weight"] == query).all()
    fields = reader.fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert (tokens[0], tokens[END], len(tokens)) == ("a", "<|im_end|>", VOCAB)
    assert fields["tokenizer.ggml.eos_token_id"].contents() == END
    assert fields["tokenizer.ggml.merges"].contents() == ["a b"]
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"


def test_rows_of_a_llama_turn_as_neighbours(tmp_path) -> None:
    """Rotating neighbours of the shuffled rows is rotating halves of ours."""
    heads, dim = 2, 8
    rows = torch.randn(heads * dim, 5, generator=torch.Generator().manual_seed(0))
    shuffled = torch.from_numpy(neighbours(rows.numpy(), heads))
    angle = torch.arange(dim // 2) + 0.5
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    for head in range(heads):
        low, high = rows[head * dim :][: dim // 2], rows[head * dim + dim // 2 :][: dim // 2]
        turned = torch.cat([low * cos - high * sin, high * cos + low * sin])
        one, two = shuffled[head * dim :: 2][: dim // 2], shuffled[head * dim + 1 :: 2][: dim // 2]
        mixed = torch.stack([one * cos - two * sin, two * cos + one * sin], 1).flatten(0, 1)
        assert torch.equal(mixed.view(-1, 2, 5).swapaxes(0, 1).reshape(dim, 5), turned)


# ------------------------------------------------------------------------------- refusals

REFUSED = [
    ("sdar", BLOCK | {"clean_attention": "causal"}, {}, "convert.clean_attention"),
    ("sdar", BLOCK | {"alignment": "shifted"}, {}, "convert.alignment"),
    ("sdar", BLOCK | {"origin": "response"}, {"pad_vocab": True}, "convert.origin"),
    ("sdar", BLOCK, {}, "--pad-vocab"),
    ("sdar", None, {}, "autoregressive"),
    ("hf", None, {}, "autoregressive"),
    ("hf", BLOCK, {"pad_vocab": True}, "--pad-vocab"),
    ("gguf", BLOCK | {"clean_attention": "block_causal"}, {}, "clean_attention"),
    ("qwen3", BLOCK | {"clean_attention": "block_causal"}, {}, "clean_attention"),
    ("onnx", BLOCK, {}, "expected one of"),
]


@pytest.mark.parametrize(("format", "section", "how", "word"), REFUSED)
def test_what_an_engine_would_decode_otherwise_is_refused(
    tmp_path, format, section, how, word
) -> None:
    model_directory(tmp_path / "m", section=section)
    with pytest.raises(ConfigError, match=word) as caught:
        export(tmp_path / "m", tmp_path / "out", format, **how)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]  # nothing half is left


def test_blocks_from_the_response_are_exported_for_aligned_prompts(tmp_path) -> None:
    sdar.refuse(_contract(origin="response"), aligned=True)
    with pytest.raises(ConfigError, match="multiple of 4"):
        sdar.refuse(_contract(origin="response"), aligned=False)


def _contract(**given: Any) -> BlockContract:
    return BlockContract(**BLOCK | given)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


HALVES = {
    "no weights": lambda m: (m / "model.safetensors").unlink(),
    "cut weights": lambda m: cut(m / "model.safetensors"),
    "no config": lambda m: (m / "config.json").unlink(),
    "no object": lambda m: (m / "config.json").write_text("[]"),
    "no tokenizer": lambda m: (m / "tokenizer.json").unlink(),
    "odd tokenizer": lambda m: (m / "tokenizer.json").write_text('{"model": {}}'),
    "no end": lambda m: (m / "special_tokens_map.json").unlink(),
    "more layers": lambda m: _change(m, num_hidden_layers=3),
    "section": lambda m: _change(m, block_diffusion={"block_size": 4}),
    "family": lambda m: _change(m, model_type="gpt2"),
    "nothing": shutil.rmtree,
}


def _change(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("half", HALVES)
def test_half_directories_are_refused_with_one_line(tmp_path, half, capsys) -> None:
    model_directory(tmp_path / "m")
    HALVES[half](tmp_path / "m")
    code = run(["export", str(tmp_path / "m"), str(tmp_path / "out"), "--format", "hf"])
    said = capsys.readouterr().err.strip()
    assert code in (2, 3)
    assert said.startswith("error: ")
    assert "\n" not in said
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_changed_file_of_a_sealed_stage_is_refused(tmp_path) -> None:
    model_directory(tmp_path / "m")
    finish(tmp_path / "m", {"stage": "cft"})
    export(tmp_path / "m", tmp_path / "one", "hf")
    path = tmp_path / "m" / "tokenizer.json"
    path.write_text(path.read_text().replace('"a"', '"A"', 1))
    with pytest.raises(Diffgr2Error, match=r"tokenizer\.json: content differs"):
        export(tmp_path / "m", tmp_path / "two", "hf")


def test_what_stands_at_the_place_stays(tmp_path) -> None:
    model_directory(tmp_path / "m")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="stands already"):
        export(tmp_path / "m", tmp_path / "out", "hf")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_no_export_lies_within_what_it_reads(tmp_path) -> None:
    model_directory(tmp_path / "m")
    before = sorted((tmp_path / "m").iterdir())
    for out in (tmp_path / "m" / "out", tmp_path / "x" / ".." / "m" / "a" / "b"):
        with pytest.raises(ConfigError, match="lies within"):
            export(tmp_path / "m", out, "qwen3")
    assert sorted((tmp_path / "m").iterdir()) == before


def test_a_threshold_is_refused_where_nothing_would_read_it(tmp_path) -> None:
    model_directory(tmp_path / "m")
    for format in ("qwen3", "gguf"):
        with pytest.raises(ConfigError, match="--threshold: for --format sdar and hf only"):
            export(tmp_path / "m", tmp_path / "out", format, threshold=0.5)


def test_every_page_says_what_is_in_its_directory(tmp_path) -> None:
    pytest.importorskip("gguf")
    model_directory(tmp_path / "m")
    for format in ("hf", "gguf", "qwen3"):
        names = export(tmp_path / "m", tmp_path / format, format)
        text = (tmp_path / format / "README.md").read_text()
        assert "{" not in text
        assert f"End token {END}" in text or f"end token {END}" in text
        assert {"README.md", "manifest.json"} <= {*names}


@pytest.mark.slow
def test_llama_cpp_writes_the_same_tokens_for_both_families(tmp_path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from support.llama_cpp import greedy

    asked, module = prompts(100), model_directory(tmp_path / "m", 7)
    with torch.no_grad():  # llama.cpp ends at the padding's name, too, and may write a mask
        module.lm_head.weight[[PAD, MASK]] = 0
    save(module, tmp_path / "m", {"block_diffusion": BLOCK})
    export(tmp_path / "m", tmp_path / "out", "gguf")
    expected = [reference.ar(slow(module), p, settings(decoder="ar")).tokens for p in asked]
    expected = [text[:-1] if text[-1] == END else text for text in expected]
    assert greedy(tmp_path / "out" / "model.gguf", asked, 14, END) == expected
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=256,
            initializer_range=0.25,
        )
    ).eval()
    tensors = {name: tensor.numpy() for name, tensor in llama.state_dict().items()}
    spelled = replace(numbered(VOCAB), end_id=END)
    path = tmp_path / "llama.gguf"
    write_gguf(llama.config.to_dict(), tensors, 10_000.0, spelled, path)
    for prompt, tokens in zip(asked, greedy(path, asked, 14, END), strict=True):
        own = llama.generate(
            torch.tensor([prompt]), max_new_tokens=14, do_sample=False, eos_token_id=END
        )[0, len(prompt) :].tolist()
        assert tokens == (own[:-1] if own[-1] == END else own)
