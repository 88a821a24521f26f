"""Token batches: what one forward of a training stage reads, and which tokens it is scored on.

Contract: a `TokenBatch` is the rows of one forward, plain causal unless it brings positions and a
mask; a `Micro` adds N predictions, each with the flat place (row * width + t) at which it stands
and its target. `imitation` packs texts for a causal forward, right-padded, where response token t
is predicted at t − 1. `Strengths` are those of its predictions that state a list's strengths, for
losses on whole lists. Not here: block layouts (`stages.noisy`) and losses (`objectives`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from diffgr2.model.masks import Marks
from diffgr2.objectives.likelihood import between_logp, logits_at
from diffgr2.objectives.soft import expected_levels, listwise_kl
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.streams import permutation


@dataclass(frozen=True)
class Tensors:
    """Holds tensors that travel together."""

    def to(self, device: torch.device) -> Self:
        """A copy on the device."""
        moved = {name: part.to(device) for name, part in vars(self).items() if part is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class TokenBatch(Tensors):
    """The rows of one forward."""

    ids_BT: Tensor
    position_BT: Tensor | None = None
    marks_BT: Marks | None = None  # who sees whom; None = causal
    length_B: Tensor | None = None  # tokens of each row that are no padding

    @property
    def attends_B1TT(self) -> Tensor | None:  # noqa: N802 (a tensor like its neighbours)
        """The mask, made when it is asked for."""
        return None if self.marks_BT is None else self.marks_BT.dense()

    @property
    def width(self) -> int:
        return self.ids_BT.shape[1]

    def flat(self, row_N: Tensor, place_N: Tensor) -> Tensor:
        """Flat places of these places of these rows."""
        return row_N * self.width + place_N

    def logits(self, model: nn.Module, index_N: Tensor, mask_id: int) -> Tensor:
        """Logits [N, V] at flat places."""
        layout = {name: part for name, part in vars(self).items() if name != "ids_BT"}
        return logits_at(model, self.ids_BT, index_N, mask_id, **layout)


@dataclass(frozen=True)
class Micro(Tensors):
    """One forward and its N predictions, each of weight 1."""

    batch: TokenBatch
    index_N: Tensor  # flat places of the predictions
    target_N: Tensor

    @property
    def count(self) -> float:
        return float(self.tokens)

    @property
    def tokens(self) -> int:
        return len(self.target_N)

    def logits(self, model: nn.Module, mask_id: int) -> Tensor:
        return self.batch.logits(model, self.index_N, mask_id)


@dataclass(frozen=True)
class WeightedMicro(Micro):
    """Predictions with weights of their own, of different kinds.

    A target is, to the share `share_N`, `other_N` instead: a strength lies between two levels.
    """

    weight_N: Tensor
    kind_N: Tensor
    other_N: Tensor
    share_N: Tensor

    def nll(self, logits_NV: Tensor) -> Tensor:
        """Negative log-likelihood [N]."""
        return -between_logp(logits_NV, self.target_N, self.other_N, self.share_N)

    def right(self, logits_NV: Tensor) -> Tensor:
        """Whether the likeliest token is one that the target has a share in [N]."""
        best_N, own_N = logits_NV.argmax(-1), self.share_N < 1
        return ((best_N == self.target_N) & own_N) | ((best_N == self.other_N) & (self.share_N > 0))

    @property
    def count(self) -> float:
        return float(self.weight_N.numpy().sum())


@dataclass(frozen=True)
class Strengths(Tensors):
    """Which M of a micro's predictions state strengths, what they should be, and of which list."""

    at_M: Tensor  # places among the micro's predictions
    level_M: Tensor  # between two levels
    list_M: Tensor  # numbers the lists from 0, without gaps
    weight_M: Tensor  # of the predictions

    @classmethod
    def of(cls, micro: WeightedMicro, list_N: Tensor, vocab: Vocabulary) -> Strengths:
        """Those whose target is a level; `list_N` says whose response a prediction is part of."""
        strength_S = torch.from_numpy(vocab.strength_ids)
        is_NS = micro.target_N[:, None] == strength_S
        at_M = is_NS.any(1).nonzero()[:, 0]
        own_M = is_NS[at_M].int().argmax(1)
        other_M = (micro.other_N[at_M][:, None] == strength_S).int().argmax(1)
        level_M = own_M + micro.share_N[at_M] * (other_M - own_M)
        list_M = torch.unique(list_N[at_M], return_inverse=True)[1]
        return cls(at_M, level_M, list_M, micro.weight_N[at_M])

    def kl(self, logits_NV: Tensor, vocab: Vocabulary, step: float) -> tuple[Tensor, Tensor]:
        """(KL [Q] of each list, see `objectives.soft`; its weight, that of its strengths [Q])."""
        strength_S = torch.from_numpy(vocab.strength_ids).to(logits_NV.device)
        logits_MS = logits_NV[self.at_M][:, strength_S]
        kl_Q = listwise_kl(expected_levels(logits_MS), self.level_M, self.list_M, step)
        return kl_Q, kl_Q.new_zeros(len(kl_Q)).index_add_(0, self.list_M, self.weight_M)


def columns(parts: Iterable[Sequence[Any]]) -> list[Tensor]:
    """The parts joined column by column; a part has one array [n] or one scalar per column."""
    wide = [np.broadcast_arrays(*part) for part in parts]
    return [torch.from_numpy(np.concatenate(column)) for column in zip(*wide, strict=True)]


def causal_batch(rows: Iterable[Sequence[int]], pad_id: int) -> TokenBatch:
    """Rows for a plain causal forward, padded on the right."""
    texts = [torch.tensor(row) for row in rows]
    length_B = torch.tensor([len(text) for text in texts])
    ids_BT = pad_sequence(texts, batch_first=True, padding_value=pad_id)
    return TokenBatch(ids_BT, length_B=length_B)


class Text(NamedTuple):
    """One training text."""

    prompt: list[int]
    response: list[int]
    kind: list[int]  # of each response token
    other: list[int] | None = None  # see `WeightedMicro`; None = every token is its own target
    share: list[float] | None = None


def imitation(texts: Sequence[Text], weights: Sequence[float], pad_id: int) -> WeightedMicro:
    """Texts whose every response token is a target and weighs what its kind does."""
    batch = causal_batch([text.prompt + text.response for text in texts], pad_id)
    row_N, place_N, target_N, kind_N, other_N, share_N = columns(
        (
            b,
            len(text.prompt) - 1 + np.arange(len(text.response)),
            text.response,
            text.kind,
            text.response if text.other is None else text.other,
            0.0 if text.share is None else text.share,
        )
        for b, text in enumerate(texts)
    )
    weight_N, index_N = (
        torch.tensor(weights, dtype=torch.float32)[kind_N],
        batch.flat(row_N, place_N),
    )
    return WeightedMicro(batch, index_N, target_N, weight_N, kind_N, other_N, share_N.float())


def epoch_order(n: int, rows: int, step: int, *parts: str | int) -> list[int]:
    """Indices of this step's rows in an endless sequence of reshuffled epochs."""
    epoch, start = divmod((step - 1) * rows, n)
    last = (step * rows - 1) // n
    orders = [permutation(n, *parts, number) for number in range(epoch, last + 1)]
    return np.concatenate(orders)[start : start + rows].tolist()


def chunks(rows: Sequence, size: int) -> Iterator[Sequence]:
    """Consecutive pieces of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
