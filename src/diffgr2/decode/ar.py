"""Autoregressive decoding: one token a forward, the teacher's own way.

Contract: greedy or sampled, ends at the end token or at `max_tokens`; under the `permutation` rule
the entries of the answer are drawn from the candidates not yet named. Not here: batching.
"""

import numpy as np
import torch

from diffgr2.decode.answer_rule import allowed_choices, allowed_tokens, answer_state
from diffgr2.decode.draw import among
from diffgr2.decode.writer import Span, View, Writer


class ArWriter(Writer):
    _answer_at: int | None = None

    def plan(self) -> Span:
        position = len(self.prompt) - 1 + self.length
        return Span([self.token(self.length - 1)], position, [position + 1], 0)

    def update(self, view: View) -> None:
        view = self._restricted(view)
        token_T, logp_T, _ = view.choose(slice(0, 1), self.settings.temperature, self.rng)
        self.commit_next(int(token_T[0]), float(logp_T[0]))
        self.nfe += 1

    def _restricted(self, view: View) -> View:
        """Under the permutation rule, only tokens that keep the answer a permutation."""
        if self.settings.rule == "raw" or self.grammar is None:
            return view
        if self._answer_at is None:
            self._answer_at = self.grammar.find(self.tokens_T[: self.length])
            if self._answer_at is None:
                return view
        state = answer_state(self.grammar, self._answer_at, self.tokens_T)
        here = np.argwhere(self.grammar.slots(state.start) == self.length)
        if not len(here):
            return view
        allowed = allowed_tokens(state, allowed_choices(state), *here[0].tolist())
        if not len(allowed):  # candidates spelled alike: no permutation can be written
            return view
        allowed_A = torch.from_numpy(allowed).to(view.logp_TV.device)
        logp_TV = torch.full_like(view.logp_TV, -torch.inf)
        logp_TV[:, allowed_A] = among(view.logp_TV[:, allowed_A])
        top_T = logp_TV.argmax(-1)
        top_logp_T = logp_TV.gather(-1, top_T[:, None])[:, 0]
        return View(logp_TV, top_T.cpu().numpy(), top_logp_T.cpu().numpy())
