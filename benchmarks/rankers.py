"""Rankers that write nothing: what else a list may be given to.

Contract: a cross-encoder of MiniLM-L6's dimensions with nobody's weights, which reads every
candidate as a document of so many tokens, in ONNX Runtime; and boosted trees on the evidence that
our prompts show. Both see a list's evidence or documents as given. Not here: engines that write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from contest import Contest, Texts
from machine import Shape, Work

from diffgr2.prompts.request import Request
from diffgr2.types import MISS

DOCUMENT = 128  # tokens
MINILM = Shape(6, 384, 12, 12, 32, 1536, 30_522, ffn_matrices=2)


class CrossEncoder:
    """See `contest.Way`."""

    equals = ""

    def __init__(self, contest: Contest, batch: int, threads: int) -> None:
        from onnx_graphs import cross_encoder, session_of

        shape = (MINILM.layers, MINILM.dim, MINILM.heads, MINILM.ffn, MINILM.vocab)
        self.session: Any = session_of(cross_encoder(*shape), threads)
        self.tokens = np.random.default_rng(0).integers(0, MINILM.vocab, (1, DOCUMENT))

    def rank(self, requests: Sequence[Request]) -> Texts:
        """List by list: together they would only want more memory."""
        for request in requests:
            documents = np.repeat(self.tokens, request.k, axis=0)
            (score_K1,) = self.session.run(None, {"ids": documents})
            np.argsort(-score_K1[:, 0], kind="stable")
        return [[] for _ in requests]

    def work(self, requests: Sequence[Request]) -> Work:
        whole = Work()
        for request in requests:
            whole += MINILM.forward([([DOCUMENT] * DOCUMENT, 0)] * request.k)
        return whole


class Trees:
    """LightGBM, fitted on the lists of validation users."""

    equals = ""

    def __init__(self, contest: Contest, batch: int, threads: int) -> None:
        import lightgbm

        corpus = contest.corpus
        lists = corpus.judged("validation")
        hit_L = lists.hit_L != MISS
        buckets_LKF = corpus.buckets["validation"][hit_L, : corpus.k]
        label_LK = np.arange(corpus.k) == lists.hit_L[hit_L, None]
        self.threads = threads
        given = {"objective": "lambdarank", "num_leaves": 15, "verbose": -1, "seed": 0}
        data = lightgbm.Dataset(
            buckets_LKF.reshape(-1, buckets_LKF.shape[-1]).astype(np.float32),
            label_LK.ravel().astype(np.int32),
            group=[corpus.k] * len(buckets_LKF),
        )
        given |= {"num_threads": threads, "deterministic": True}
        self.trees = lightgbm.train(given, data, num_boost_round=150)

    def rank(self, requests: Sequence[Request]) -> Texts:
        evidence_NF = np.concatenate([r.buckets_KF for r in requests]).astype(np.float32)
        score_N = self.trees.predict(evidence_NF, num_threads=self.threads)
        ends = np.cumsum([r.k for r in requests])[:-1]
        for score_K in np.split(np.asarray(score_N), ends):
            np.argsort(-score_K, kind="stable")
        return [[] for _ in requests]

    def work(self, requests: Sequence[Request]) -> None:
        """Comparisons are neither arithmetic nor memory."""


ENTRIES = {"MiniLM-L6 cross-encoder, ONNX Runtime": CrossEncoder, "LightGBM": Trees}
