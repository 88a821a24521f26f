"""What llama.cpp writes for prompts of token ids, greedily."""

from __future__ import annotations

from pathlib import Path

LANES = 4


def greedy(path: Path, prompts: list[list[int]], tokens: int, end_id: int = -1) -> list[list[int]]:
    """Token ids of each response, its end token left out."""
    import xllamacpp

    given = xllamacpp.CommonParams()
    given.model.path = str(path)
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = 1
    given.n_parallel = LANES
    given.n_ctx = LANES * (max(map(len, prompts)) + tokens + 1)
    given.n_batch = 2048
    # By default keys, values and attention are rounded to 16 bits, which turns near ties.
    given.cache_type_k = given.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    kinds = xllamacpp.llama_flash_attn_type
    given.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    given.cache_prompt, given.cache_ram_mib = False, 0
    given.warmup, given.verbosity = False, -1
    server = xllamacpp.Server(given)
    asked = {"n_predict": tokens, "cache_prompt": False, "logprobs": 1}
    asked |= {"temperature": 0, "samplers": ["top_k"], "top_k": 1}
    written: list[list[int]] = []
    for prompt in prompts:
        answer = server.handle_completions({**asked, "prompt": prompt})
        (choice,) = (answer[0] if isinstance(answer, list) else answer)["choices"]
        ids = [one["id"] for one in (choice["logprobs"] or {"content": []})["content"]]
        written.append(ids[:-1] if ids[-1:] == [end_id] else ids)
    return written
