"""The stock model as the decoders' reference asks it: one whole document per forward, no cache.

Contract: `SlowModel.logp(ids, sees)` are the log-probabilities of every position of a document in
which token t sees the positions below `sees[t]`, by the stock model under an explicit boolean
mask; the mask token is never predicted. Not here: decoding (`decode.reference`), and speed.
"""

import torch

from diffgr2.model.load import Backbone


class SlowModel:
    """See the module's docstring."""

    def __init__(self, module: Backbone, mask_id: int) -> None:
        self.module, self.mask_id = module, mask_id

    @torch.no_grad()
    def logp(self, ids: list[int], sees: list[int]) -> torch.Tensor:
        """[T, V]"""
        mask = torch.arange(len(ids))[None, :] < torch.tensor(sees)[:, None]
        logits = self.module(
            input_ids=torch.tensor([ids]),
            attention_mask=mask[None, None],
            position_ids=torch.arange(len(ids))[None],
        ).logits[0]
        logits[:, self.mask_id] = -torch.inf
        return torch.log_softmax(logits, -1)
