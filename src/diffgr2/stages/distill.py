"""The AR teacher's own greedy outputs: what conversion fine-tuning learns from.

Contract: decodes training and validation lists greedily with the AR teacher, some with shuffled
candidates, some answering directly, and keeps the valid outputs. Deterministic targets are what
makes confident parallel commits possible. Writes `outputs.safetensors` (an `Outputs`). Not here:
noise and training (`cft`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.decode.batch import DecodeRequest, decode
from diffgr2.errors import ArtifactError
from diffgr2.model.forward import LeanQwen3
from diffgr2.model.load import open_model
from diffgr2.pipeline import StageContext
from diffgr2.prompts.request import Request
from diffgr2.stages.corpus import KNOWN, Corpus, open_corpus
from diffgr2.streams import generator

FILE = "outputs.safetensors"


@dataclass(frozen=True)
class Outputs:
    """N kept outputs: which list, in which order its candidates were shown, what was written."""

    split_N: np.ndarray  # index into corpus.KNOWN
    row_N: np.ndarray
    order_NK: np.ndarray
    direct_N: np.ndarray
    length_N: np.ndarray
    tokens_NT: np.ndarray

    def __len__(self) -> int:
        return len(self.row_N)

    def request(self, corpus: Corpus, n: int) -> Request:
        request = corpus.request(KNOWN[int(self.split_N[n])], int(self.row_N[n]))
        return request.reordered(self.order_NK[n])

    def prompt(self, corpus: Corpus, n: int) -> list[int]:
        return corpus.template.prompt(self.request(corpus, n), reasoning=not self.direct_N[n])

    def response(self, n: int) -> np.ndarray:
        return self.tokens_NT[n, : self.length_N[n]].astype(np.int64)

    def kinds(self, corpus: Corpus, n: int) -> np.ndarray:
        """REASONING (0) or ANSWER (1) of each response token."""
        tokens = self.response(n)
        start = corpus.template.answer_start(tokens.tolist())
        return (np.arange(len(tokens)) >= start).astype(np.int64)

    @classmethod
    def load(cls, directory: Path) -> Outputs:
        return cls(**load_arrays(directory / FILE))


def run(ctx: StageContext) -> dict[str, Any]:
    config = ctx.recipe.distill
    corpus = open_corpus(ctx.inputs, ctx.recipe)
    template = corpus.template
    known = [(s, row) for s, split in enumerate(KNOWN) for row in range(len(corpus.lists[split]))]
    rng, count = generator(ctx.seed, "distill"), min(config.lists or len(known), len(known))
    drawn, shown, prompts = [], [], []
    for n in np.sort(rng.choice(len(known), count, replace=False)):
        s, row = known[n]
        request, order_K = corpus.shown(KNOWN[s], row, config.shuffle, rng)
        direct = bool(rng.random() < config.direct)
        ids = template.prompt(request, reasoning=not direct)
        prompts.append(DecodeRequest(ids, template.grammar(request)))
        drawn.append((s, row, order_K, direct))
        shown.append(request)
    lean = LeanQwen3(open_model(ctx.inputs["rl"]))
    settings = corpus.settings(None, "ar", temperature=0.0, max_tokens=0)
    with ctx.progress.task("distill", count) as bar:
        texts = decode(lean, prompts, settings, batch=config.batch, on_done=lambda _: bar.advance())
    tokens = [text.tokens_T for text in texts]
    valid = [template.parse(t.tolist(), r).valid for t, r in zip(tokens, shown, strict=True)]
    kept = np.flatnonzero(np.array(valid) | (config.keep == "all"))
    if not len(kept):
        raise ArtifactError(
            f"distill: none of {count} outputs of the AR teacher is a valid ranking "
            "(train sft longer, or set distill.keep: all)"
        )
    length_N = np.array([len(tokens[i]) for i in kept], dtype=np.int32)
    tokens_NT = np.zeros((len(kept), length_N.max()), dtype=np.int32)
    for n, i in enumerate(kept):
        tokens_NT[n, : length_N[n]] = tokens[i]
    split_N, row_N, order_NK, direct_N = (
        np.array([drawn[i][column] for i in kept], dtype=dtype)
        for column, dtype in enumerate((np.int32, np.int32, np.int32, bool))
    )
    outputs = Outputs(split_N, row_N, order_NK, direct_N, length_N, tokens_NT)
    save_arrays(ctx.out / FILE, **vars(outputs))
    return {"lists": count, "kept": len(kept), "valid": round(float(np.mean(valid)), 4)}
