"""Formats `hf` and `qwen3`: directories that transformers opens, with and without block decoding.

Contract: weight files are copied byte for byte. `hf` gains one module of remote code
(`modeling_block_diffusion`), whose `block_generate` is our `block` under the rule `raw`; `qwen3`
loses the block-diffusion section and is a stock model, the mask's row kept and never generated. Not
here: SDAR's names (`sdar`).
"""

import shutil
from pathlib import Path
from typing import Any

from diffgr2.artifacts import write_json
from diffgr2.export.given import Given
from diffgr2.model.contract import SECTION

CODE = Path(__file__).with_name("modeling_block_diffusion.py")


def auto_map(kind: str) -> dict[str, str]:
    """Which classes of the code file are whose; `kind` is the beginning of their names."""
    return {
        "AutoConfig": f"{CODE.stem}.{kind}Config",
        "AutoModelForCausalLM": f"{CODE.stem}.{kind}ForCausalLM",
    }


def copy_weights(given: Given, out: Path) -> None:
    for pattern in ("*.safetensors", "*.safetensors.index.json"):
        for path in given.directory.glob(pattern):
            shutil.copyfile(path, out / path.name)


def generation(given: Given, *, mask_id: int | None = None) -> dict[str, Any]:
    """generation_config.json: greedy, to the end token, and never a mask."""
    values = {"do_sample": False, "eos_token_id": given.end_id}
    values |= {"pad_token_id": given.special.get("pad_token", given.end_id)}
    return values | ({"suppress_tokens": [mask_id]} if mask_id is not None else {})


def defaults(given: Given, threshold: float, clean_kv: str) -> dict[str, Any]:
    """The section `block_decoding`."""
    return {"threshold": threshold, "clean_kv": clean_kv, "end_token_id": given.end_id}


def write_hf(given: Given, out: Path, *, threshold: float) -> dict[str, Any]:
    """The directory; returns what its page tells."""
    given.as_qwen3("hf")
    contract = given.block("hf")
    wanted = given.recipe.decode.clean_kv if given.recipe else "causal"
    clean_kv = contract.decoding(wanted)["clean_kv"]
    copy_weights(given, out)
    shutil.copyfile(CODE, out / CODE.name)
    values = given.config | {
        "model_type": "diffgr2",
        "architectures": ["BlockDiffusionForCausalLM"],
        "auto_map": auto_map("BlockDiffusion"),
        "eos_token_id": given.end_id,
        "block_decoding": defaults(given, threshold, clean_kv),
    }
    write_json(out / "config.json", values)
    write_json(out / "generation_config.json", generation(given, mask_id=contract.mask_token_id))
    return {"clean_kv": clean_kv}


def write_qwen3(given: Given, out: Path) -> dict[str, Any]:
    """The directory; returns what its page tells."""
    given.as_qwen3("qwen3")
    given.autoregressive("qwen3")
    copy_weights(given, out)
    mask_id = given.contract.mask_token_id if given.contract else given.special.get("mask_token")
    values = {key: value for key, value in given.config.items() if key != SECTION}
    values |= {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    write_json(out / "config.json", values | {"eos_token_id": given.end_id})
    write_json(out / "generation_config.json", generation(given, mask_id=mask_id))
    return {"mask": "none" if mask_id is None else str(mask_id)}
