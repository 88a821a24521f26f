"""Decoding in shares: every process decodes its part, all of them get everything.

Contract: `decode_in_shares` gives every rank what `decode.batch.decode` gives one process, in its
order, and the seconds of decoding of all ranks, summed: what it would take one. Each rank has a
piece of neighbours, so samples of one prompt mostly stay together; sizes differ by one at most. A
draw belongs to its request (`streams`), never to a rank. All ranks call it with the same
requests. Not here: decoding itself, and how ranks wait (`dist`).
"""

import time
from collections.abc import Sequence
from typing import Any

from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.model.backend import Backend
from diffgr2.train import dist
from diffgr2.types import Trajectory


def decode_in_shares(
    model: Backend, requests: Sequence[DecodeRequest], settings: DecodeSettings, **how: Any
) -> tuple[list[Trajectory], float]:
    """See the module's docstring; `how` is what `decode` takes besides, `on_done` of this part."""
    spent = 0.0

    def work(mine: range) -> list[Trajectory]:
        nonlocal spent
        start = time.perf_counter()
        texts = decode(model, [requests[n] for n in mine], settings, **how)
        spent = time.perf_counter() - start
        return texts

    texts = dist.in_shares(len(requests), work)
    return texts, sum(dist.gather(spent))
