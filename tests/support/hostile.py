"""Hostile cases: a name, the bytes that go out, the status that must come back."""

import json

from support.live import Live, idle
from support.raw import body_of_answer, head_of, request, talk

Case = tuple[str, bytes, int]


def check(live: Live, cases: list[Case]) -> None:
    """Each case's status and the one error shape; 0 stands for any but a 5xx."""
    wrong = []
    for name, message, wanted in cases:
        answer = talk(live.port, message)
        status, headers = head_of(answer)
        shaped = True
        if status >= 400 and not message.startswith(b"HEAD"):
            shaped = shape(body_of_answer(answer), headers)
        fits = status < 500 if wanted == 0 else status == wanted
        if not fits or not shaped:
            wrong.append((name, wanted, status, answer[-200:]))
    assert not wrong, "\n".join(map(str, wrong))
    assert head_of(talk(live.port, request(method="GET", target="/health/live")))[0] == 200
    assert idle(live.state)


def shape(body: bytes, headers: dict[str, str]) -> bool:
    try:
        value = json.loads(body)
        named = value["id"] == headers.get("x-request-id", value["id"])
        return named and bool(value["message"]) and headers["content-type"] == "application/json"
    except (ValueError, KeyError):
        return False
