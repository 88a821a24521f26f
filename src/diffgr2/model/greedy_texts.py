"""Greedy texts, by llama.cpp and by our own forward: how an imported file is checked.

Contract: `written` is what llama.cpp (the package xllamacpp) writes behind prompts of token ids,
`greedy` what the lean forward of a directory writes behind the same, each so many tokens and no end
token obeyed. Where a file's weights are in few bits llama.cpp rounds what enters a product, too,
and texts part where two tokens are nearly as likely: hand it the weights in fp32. Not here: reading
the file (`gguf_import`), speed.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from diffgr2.errors import CheckpointError
from diffgr2.model.forward import KVCache, LeanModel
from diffgr2.model.load import load


def installed() -> bool:
    """Whether llama.cpp is there."""
    return find_spec("xllamacpp") is not None


def written(path: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[str]:
    """What llama.cpp writes."""
    engine: Any = import_module("xllamacpp")
    given = engine.CommonParams()
    given.model.path = str(path)
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = torch.get_num_threads()
    given.n_parallel = 1
    given.n_ctx = max(map(len, prompts)) + tokens + 1
    given.cache_prompt, given.cache_ram_mib = False, 0
    given.warmup, given.verbosity = False, -1
    try:
        server = engine.Server(given)
    except Exception:
        raise CheckpointError(f"{path}: llama.cpp cannot open it") from None
    greedy = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True}
    texts = []
    for prompt in prompts:
        asked = {"prompt": [*prompt], "n_predict": tokens, "cache_prompt": False, **greedy}
        answer: Any = server.handle_completions(asked)
        answer = answer[0] if isinstance(answer, list) else answer
        texts.append(answer["choices"][0]["text"])
    return texts


@torch.inference_mode()
def greedy(
    directory: Path, prompts: Sequence[Sequence[int]], tokens: int, ends: Sequence[int] = ()
) -> list[list[int]]:
    """What the directory's model writes; never one of `ends`, as llama.cpp that ignores them."""
    model, texts = LeanModel(load(directory)), []
    for prompt in prompts:
        cache = KVCache.empty(model, 1, len(prompt) + tokens)
        fresh, start, out = [*prompt], 0, []
        for _ in range(tokens):
            n = len(fresh)
            mask = torch.arange(start + n) <= torch.arange(start, start + n)[:, None]
            place = model.positions[None, start : start + n]
            ids = torch.tensor([fresh])
            logits_V = model(ids, place, cache, start, mask[None], start + n, logits_from=n - 1)
            logits_V[..., [*ends]] = -torch.inf
            start, fresh = start + n, [int(logits_V.argmax())]
            out += fresh
        texts.append(out)
    return texts
