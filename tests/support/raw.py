"""HTTP by hand: bytes out, bytes back, for what no client library would send."""

import json
import socket
import time
from typing import Any

JSON = "content-type: application/json"


def head_of(answer: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of the first final answer; 0 where there is none."""
    while answer.startswith(b"HTTP/1.1 1"):  # interim
        answer = answer.partition(b"\r\n\r\n")[2]
    if not answer.startswith(b"HTTP/1.1 "):
        return 0, {}
    first, *lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first[9:12]), {name.lower(): value.strip() for name, _, value in pairs}


def body_of_answer(answer: bytes) -> bytes:
    """What follows the headers of the first final answer."""
    while answer.startswith(b"HTTP/1.1 1"):
        answer = answer.partition(b"\r\n\r\n")[2]
    return answer.partition(b"\r\n\r\n")[2]


def request(
    body: bytes | Any = None,
    *lines: str,
    method: str = "POST",
    target: str = "/rerank",
    host: str = "localhost",
    close: bool = True,
    kind: str = JSON,
) -> bytes:
    """A request as bytes; without a body it has no length."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    head = [f"{method} {target} HTTP/1.1", f"host: {host}", *lines]
    if close:
        head.append("connection: close")
    if data is not None:
        head += [kind, f"content-length: {len(data)}"]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + (data or b"")


def talk(
    port: int, *parts: bytes, pause: float = 0.0, eof: bool = False, wait: float = 30
) -> bytes:
    """Everything the server says to these parts, until it closes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            if eof:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it may have closed already; what it said is read below
        while True:
            try:
                part = connection.recv(65536)
            except OSError:
                return answer
            if not part:
                return answer
            answer += part
