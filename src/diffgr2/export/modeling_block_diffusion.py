"""A Qwen3 model that writes block after block, for `AutoModelForCausalLM` with remote code.

Contract: this one file, beside the weights, is all that an exported directory needs besides
`transformers`; it imports nothing of `diffgr2`. `block_generate` denoises a block of mask tokens,
commits what is surer than the threshold (and the surest in any case), and moves on; it writes the
tokens of diffgr2's `block` decoder under the rule `raw`. The class is a `Qwen3ForCausalLM`
otherwise, so `generate` is its autoregressive decoder. Not here: the grammar, which holds a
response to its template, and batches: one prompt at a time.

Letters: Q tokens of a forward, K positions seen, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM


class BlockDiffusionConfig(Qwen3Config):
    """Qwen3's, and the sections `block_diffusion` (training) and `block_decoding` (defaults)."""

    model_type = "diffgr2"


class SDARConfig(BlockDiffusionConfig):
    """The same under the name that SDAR engines know."""

    model_type = "sdar"

    @property
    def rope_theta(self) -> float:
        """Engines ask for it here and take 10,000 where there is none, which v5 makes of it."""
        parameters: Any = self.rope_parameters
        return float(parameters["rope_theta"])


@dataclass
class BlockOutput:
    """What was written for one prompt."""

    tokens: list[int]  # the response alone, with its end token
    steps: list[int]  # in which denoising step each was committed
    forwards: int  # denoising steps
    finished: bool  # it ends with an end token


@dataclass(frozen=True)
class _Layout:
    """Where blocks lie in a document, and how far a clean token sees."""

    prompt: int
    size: int
    shift: int
    causal: bool

    def end(self, position: int) -> int:
        """One past the last position of a block."""
        return ((position + self.shift) // self.size + 1) * self.size - self.shift

    def sees(self, position: int) -> int:
        if self.causal:
            return position + 1
        end = self.end(position)
        # The prompt's keys are made before there is a response.
        return min(end, self.prompt) if position < self.prompt else end


class BlockDiffusionForCausalLM(Qwen3ForCausalLM):
    """See the module's docstring."""

    config_class = BlockDiffusionConfig

    @torch.no_grad()
    def block_generate(
        self,
        input_ids: Sequence[int] | Tensor,
        max_new_tokens: int = 256,
        *,
        threshold: float | None = None,
        clean_kv: str | None = None,
        end_token_id: int | None = None,
        streamer: Any = None,
    ) -> BlockOutput:
        """Write a response; `streamer` has `put` and `end` like those of transformers.

        It is given the prompt, then tokens as soon as all before them stand.
        """
        prompt = torch.as_tensor(input_ids, device=self.device).reshape(-1)
        if isinstance(input_ids, Tensor) and input_ids.dim() > 1 and len(input_ids) > 1:
            raise ValueError("block_generate: one prompt at a time")
        trained, chosen = self.config.block_diffusion, self.config.block_decoding
        tau = float(chosen["threshold"] if threshold is None else threshold)
        end_id = chosen["end_token_id"] if end_token_id is None else end_token_id
        layout = self._layout(len(prompt), clean_kv or chosen["clean_kv"])
        shifted = trained["alignment"] == "shifted"
        # What stands in the document; the mask where nothing does yet.
        size = layout.end(len(prompt) + max_new_tokens)
        ids = torch.full((size,), trained["mask_token_id"], device=self.device)
        ids[: len(prompt)] = prompt
        cache = DynamicCache()
        self._feed(ids, 0, len(prompt), [layout.sees(p) for p in range(len(prompt))], cache)
        steps = torch.full((size,), -1, device=self.device)
        start = at = len(prompt)  # of the block; of the first open position
        limit, forwards, finished = len(prompt) + max_new_tokens, 0, False
        if streamer is not None:
            streamer.put(prompt.cpu())
        while at < limit and not finished:
            end = layout.end(start)
            first = start - shifted  # the token before a shifted block predicts its first
            _keep(cache, first)
            sees = [layout.sees(p) for p in range(first, start)] + [end] * (end - start)
            logits_QV = self._feed(ids, first, end, sees, cache)[: end - start]
            _keep(cache, start)
            self._commit(logits_QV, ids[start:end], steps[start:end], tau, forwards)
            forwards, before = forwards + 1, at
            while at < min(limit, end) and steps[at] >= 0 and not finished:
                finished, at = int(ids[at]) == end_id, at + 1
            if streamer is not None and at > before:
                streamer.put(ids[before:at].cpu())
            if at == end:  # the block is clean: its keys and values are the next block's context
                self._feed(ids, start, end, [layout.sees(p) for p in range(start, end)], cache)
                start = end
        if streamer is not None:
            streamer.end()
        written = slice(len(prompt), at)
        return BlockOutput(ids[written].tolist(), steps[written].tolist(), forwards, finished)

    def _layout(self, prompt: int, clean_kv: str) -> _Layout:
        trained = self.config.block_diffusion
        if clean_kv not in ("causal", "block_causal"):
            raise ValueError(f"clean_kv {clean_kv!r}: causal or block_causal")
        if trained["clean_attention"] not in ("either", clean_kv):
            raise ValueError(f"clean_kv {clean_kv}: trained {trained['clean_attention']}")
        size = trained["block_size"]
        shift = 0 if trained["origin"] == "document" else -prompt % size
        return _Layout(prompt, size, shift, clean_kv == "causal")

    def _feed(
        self, ids: Tensor, first: int, end: int, sees: list[int], cache: DynamicCache
    ) -> Tensor:
        """Logits [Q, V] of the document's positions from `first` on; their keys join the cache."""
        reach = torch.tensor(sees, device=self.device)
        hidden_QK = torch.arange(end, device=self.device)[None, :] >= reach[:, None]
        # Additive, because a boolean mask means something else to eager attention.
        mask_QK = torch.zeros(hidden_QK.shape, dtype=self.dtype, device=self.device)
        mask_QK.masked_fill_(hidden_QK, torch.finfo(self.dtype).min)
        made = self(
            input_ids=ids[None, first:end],
            attention_mask=mask_QK[None, None],
            position_ids=torch.arange(first, end, device=self.device)[None],
            past_key_values=cache,
            use_cache=True,
        )
        return made.logits[0]

    def _commit(
        self, logits_QV: Tensor, ids_Q: Tensor, steps_Q: Tensor, threshold: float, step: int
    ) -> None:
        """Write what is surer than the threshold, and the surest; the mask is no answer."""
        logits_QV = logits_QV.float()
        logits_QV[:, self.config.block_diffusion["mask_token_id"]] = -torch.inf
        sure_Q, token_Q = torch.log_softmax(logits_QV, -1).max(-1)
        sure_Q = sure_Q.exp().masked_fill(steps_Q >= 0, -1.0)
        commit_Q = sure_Q > threshold
        commit_Q[sure_Q.argmax()] = True
        commit_Q &= steps_Q < 0
        ids_Q[commit_Q] = token_Q[commit_Q].to(ids_Q.dtype)
        steps_Q[commit_Q] = step


def _keep(cache: DynamicCache, length: int) -> None:
    """Forget what stands behind `length`; a negative number is what every version understands."""
    more = cache.get_seq_length() - length
    if more > 0:
        cache.crop(-more)


class SDARForCausalLM(BlockDiffusionForCausalLM):
    """The same under the name that SDAR engines know."""

    config_class = SDARConfig
