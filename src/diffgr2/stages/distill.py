"""The AR teacher's own greedy outputs: what conversion fine-tuning learns from.

Contract: decodes training and validation lists greedily with the AR teacher, shown at all lengths,
some shuffled, some without part of their evidence, some answering directly, and keeps the valid
outputs. Deterministic targets are what makes confident parallel commits possible; of a strength its
expected level is kept, which says more than the level that was written. Processes
decode in shares. Writes `outputs.safetensors` (an `Outputs`). Not here: noise and training (`cft`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.config import Answering
from diffgr2.decode.batch import DecodeRequest
from diffgr2.errors import ArtifactError
from diffgr2.model.backends import open_backend
from diffgr2.pipeline import StageContext
from diffgr2.prompts.request import MISSING, Request
from diffgr2.stages.common import answer_to_learn
from diffgr2.stages.corpus import KNOWN, Corpus, Shown, open_corpus
from diffgr2.streams import generator
from diffgr2.train.dist import share
from diffgr2.train.shares import decode_in_shares
from diffgr2.types import Trajectory

FILE = "outputs.safetensors"
ANSWERS: tuple[Answering, ...] = ("said", "written")


@dataclass(frozen=True)
class Outputs:
    """N kept outputs: which list, what was shown of it and how, what was written."""

    split_N: np.ndarray  # index into corpus.KNOWN
    row_N: np.ndarray
    places_NK: np.ndarray  # the candidates in shown order, −1 behind the last
    buckets_NKF: np.ndarray  # their evidence as shown
    direct_N: np.ndarray
    answer_N: np.ndarray  # index into ANSWERS
    length_N: np.ndarray
    tokens_NT: np.ndarray
    level_NT: np.ndarray  # expected levels where strengths stand, NaN elsewhere

    def __len__(self) -> int:
        return len(self.row_N)

    def request(self, corpus: Corpus, n: int) -> Request:
        places = self.places_NK[n][self.places_NK[n] >= 0]
        request = corpus.request(KNOWN[int(self.split_N[n])], int(self.row_N[n]), places)
        return replace(request, buckets_KF=self.buckets_NKF[n, : len(places)])

    def prompt(self, corpus: Corpus, n: int) -> list[int]:
        return corpus.template.prompt(self.request(corpus, n), reasoning=not self.direct_N[n])

    def answer(self, n: int) -> Answering:
        return ANSWERS[int(self.answer_N[n])]

    def response(self, n: int) -> np.ndarray:
        return self.tokens_NT[n, : self.length_N[n]].astype(np.int64)

    def levels(self, n: int) -> np.ndarray:
        return self.level_NT[n, : self.length_N[n]]

    @classmethod
    def load(cls, directory: Path) -> Outputs:
        return cls(**load_arrays(directory / FILE))


@dataclass(frozen=True)
class Asked:
    """One list as it is put to the teacher."""

    split: int
    row: int
    shown: Shown
    direct: bool
    answer: Answering

    def request(self, corpus: Corpus) -> DecodeRequest:
        template, how = corpus.template, {"reasoning": not self.direct}
        grammar = template.grammar(self.shown.request, answer=self.answer, **how)
        return DecodeRequest(template.prompt(self.shown.request, **how), grammar)

    def valid(self, corpus: Corpus, text: Trajectory) -> bool:
        """Whether the text is an answer of the kind that was asked for."""
        reading = corpus.template.read(text.tokens_T.tolist(), self.shown.request)
        if self.answer == "said":
            return reading.complete
        return reading.written is not None and reading.written.valid


def asked(corpus: Corpus, config: Any, seed: int) -> list[Asked]:
    """The lists that the teacher reads, in order; selection users' lists are not among them."""
    known = [
        (s, row) for s, split in enumerate(KNOWN) for row in np.flatnonzero(~corpus.selected(split))
    ]
    rng, count = generator(seed, "distill"), min(config.lists or len(known), len(known))
    result = []
    for n in np.sort(rng.choice(len(known), count, replace=False)):
        s, row = known[n]
        shown = corpus.shown(KNOWN[s], int(row), config, rng)
        direct = bool(rng.random() < config.direct)
        answer = answer_to_learn(corpus, rng, reasoning=not direct)
        result.append(Asked(s, int(row), shown, direct, answer))
    return result


def packed(kept: Sequence[tuple[Asked, Trajectory]], k_max: int) -> Outputs:
    """The outputs as arrays."""
    n, longest = len(kept), max(len(text.tokens_T) for _, text in kept)
    fields = kept[0][0].shown.request.buckets_KF.shape[1]
    places_NK = np.full((n, k_max), -1, dtype=np.int16)
    buckets_NKF = np.full((n, k_max, fields), MISSING, dtype=np.uint8)
    tokens_NT = np.zeros((n, longest), dtype=np.int32)
    level_NT = np.full((n, longest), np.nan, dtype=np.float32)
    for i, (one, text) in enumerate(kept):
        k, length = one.shown.request.k, len(text.tokens_T)
        places_NK[i, :k], buckets_NKF[i, :k] = one.shown.places, one.shown.request.buckets_KF
        tokens_NT[i, :length] = text.tokens_T
        if text.level_T is not None:
            level_NT[i, :length] = text.level_T
    return Outputs(
        split_N=np.array([one.split for one, _ in kept], dtype=np.int32),
        row_N=np.array([one.row for one, _ in kept], dtype=np.int32),
        places_NK=places_NK,
        buckets_NKF=buckets_NKF,
        direct_N=np.array([one.direct for one, _ in kept], dtype=bool),
        answer_N=np.array([ANSWERS.index(one.answer) for one, _ in kept], dtype=np.int32),
        length_N=np.array([len(text.tokens_T) for _, text in kept], dtype=np.int32),
        tokens_NT=tokens_NT,
        level_NT=level_NT,
    )


def run(ctx: StageContext) -> dict[str, Any]:
    config, corpus = ctx.recipe.distill, open_corpus(ctx.inputs, ctx.recipe)
    lists = asked(corpus, config, ctx.seed)
    prompts = [one.request(corpus) for one in lists]
    teacher = open_backend(ctx.inputs["rl"])
    settings = corpus.settings(None, "ar", temperature=0.0, max_tokens=0)
    with ctx.progress.task("distill", len(share(len(lists)))) as bar:
        how: dict[str, Any] = {"batch": config.batch, "on_done": lambda _: bar.advance()}
        texts, _ = decode_in_shares(teacher, prompts, settings, **how)
    valid = [one.valid(corpus, text) for one, text in zip(lists, texts, strict=True)]
    pairs = zip(lists, texts, valid, strict=True)
    kept = [(one, text) for one, text, good in pairs if good or config.keep == "all"]
    if not kept:
        raise ArtifactError(
            f"distill: none of {len(lists)} outputs of the AR teacher is a valid ranking "
            "(train sft longer, or set distill.keep: all)"
        )
    outputs = packed(kept, ctx.recipe.candidates.k_max)
    save_arrays(ctx.out / FILE, **vars(outputs))
    forwards = sum(text.nfe for text in texts) / sum(len(text.tokens_T) for text in texts)
    return {
        "lists": len(lists),
        "kept": len(kept),
        "valid": round(float(np.mean(valid)), 4),
        "forwards_per_token": round(forwards, 4),
    }
