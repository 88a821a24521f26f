"""Autoregressive decoding: one decision a forward, the teacher's own way.

Contract: greedy or sampled; ends at the end token, at the grammar's end or at `max_tokens`. A run
of tokens that the grammar leaves no choice about rides with the next forward. Not here: batching.
"""

from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.writer import Writer
from diffgr2.model.backend import Span, View


class ArWriter(Writer):
    def __init__(self, key: int, request: DecodeRequest, settings: DecodeSettings) -> None:
        super().__init__(key, request, settings)
        self._fed = -1  # the first position that no forward has seen; −1: the prompt's last token
        self.advance()

    def plan(self) -> Span:
        ids = [self.token(at) for at in range(self._fed, self.length)]
        start = len(self.prompt) + self._fed
        return Span(ids, start, [start + i + 1 for i in range(len(ids))], len(ids) - 1)

    def update(self, view: View) -> None:
        self._fed, at = self.length, self.length
        found = self.wants(view, 0, at)
        self.commit(at, found.token, self.nfe, found.logp, found.level)
        self.nfe += 1
        self.advance()
