"""Log-likelihoods of chosen positions: the one way in which training calls the backbone.

Contract: `logits_at` runs the trunk once and the head only where a loss needs it, with the mask
token at −inf, which no response holds. Losses are sums; who divides is the training loop. Not here:
which positions, and under which attention (`model.masks`, `stages`).

Letters: B batch, T tokens, N chosen positions, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffgr2.model import joined, packed
from diffgr2.model.masks import Marks


def logits_at(
    model: Any,  # a Qwen3ForCausalLM: trunk `model.model`, head `model.lm_head`
    ids_BT: Tensor,
    index_N: Tensor,
    mask_id: int,
    *,
    attends_B1TT: Tensor | None = None,
    marks_BT: Marks | None = None,
    position_BT: Tensor | None = None,
    length_B: Tensor | None = None,
) -> Tensor:
    """Logits [N, V] at flat positions `index_N` (row * T + t); causal if no mask is given.

    Who sees whom is a mask or marks. `length_B` says how many tokens of each row are no padding,
    which a CPU, or a model whose attention takes joined rows, then does not compute.
    """
    if length_B is not None and joined.chosen(model):
        if attends_B1TT is not None:
            raise ValueError("joined rows are told apart by marks, not by a mask")
    elif marks_BT is not None:
        attends_B1TT = marks_BT.dense()

    def work() -> Tensor:
        if length_B is not None and joined.chosen(model):
            given = (ids_BT, index_N, length_B)
            hidden_ND = joined.hidden_at(model, *given, marks_BT=marks_BT, position_BT=position_BT)
            return model.lm_head(hidden_ND).float()
        layout = {"attends_B1TT": attends_B1TT, "position_BT": position_BT}
        if length_B is not None and packed.able(model):
            hidden_ND = packed.hidden_at(model, ids_BT, index_N, length_B, **layout)
            return packed.head(model, hidden_ND).float()
        hidden_BTD = model.model(
            input_ids=ids_BT,
            attention_mask=attends_B1TT,
            position_ids=position_BT,
            use_cache=False,
        ).last_hidden_state
        return model.lm_head(hidden_BTD.flatten(0, 1)[index_N]).float()

    # A sharded model gathers its weights around a call of the whole; trunk and head are parts.
    around = getattr(model, "around", None)
    logits_NV = work() if around is None else around(work)
    mask = torch.tensor([mask_id], device=logits_NV.device)
    return logits_NV.index_fill(-1, mask, -torch.inf)


def chosen_logp(logits_NV: Tensor, target_N: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability [N] of each target at a temperature (0 counts as 1)."""
    if temperature not in (0.0, 1.0):
        logits_NV = logits_NV / temperature
    return -F.cross_entropy(logits_NV, target_N, reduction="none")


def between_logp(logits_NV: Tensor, target_N: Tensor, other_N: Tensor, share_N: Tensor) -> Tensor:
    """Expected log-probability [N] of targets that are, to a share, another token."""
    logp_NV = torch.log_softmax(logits_NV, -1)
    own_N = logp_NV.gather(-1, target_N[:, None])[:, 0]
    other_N = logp_NV.gather(-1, other_N[:, None])[:, 0]
    return torch.where(share_N > 0, (1 - share_N) * own_N + share_N * other_N, own_N)


def allowed_logp(
    logits_NV: Tensor,
    target_N: Tensor,
    allowed_NA: Tensor,
    banned_NB: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probability [N] of each target among the tokens that were allowed, at a temperature.

    Rows of `allowed_NA` are padded with −1; an empty one allows all but `banned_NB`, which is
    padded with a token that is −inf anyway.
    """
    if temperature not in (0.0, 1.0):
        logits_NV = logits_NV / temperature
    own_N = logits_NV.gather(-1, target_N[:, None])[:, 0]
    there_NA = allowed_NA >= 0
    free_N = ~there_NA.any(-1)
    logits_NA = logits_NV.gather(-1, allowed_NA.clamp_min(0)).masked_fill(~there_NA, -torch.inf)
    # An empty row would have no slope; its value is not used.
    logits_NA = torch.where(free_N[:, None], torch.zeros_like(logits_NA), logits_NA)
    total_N = torch.logsumexp(logits_NA, -1)
    if free_N.any():
        open_NV = logits_NV.scatter(-1, banned_NB, -torch.inf) if banned_NB.numel() else logits_NV
        total_N = torch.where(free_N, torch.logsumexp(open_NV, -1), total_N)
    return own_N - total_N


def entropy_of(logits_NV: Tensor) -> Tensor:
    """Entropy [N] in nats."""
    logp_NV = torch.log_softmax(logits_NV, -1)
    return -(logp_NV.exp() * logp_NV.masked_fill(logp_NV == -torch.inf, 0.0)).sum(-1)
