"""Conversion copies tensors bit for bit, from our own directories and from foreign ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import AddedToken
from transformers import AutoTokenizer

from diffgr2.config import ConvertConfig
from diffgr2.errors import CheckpointError
from diffgr2.model.contract import SECTION, read_config, read_contract
from diffgr2.model.conversion import convert
from diffgr2.model.load import load, save
from diffgr2.prompts.vocab import MASK, train_bpe
from diffgr2.stages.common import write_model
from support import tiny_stages

WORDS = 300  # the foreign tokenizer's own tokens; the embeddings have more rows
ROWS = 320


def foreign(
    directory: Path,
    *,
    tied: bool,
    dtype: torch.dtype = torch.float32,
    mask: bool = False,
    rows: int = ROWS,
    family: str = "Qwen3",
) -> Path:
    """A directory as other tools leave it: no vocabulary.json, a tokenizer.json."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = getattr(transformers, f"{family}Config")(
            vocab_size=rows,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            intermediate_size=32,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        )
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        model.to(dtype).save_pretrained(directory)
    tokenizer = train_bpe(["soap and shampoo " * 3, "soap dish"], 256)
    fill = WORDS - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"word{n}" for n in range(fill)])
    assert tokenizer.get_vocab_size() == WORDS
    if mask:
        tokenizer.add_tokens([f"more{n}" for n in range(4)])
        tokenizer.add_special_tokens([AddedToken(MASK, special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}<end>")
    special = {"bos_token": "word1", "eos_token": "word0"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "special_tokens_map.json").write_text(json.dumps(special))
    return directory


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in directory.glob("*.safetensors") for k, v in load_file(path).items()}


def assert_same_bits(one: Path, two: Path) -> None:
    before, after = tensors(one), tensors(two)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name


def assert_tokenizer_kept(source: Path, twin: Path, mask_id: int) -> None:
    """The twin's tokenizer is the source's with a mask; template and special tokens stand."""
    before, after = (AutoTokenizer.from_pretrained(where) for where in (source, twin))
    text = "soap and shampoo word7 dish"
    assert before(text).input_ids == after(text).input_ids
    assert after.chat_template == before.chat_template == "{{ messages[0].content }}<end>"
    assert (after.bos_token, after.eos_token) == ("word1", "word0")
    assert (after.mask_token, after.mask_token_id) == (MASK, mask_id)
    assert before.get_vocab() == {k: v for k, v in after.get_vocab().items() if k != MASK}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_foreign_directory_converts_bit_for_bit(tied, dtype, tmp_path):
    source = foreign(tmp_path / "foreign", tied=tied, dtype=dtype)
    contract = convert(source, tmp_path / "twin", ConvertConfig(block_size=8))
    assert_same_bits(source, tmp_path / "twin")
    assert contract.mask_token_id == WORDS  # the first row that no token of the tokenizer has
    values = read_config(tmp_path / "twin")
    assert values[SECTION] == {
        "block_size": 8,
        "mask_token_id": WORDS,
        "alignment": "same_position",
        "clean_attention": "either",
        "origin": "response",
    }
    assert values["rope_theta"] == 1_000_000.0
    before = read_config(source)
    assert {k: v for k, v in values.items() if k in before} == before
    assert_tokenizer_kept(source, tmp_path / "twin", WORDS)
    assert load(tmp_path / "twin").config.tie_word_embeddings is tied
    one, two = load(source).state_dict(), load(tmp_path / "twin").state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_sharded_weights_convert_with_their_index(tmp_path):
    source = foreign(tmp_path / "foreign", tied=False)
    model = load(source)
    for path in source.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(source, max_shard_size="20KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    convert(source, tmp_path / "twin", ConvertConfig())
    assert_same_bits(source, tmp_path / "twin")
    twin = load(tmp_path / "twin").state_dict()
    assert all(torch.equal(tensor, twin[name]) for name, tensor in model.state_dict().items())


def test_a_mask_token_that_the_tokenizer_knows_keeps_its_id(tmp_path):
    source = foreign(tmp_path / "foreign", tied=True, mask=True)
    assert convert(source, tmp_path / "twin", ConvertConfig()).mask_token_id == WORDS + 4


def test_a_teacher_of_our_own_converts_bit_for_bit_and_converts_again(tmp_path):
    """An AR stage's directory; the second conversion changes nothing but the section."""
    vocab = tmp_path / "vocabulary"
    tiny_stages.vocabulary().save(vocab)
    write_model(tiny_stages.fresh(), vocab, tmp_path / "rl")
    contract = convert(tmp_path / "rl", tmp_path / "twin", ConvertConfig(alignment="shifted"))
    assert contract.mask_token_id == tiny_stages.vocabulary().mask_id
    assert_same_bits(tmp_path / "rl", tmp_path / "twin")
    again = convert(tmp_path / "twin", tmp_path / "again", ConvertConfig(origin="response"))
    assert (again.alignment, again.origin) == ("same_position", "response")
    assert_same_bits(tmp_path / "rl", tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        path.name for path in (tmp_path / "rl").iterdir()
    }


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_without_a_free_row_grows_and_keeps_its_rows(tied, dtype, shards, tmp_path):
    source = foreign(tmp_path / "foreign", tied=tied, dtype=dtype, rows=WORDS, family="Llama")
    if shards:
        model = load(source).to(dtype)
        (source / "model.safetensors").unlink()
        model.save_pretrained(source, max_shard_size="8KB")
        assert len(list(source.glob("*.safetensors"))) > 1
    contract = convert(source, tmp_path / "twin", ConvertConfig())
    assert contract.mask_token_id == WORDS
    before, after = tensors(source), tensors(tmp_path / "twin")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name][: len(tensor)], tensor), name
        assert after[name].dtype == tensor.dtype
    twin = load(tmp_path / "twin")
    assert twin.config.vocab_size == len(after["model.embed_tokens.weight"]) > WORDS
    assert twin.config.tie_word_embeddings is tied
    new = after["model.embed_tokens.weight"][WORDS:].float()
    mean = before["model.embed_tokens.weight"].float().mean(0)
    torch.testing.assert_close(new, mean.expand_as(new), atol=1e-3, rtol=1e-2)
    assert_tokenizer_kept(source, tmp_path / "twin", WORDS)


def broken(directory: Path, how: str) -> None:
    config = json.loads((directory / "config.json").read_text())
    if how == "another family":
        config["model_type"] = "mistral"
    elif how == "missing tensor":
        for path in directory.glob("*.safetensors"):
            path.unlink()
    elif how == "other shape":
        config["hidden_size"] = 24
    elif how == "no tokenizer":
        (directory / "tokenizer.json").unlink()
    elif how == "gaps":
        file = directory / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        vocab = tokenizer["model"]["vocab"]
        tokenizer["added_tokens"] = []
        vocab |= {"xx": len(vocab) + 1}
        file.write_text(json.dumps(tokenizer))
    elif how == "mask outside":
        (directory / "vocabulary.json").write_text(json.dumps({"mask_id": ROWS}))
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("another family", "model_type 'mistral' is not of the Qwen3 or Llama family"),
        ("missing tensor", "holds no safetensors weights"),
        ("other shape", "is missing or has another shape|cannot be loaded"),
        ("no tokenizer", "tokenizer.json: file is missing, so the mask id is unknown"),
        ("gaps", "its ids have gaps, so no mask token can be added"),
        ("mask outside", f"mask_token_id {ROWS} is outside the vocabulary of {ROWS}"),
    ],
)
def test_a_directory_that_cannot_convert_is_refused_and_nothing_is_written(how, words, tmp_path):
    source = foreign(tmp_path / "foreign", tied=True)
    broken(source, how)
    with pytest.raises(CheckpointError, match=words) as caught:
        convert(source, tmp_path / "twin", ConvertConfig())
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "twin").exists()


GOOD = {"block_size": 8, "mask_token_id": 5}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (None, "no block_diffusion section"),
        ([], "no block_diffusion section"),
        ({"mask_token_id": 5}, r"block_diffusion.block_size: Field required"),
        ({**GOOD, "block_size": 0}, r"block_diffusion.block_size: .*greater than or equal to 1"),
        ({**GOOD, "block_size": "8"}, r"block_diffusion.block_size: .*valid integer"),
        ({**GOOD, "block_size": 8.5}, r"block_diffusion.block_size: .*valid integer"),
        ({**GOOD, "block_size": True}, r"block_diffusion.block_size: .*valid integer"),
        ({**GOOD, "mask_token_id": -1}, r"block_diffusion.mask_token_id"),
        ({**GOOD, "mask_token_id": 64}, "mask_token_id 64 is outside the vocabulary of 64"),
        ({**GOOD, "alignment": "left"}, r"block_diffusion.alignment"),
        ({**GOOD, "clean_attention": "both"}, r"block_diffusion.clean_attention"),
        ({**GOOD, "origin": "prompt"}, r"block_diffusion.origin"),
        ({**GOOD, "bock_size": 8}, r"block_diffusion.bock_size: Extra inputs"),
    ],
)
def test_a_contract_at_odds_is_an_error_that_names_the_key(section: Any, words: str):
    with pytest.raises(CheckpointError, match=words) as caught:
        read_contract({SECTION: section} if section is not None else {}, 64, "some/dir")
    assert str(caught.value).startswith("some/dir: ")


def test_a_contract_survives_saving_and_loading(tmp_path):
    section = {**GOOD, "alignment": "shifted", "clean_attention": "causal", "origin": "response"}
    section["format"] = "diffgr2"
    save(tiny_stages.fresh(), tmp_path, {SECTION: section})
    assert read_contract(read_config(tmp_path), 400, "x").model_dump() == section
