"""Format `sdar`: what SGLang and LMDeploy load as SDAR, and what of ours they can compute.

Contract: their rules are facts of this module: the mask is token 151669, no logit is shifted, keys
and values of clean blocks are block-causal, blocks count from the document's first token, and what
stands of the prompt in the first open block sees that block's masks. So a checkpoint that decodes
otherwise is refused with the reason and the recipe's key, and the page that comes with the export
says for which prompts their text is ours. Not here: their code (`tests/contract/test_engines.py`).
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from diffgr2.artifacts import read_json, write_json
from diffgr2.errors import ConfigError
from diffgr2.export.given import Given
from diffgr2.export.hugging_face import CODE, auto_map, defaults, generation
from diffgr2.export.widened import padded, untied
from diffgr2.model.contract import SECTION, BlockContract

MASK_ID = 151_669
"""Fixed in both engines, whatever config.json says."""

ROWS = 151_936
"""The vocabulary that goes with it: Qwen3's."""

ALGORITHM = "low_confidence.yaml"
"""SGLang takes block size and threshold from here alone."""


def refuse(contract: BlockContract, *, aligned: bool) -> None:
    """What these engines would decode otherwise than it was trained."""
    if contract.clean_attention == "causal":
        raise ConfigError(
            "--format sdar: keys and values of clean blocks are block-causal there, this was "
            "trained causally (train with convert.clean_attention: either)"
        )
    if contract.alignment != "same_position":
        raise ConfigError(
            "--format sdar: no logit is shifted there (train with convert.alignment: same_position)"
        )
    if contract.origin != "document" and not aligned and contract.block_size > 1:
        raise ConfigError(
            "--format sdar: blocks count from the document's first token there, here from the "
            "response's: train with convert.origin: document, or give --aligned-prompts if every "
            f"prompt will be a multiple of {contract.block_size} tokens long"
        )


def where_mask_stands(given: Given, contract: BlockContract, *, pad_vocab: bool) -> int:
    """The mask's id here; refuses a place where the engines do not look for it."""
    at, most = contract.mask_token_id, int(given.config["vocab_size"])
    if at == MASK_ID or (pad_vocab and most <= MASK_ID):
        return at
    if pad_vocab:
        raise ConfigError(
            f"--pad-vocab: token {MASK_ID}, the engines' mask, is another one of these {most} rows"
        )
    raise ConfigError(
        f"--format sdar: the mask is token {MASK_ID} in these engines and {at} here: --pad-vocab "
        f"moves it and fills up to {ROWS:,} rows that no softmax sees"
    )


def write(
    given: Given, out: Path, *, pad_vocab: bool, aligned: bool, threshold: float
) -> dict[str, Any]:
    """The directory; returns what its page tells."""
    from huggingface_hub import save_torch_state_dict

    given.as_qwen3("sdar")
    contract = given.block("sdar")
    refuse(contract, aligned=aligned)
    at = where_mask_stands(given, contract, pad_vocab=pad_vocab)
    tensors, hidden = given.tensors(), int(given.config["hidden_size"])
    if pad_vocab:
        if any(tensor.dtype == torch.float16 for tensor in tensors.values()):
            raise ConfigError("--pad-vocab: needs the range of bf16 or fp32, the weights are fp16")
        rows = max(ROWS, int(given.config["vocab_size"]))
        tensors, hidden = padded(tensors, given.config, at, MASK_ID, rows)
    else:
        tensors = untied(tensors)  # SGLang looks for a head of its own
    save_torch_state_dict(tensors, str(out), max_shard_size="5GB")
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)  # it makes files that nobody else may read
    values = config_of(given, contract, tensors, hidden)
    values["block_decoding"] = defaults(given, threshold, "block_causal")
    write_json(out / "config.json", values)
    write_json(out / "generation_config.json", generation(given))
    shutil.copyfile(CODE, out / CODE.name)
    (out / ALGORITHM).write_text(f"block_size: {contract.block_size}\nthreshold: {threshold:g}\n")
    write_tokenizer(given, out, at)
    return {
        "mask": MASK_ID,
        "moved": f"{at:,} to {MASK_ID:,}" if at != MASK_ID else "not",
        "rows": len(tensors["model.embed_tokens.weight"]),
        "silent": "yes" if pad_vocab else "no",
        "hidden": hidden,
        "judged": judged(given),
    }


def config_of(
    given: Given, contract: BlockContract, tensors: dict[str, torch.Tensor], hidden: int
) -> dict[str, Any]:
    """config.json: SDAR's names, and all that an engine would otherwise take from a default."""
    section = contract.model_dump() | {"mask_token_id": MASK_ID}
    return given.config | {
        "model_type": "sdar",
        "architectures": ["SDARForCausalLM"],
        "auto_map": auto_map("SDAR"),
        "hidden_size": hidden,
        "vocab_size": len(tensors["model.embed_tokens.weight"]),
        "tie_word_embeddings": False,
        "rope_theta": given.rope_theta,
        "block_size": contract.block_size,
        "mask_token_id": MASK_ID,
        "eos_token_id": given.end_id,
        "pad_token_id": given.special.get("pad_token"),
        SECTION: section,
    }


def write_tokenizer(given: Given, out: Path, at: int) -> None:
    """tokenizer.json with the mask where the engines have it; ids with gaps need to be spelled."""
    values = given.tokenizer
    vocab, moved = dict(given.token_ids), {at: MASK_ID}
    added = [{**one, "id": moved.get(one["id"], one["id"])} for one in values["added_tokens"]]
    vocab = {token: moved.get(id_, id_) for token, id_ in vocab.items()}
    write_json(
        out / "tokenizer.json",
        values | {"added_tokens": added, "model": {**values["model"], "vocab": vocab}},
    )
    path = given.directory / "added_tokens.json"
    if path.is_file():
        write_json(out / path.name, {t: moved.get(i, i) for t, i in read_json(path).items()})


def judged(given: Given) -> str:
    """What is known of this model as these engines decode it."""
    if given.recipe is None:
        return "A model directory: nothing in it says how it was evaluated."
    decode = given.recipe.decode
    said = (
        f"The bundle was judged with `clean_kv: {decode.clean_kv}` under the rule `{decode.rule}`"
    )
    if decode.clean_kv == "block_causal" and decode.rule == "raw":
        return f"{said}, as here."
    return (
        f"{said}; these engines decode with `block_causal` and without a grammar, which its "
        "verdict does not speak of. Score it so before you serve it: "
        "`diffgr2 score RECIPE --set decode.clean_kv=block_causal decode.rule=raw`."
    )
