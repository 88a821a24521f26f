"""Other projects' block-diffusion checkpoints: contracts, and decoding by their own rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffgr2.cli import run
from diffgr2.config import Recipe
from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.errors import CheckpointError
from diffgr2.model.backends import open_backend
from diffgr2.model.contract import contract_of
from diffgr2.model.load import Backbone, load, save
from diffgr2.prompts.vocab import train_bpe
from diffgr2.stages.plan import stages_of
from diffgr2.stages.vocabulary import with_mask_at
from support.tiny_qwen import VOCAB, tiny

MASK, SIZE = VOCAB - 1, 4
KINDS = {"sdar": ("Qwen3", "block_size"), "Fast_dLLM_Qwen": ("Qwen2", "bd_size")}


def foreign(directory: Path, kind: str, **changes: Any) -> Path:
    """A directory as the project publishes it: its model_type, remote code, older rope keys."""
    family, key = KINDS[kind]
    save(tiny(31, family=family, tied=False), directory)
    values = json.loads((directory / "config.json").read_text())
    values.pop("rope_parameters")
    values |= {"model_type": kind, "auto_map": {"AutoModelForCausalLM": "modeling.X"}}
    values |= {"rope_scaling": None, key: SIZE, "mask_token_id": MASK, **changes}
    values = {k: v for k, v in values.items() if v is not None or k == "rope_scaling"}
    (directory / "config.json").write_text(json.dumps(values))
    train_bpe(["soap"], 256).save(str(directory / "tokenizer.json"))
    return directory


@torch.no_grad()
def of_their_own(module: Backbone, prompt: list[int], length: int, shift: bool) -> list[int]:
    """The formats' rule, as one whole forward per step: blocks from the document's start, of which
    every token sees its own and all before; of a block the surest mask is filled first. Shifted
    logits: position i is predicted at i - 1."""
    ids = [*prompt, *[MASK] * length]
    block_T = torch.arange(len(ids)) // SIZE
    sees_TT = block_T[None] <= block_T[:, None]
    for start in range(len(prompt), len(ids), SIZE):
        end = start + SIZE
        while MASK in ids[start:end]:
            seen = sees_TT[:end, :end][None, None]
            logits_TV = module(torch.tensor([ids[:end]]), attention_mask=seen).logits[0]
            logits_TV[:, MASK] = -torch.inf
            chance_TV = torch.softmax(logits_TV.double(), -1)
            open_ = [t for t in range(start, end) if ids[t] == MASK]
            best = max(open_, key=lambda t: float(chance_TV[t - shift].max()))
            ids[best] = int(chance_TV[best - shift].argmax())
    return ids[len(prompt) :]


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_decodes_by_its_own_formats_rule(kind, backend, tmp_path):
    directory = foreign(tmp_path, kind)
    contract = contract_of(directory)
    assert contract is not None
    assert contract.model_dump() == {
        "block_size": SIZE,
        "mask_token_id": MASK,
        "alignment": "shifted" if kind == "Fast_dLLM_Qwen" else "same_position",
        "clean_attention": "block_causal",
        "origin": "document",
        "format": {"sdar": "sdar", "Fast_dLLM_Qwen": "fast_dllm_v2"}[kind],
    }
    chosen = DecodeSettings(
        decoder="block",
        mask_id=MASK,
        end_id=MASK,
        max_tokens=12,
        threshold=1.0,
        canvas=SIZE,
        **contract.decoding(),
    )
    module = load(directory)
    for prompt in ([3, 1, 4, 1], [5, 9, 2, 6, 5, 3, 5, 8]):
        (text,) = decode(open_backend(directory, backend), [DecodeRequest(prompt)], chosen)
        assert text.tokens_T.tolist() == of_their_own(module, prompt, 12, kind != "sdar")


def test_import_names_the_contract(tmp_path, capsys):
    source = foreign(tmp_path / "sdar", "sdar", block_size=None)
    assert run(["base", "import", str(source)]) == CheckpointError.exit_code
    assert "does not say its block size" in capsys.readouterr().err
    assert run(["base", "import", str(source), str(tmp_path / "out"), "--block-size", "8"]) == 0
    assert "block_size 8" in capsys.readouterr().out
    made = contract_of(tmp_path / "out")
    assert made is not None
    assert (made.block_size, made.format) == (8, "sdar")
    one, two = (load(where).state_dict() for where in (source, tmp_path / "out"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask_token_id": None}, "says which token is the mask"),
        ({"mask_token_id": VOCAB}, f"mask_token_id {VOCAB} is outside the vocabulary of {VOCAB}"),
        ({"block_size": 0}, "does not say its block size"),
        ({"block_size": "4"}, "block_diffusion.block_size"),
    ],
)
def test_a_contract_that_is_not_there_is_refused(changes, words, tmp_path):
    with pytest.raises(CheckpointError, match=words) as caught:
        contract_of(foreign(tmp_path, "sdar", **changes))
    assert "\n" not in str(caught.value)


def test_a_recipe_on_such_a_base_starts_at_cft(tmp_path):
    plain = Recipe.model_validate({"name": "x"})
    base = {"name": "x", "model": {"base": str(foreign(tmp_path, "sdar"))}}
    stages = stages_of(Recipe.model_validate(base))
    gone = stages_of(plain).keys() - stages.keys()
    assert {"midtrain", "sft", "rl", "direct_rl", "opd", "block_rl", "score_ar"} <= gone
    assert stages["convert"].inputs == ("vocabulary",)
    assert "traces" in stages["distill"].inputs
    assert all(needed in stages for stage in stages.values() for needed in stage.inputs)
    assert {"cft", "cft_rl", "score_cft", "score_naive"} <= stages.keys()


def test_a_mask_of_another_name_keeps_its_id():
    tokenizer = train_bpe(["soap"], 256)
    tokenizer.add_special_tokens(["<|im_end|>", "|<MASK>|", "<other>"])
    number = tokenizer.token_to_id("|<MASK>|")
    renamed = with_mask_at(json.loads(tokenizer.to_str()), number)
    assert renamed.token_to_id("<|MASK|>") == number
    assert renamed.token_to_id("|<MASK>|") is None
    with pytest.raises(ValueError, match="its mask would be"):
        with_mask_at(json.loads(train_bpe(["soap"], 256).to_str()), 7_000)
