"""Reading what an endpoint sent: every response is samples or a ValueError, never anything else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffgr2.config import LlmConfig
from diffgr2.errors import ConfigError, RemoteError
from diffgr2.traces.client import ChatClient, PromptRefusedError, Sample, UnansweredError

pytest.importorskip("openai")

URL = "http://127.0.0.1:9/v1"
CLIENT = ChatClient(LlmConfig(base_url=URL, api_key_env="DIFFGR2_NO_SUCH_VARIABLE"))


def choice(content: Any, finish: Any = "stop") -> SimpleNamespace:
    return SimpleNamespace(message=SimpleNamespace(content=content), finish_reason=finish)


def response(*choices: Any, usage: Any = None) -> SimpleNamespace:
    return SimpleNamespace(choices=list(choices), usage=usage)


def test_a_call_is_paid_once_whatever_the_number_of_its_samples():
    usage = SimpleNamespace(prompt_tokens=10, completion_tokens=7)
    samples = CLIENT._read(response(choice("a"), choice(None, "length"), usage=usage), 5)
    assert samples == [Sample("a", "stop", True, 10, 7), Sample("", "length", True, 0, 0)]
    assert CLIENT._read(response(choice("a"), choice("b"), usage=usage), 1) == samples[:1]


@pytest.mark.parametrize(
    "usage",
    [
        None,
        SimpleNamespace(prompt_tokens=10),
        SimpleNamespace(prompt_tokens=10, completion_tokens=None),
        SimpleNamespace(prompt_tokens="10", completion_tokens=7),
        SimpleNamespace(prompt_tokens=-1, completion_tokens=7),
    ],
)
def test_without_whole_counts_nothing_is_metered(usage):
    assert CLIENT._read(response(choice("a", None), usage=usage), 1) == [
        Sample("a", "unknown", False, 0, 0)
    ]


@pytest.mark.parametrize(
    "strange",
    [
        None,
        "text",
        [1],
        SimpleNamespace(),
        SimpleNamespace(choices=None),
        SimpleNamespace(choices="no list"),
        response(),
        response(None),
        response(SimpleNamespace(message=None)),
        response(choice(5)),
        response(choice("a"), choice(["b"])),
    ],
)
def test_what_is_no_chat_completion_is_a_value_error(strange):
    with pytest.raises(ValueError, match=r"no choices|a choice without a message"):
        CLIENT._read(strange, 2)


@given(st.integers(100, 599), st.text(max_size=30))
def test_every_status_has_its_meaning(status, text):
    error = Exception(text)
    error.status_code, error.code = status, None  # type: ignore[attr-defined]
    failure = CLIENT._failure(error)
    if status in (400, 413, 422):
        assert isinstance(failure, PromptRefusedError)
        assert failure.status == status
    elif status in (408, 409, 425, 429) or status >= 500:
        assert isinstance(failure, UnansweredError)
    else:
        assert isinstance(failure, RemoteError)
        assert "the variable DIFFGR2_NO_SUCH_VARIABLE is not set" in str(failure)
    assert f"HTTP {status}" in str(failure)
    assert len(str(failure).splitlines()) == 1


@pytest.mark.parametrize("key", ["bad\nkey", "clé"])
def test_a_key_that_no_header_can_hold_is_refused(monkeypatch, key):
    monkeypatch.setenv("DIFFGR2_TEST_KEY", key)
    with pytest.raises(ConfigError, match="DIFFGR2_TEST_KEY: the key holds characters no key"):
        ChatClient(LlmConfig(base_url=URL, api_key_env="DIFFGR2_TEST_KEY"))


def test_the_key_is_blotted_out_of_every_text(monkeypatch):
    secret = "sk-very-secret-key-123"
    monkeypatch.setenv("DIFFGR2_TEST_KEY", secret)
    client = ChatClient(LlmConfig(base_url=URL, api_key_env="DIFFGR2_TEST_KEY"))
    [sample] = client._read(response(choice(f"you are {secret}!")), 1)
    assert sample.text == "you are ***!"
    for text in (secret, f"a {secret}", "x " * 140 + secret, f"{secret}\n{secret}"):
        assert "***" in client._safe(ValueError(text))
        assert "sk-very" not in client._safe(ValueError(text))
