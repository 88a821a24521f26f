"""Many lists in one body: `POST /v1/rerank/batch`, answered line by line.

Contract: `{"requests": [ranking request, …]}` gives one JSON line per request, `{"index": …}` with
the answer's fields or with `error`, in the order in which they end; a bad one costs no other. The
batch holds one slot, decodes a bounded number of its lists at once, and has one deadline. Not here:
one ranking (`ranking`).
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from diffgr2.serve.door import Receive
from diffgr2.serve.keys import Caller
from diffgr2.serve.limits import Limits
from diffgr2.serve.listener import Gone
from diffgr2.serve.ranking import Ranking, problem_of
from diffgr2.serve.replies import line_of
from diffgr2.serve.schema import Ask, Problem, parse_request

Asks = list[Ask | Problem]


def asks_of(value: dict[str, Any], limits: Limits) -> Asks:
    """Each request read, or why it cannot be; runs off the event loop."""
    requests = value.get("requests")
    if not isinstance(requests, list) or not requests:
        raise Problem(422, "requests: expected a list of ranking requests", "requests")
    if len(requests) > limits.batch:
        told = f"requests: {len(requests)} given, at most {limits.batch}"
        raise Problem(422, told, "requests")
    asks: Asks = []
    for request in requests:
        try:
            if not isinstance(request, dict):
                raise Problem(422, "expected a JSON object")
            asks.append(parse_request(request, limits))
        except Problem as problem:
            asks.append(problem)
    return asks


def error_line(body: dict[str, Any]) -> bytes:
    """Why there are no more lines."""
    return line_of(body).encode() + b"\n"


async def lines_of(
    asks: Asks, rankings: list[Ranking], caller: Caller, receive: Receive
) -> AsyncGenerator[bytes]:
    """One line per request, as they end."""
    state = rankings[0].state
    turns = asyncio.Semaphore(state.limits.batch_parallel)
    ended: asyncio.Queue[tuple[int, dict[str, Any]] | None] = asyncio.Queue()  # None: it left
    leaving = asyncio.Event()

    async def until_left() -> dict[str, Any]:
        await leaving.wait()
        return {"type": "http.disconnect"}

    async def one(index: int, ask: Ask | Problem, ranking: Ranking) -> None:
        async with turns:
            try:
                if isinstance(ask, Problem):
                    raise ask
                await ranking.begin(ask, caller, until_left)
                async for _ in ranking.steps():
                    pass
                answer = ranking.answer()
                value = answer if isinstance(answer, dict) else {"results": answer}
            except Gone:
                return
            except Exception as error:
                value = problem_of(error, ranking.request_id).body(ranking.request_id)
            finally:
                ranking.close()
            ended.put_nowait((index, value))

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leaving.set()
        ended.put_nowait(None)

    watching = asyncio.create_task(watch())
    pairs = enumerate(zip(asks, rankings, strict=True))
    tasks = [asyncio.create_task(one(index, *pair)) for index, pair in pairs]
    try:
        for _ in tasks:
            line = await ended.get()
            if line is None:
                raise Gone
            index, value = line
            yield line_of({"index": index, **value}).encode() + b"\n"
    finally:
        for task in (watching, *tasks):
            task.cancel()
        await asyncio.gather(watching, *tasks, return_exceptions=True)
