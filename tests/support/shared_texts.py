"""Texts that processes decode in shares: random weights, the tiny corpus's prompts, own streams.

Contract: `found(counts)` decodes so many requests each time, through the very weights that a
sharded model lends, and says in plain values what came out and how many this process decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from diffgr2.config import TrainConfig
from diffgr2.decode.settings import DecodeRequest
from diffgr2.train import dist, shares
from diffgr2.train.lending import policy
from diffgr2.types import Trajectory
from support import tiny_stages
from support.tiny_corpus import corpus


def requests(n: int) -> list[DecodeRequest]:
    """Samples of a few prompts, each with a stream of its own."""
    asked = tiny_stages.lessons()
    made = [asked[i // 3 % len(asked)][0].request(corpus()) for i in range(n)]
    return [replace(r, stream=(3, "shares", number)) for number, r in enumerate(made)]


def plain(text: Trajectory) -> dict[str, Any]:
    return {"tokens": text.tokens_T.tolist(), "logp": text.logprob_T.tolist(), "nfe": text.nfe}


def found(counts: Sequence[int]) -> dict[str, Any]:
    """Per number of requests and way of batching: the texts; and what this process decoded."""
    net, own, whole = tiny_stages.fresh(), [], shares.decode

    def counted(model: Any, mine: Sequence[DecodeRequest], *given: Any, **how: Any) -> Any:
        own.append(len(mine))
        return whole(model, mine, *given, **how)

    dist.shard(net, TrainConfig.model_validate({"steps": 1, "rows": 1, "micro_rows": 1}))
    shares.decode = counted
    texts: dict[str, Any] = {}
    settings = corpus().settings(None, "ar", temperature=1.0, max_tokens=40)
    try:
        with policy(net) as backend:
            for n in counts:
                for batch in (1, 64):
                    told, seconds = shares.decode_in_shares(
                        backend, requests(n), settings, batch=batch
                    )
                    assert seconds > 0
                    texts[f"{n} by {batch}"] = [plain(text) for text in told]
    finally:
        shares.decode = whole
    return {"texts": texts, "own": own}
