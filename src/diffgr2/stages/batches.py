"""Token batches: from requests and traces to what one forward of a training stage needs.

Contract: `example` writes one training text (prompt, response, each response token's kind), with
its random choices (shuffled candidates, direct answer) drawn from its own stream; `CausalBatch`
packs rows for a plain causal forward, right-padded, where response token t is predicted at t − 1.
Not here: block layouts (`stages.noisy`) and losses (`objectives`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffgr2.prompts.request import Request
from diffgr2.stages.corpus import Corpus
from diffgr2.streams import generator, permutation


@dataclass(frozen=True)
class Example:
    """One training text."""

    prompt: list[int]
    response: list[int]
    kind: list[int]  # REASONING or ANSWER per response token
    request: Request


def epoch_order(n: int, rows: int, step: int, *parts: str | int) -> tuple[np.ndarray, float]:
    """Indices of this step's rows in an endless sequence of reshuffled epochs, and the epoch."""
    first = (step - 1) * rows
    picks = []
    for at in range(first, first + rows):
        epoch, place = divmod(at, n)
        picks.append((epoch, place))
    orders = {epoch: permutation(n, *parts, epoch) for epoch in {e for e, _ in picks}}
    return np.array([orders[epoch][place] for epoch, place in picks]), first / n


def shown_order(k: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """The order in which candidates are shown: mostly as they came, sometimes shuffled."""
    return rng.permutation(k) if rng.random() < share else np.arange(k)


def example(
    corpus: Corpus, split: str, n: int, *, shuffle: float, direct: float, key: Sequence[str | int]
) -> Example:
    """The training text of a split's n-th trace."""
    traces = corpus.traces[split]
    rng = generator(*key)
    request = corpus.request(split, int(traces.row_N[n]))
    order_K = shown_order(request.k, shuffle, rng)
    request, trace = request.reordered(order_K), corpus.trace(split, n).reordered(order_K)
    reasoning = bool(rng.random() >= direct)
    template = corpus.template
    response, kind = template.response(request, trace, reasoning=reasoning)
    return Example(template.prompt(request, reasoning=reasoning), response, kind, request)


@dataclass(frozen=True)
class CausalBatch:
    """Rows for one causal forward; N response tokens, predicted one position before they stand."""

    ids_BT: Tensor
    index_N: Tensor  # flat positions of the predictions
    target_N: Tensor
    weight_N: Tensor
    kind_N: Tensor
    count: float
    tokens: int

    @classmethod
    def pack(
        cls,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        weights: Sequence[Sequence[float]],
        kinds: Sequence[Sequence[int]],
        pad_id: int,
    ) -> CausalBatch:
        length = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
        ids = np.full((len(prompts), length), pad_id, dtype=np.int64)
        index: list[np.ndarray] = []
        for b, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            ids[b, : len(prompt)] = prompt
            ids[b, len(prompt) : len(prompt) + len(response)] = response
            index.append(b * length + len(prompt) - 1 + np.arange(len(response)))
        weight_N = np.concatenate([np.asarray(w, dtype=np.float32) for w in weights])
        return cls(
            torch.from_numpy(ids),
            torch.from_numpy(np.concatenate(index)),
            torch.tensor([t for response in responses for t in response]),
            torch.from_numpy(weight_N),
            torch.tensor([k for kind in kinds for k in kind]),
            float(weight_N.sum()),
            len(weight_N),
        )


def chunks(rows: Sequence, size: int) -> Iterator[Sequence]:
    """Consecutive pieces of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
