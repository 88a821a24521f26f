"""A language model's endpoint that the llm teacher's tests talk to, and what they ask of it.

`Endpoint` is a small HTTP/1.1 server on 127.0.0.1 in a thread of its own. It counts what it
answered in full, so that the tests can tell what was paid for from what was kept.
"""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from diffgr2.config import LlmConfig
from diffgr2.progress import Progress
from diffgr2.traces.llm import TracePrompt, TraceReport, generate
from diffgr2.types import Answer

K = 4
SECRET = "sk-very-secret-key-123"


def chat_body(texts: list[str], finish: str = "stop", usage: bool = True) -> bytes:
    choices = [
        {
            "index": i,
            "finish_reason": finish,
            "message": {"role": "assistant", "content": text},
        }
        for i, text in enumerate(texts)
    ]
    body: dict[str, Any] = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": choices,
    }
    if usage:
        body["usage"] = {
            "prompt_tokens": 10,
            "completion_tokens": 3 * len(texts),
            "total_tokens": 10 + 3 * len(texts),
        }
    return json.dumps(body).encode()


def http(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def error(status: int, message: str, *headers: str, code: str | None = None) -> bytes:
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    return http(status, body, *headers)


RESET, HANG, DRIP = b"reset", b"hang", b"drip"


class Endpoint:
    """Serves `answer(question, request, tries)`; `question` is the last message's text."""

    def __init__(self, answer: Callable[[str, dict[str, Any], int], bytes]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.tries: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()  # full 200 answers by question
        self.faults: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Endpoint:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next(
                    int(line.split(":")[1])
                    for line in head.split("\r\n")
                    if line.lower().startswith("content-length:")
                )
                request = json.loads(await reader.readexactly(length))
                question = request["messages"][-1]["content"]
                self.requests.append(request)
                self.headers.append(head)
                self.tries[question] += 1
                data = self.answer(question, request, self.tries[question])
                if data == RESET:
                    writer.transport.abort()
                    return
                if data == HANG:
                    await reader.read()  # until the client has had enough
                    return
                if data == DRIP:
                    writer.write(http(200, b"", length=10_000))
                    while not reader.at_eof():
                        writer.write(b" ")
                        await writer.drain()
                        await asyncio.sleep(0.05)
                    return
                writer.write(data)
                await writer.drain()
                if b"cut short" in data:
                    return
                if data.startswith(b"HTTP/1.1 200") and data.endswith(b"}"):
                    self.paid[question] += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def parse(text: str) -> Answer:
    """`order: 2 0 1 3`, anything else is unparseable."""
    head, _, tail = text.partition(": ")
    if head != "order":
        return Answer((), ("unparseable",))
    order = tuple(int(word) for word in tail.split())
    failures = [] if sorted(order) == list(range(K)) else ["missing"]
    return Answer(order, tuple(failures), reasoning="Because.")


def ordered(first: int) -> str:
    return "order: " + " ".join(str(i) for i in [first, *(i for i in range(K) if i != first)])


def prompt(number: int | str, target: int | None = None) -> TracePrompt:
    text = f"question {number}"
    messages = ({"role": "system", "content": "expert"}, {"role": "user", "content": text})
    return TracePrompt(f"p{number}", messages, parse, target)


def settings(url: str, **changes: Any) -> LlmConfig:
    values: dict[str, Any] = {
        "base_url": url,
        "api_key_env": "DIFFGR2_TEST_KEY",
        "timeout_s": 20.0,
    }
    return LlmConfig(**{**values, **changes})


def quiet() -> Progress:
    return Progress(io.StringIO())


def figures(report: TraceReport, *names: str) -> tuple[int | float, ...]:
    return tuple(report.metrics[name] for name in names)


def records_of(path: Path) -> list[dict[str, Any]]:
    """Every record of a journal that is not open."""
    with closing(sqlite3.connect(path)) as db:
        return [json.loads(text) for (text,) in db.execute("SELECT record FROM records")]


def samples(*texts: str) -> Callable[[str, dict[str, Any], int], bytes]:
    """Answers a question's tries with these texts in turn."""
    return lambda question, request, tries: http(200, chat_body([texts[(tries - 1) % len(texts)]]))


def run(endpoint: Endpoint, tmp_path: Path, prompts: list[TracePrompt], **changes: Any):
    config = settings(endpoint.url, **changes)
    return generate(prompts, config, tmp_path / "j.sqlite", quiet())
