"""Waiting times: what endpoints ask for, and what we wait by ourselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffgr2.config import LlmConfig
from diffgr2.traces.client import ChatClient, _Fault, backoff_s, retry_after_s

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0.25 "}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Tue, 06 May 2031 07:08:49 GMT"}, 40.0),
        ({"retry-after": "Tue, 06 May 2031 07:08:49"}, 40.0),
        ({"retry-after": "Tue, 06 May 2031 09:08:10 +0200"}, 1.0),
        ({"retry-after": "Tue, 06 May 2031 07:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Tue, 99 May 99999 07:08:49 GMT"}, None),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "?", "retry-after": "9"}, 9.0),
    ],
)
def test_retry_after_is_read_as_seconds_milliseconds_or_date(headers, seconds):
    assert retry_after_s(headers, NOW) == seconds


@given(st.text())
def test_any_retry_after_is_a_number_of_seconds_or_none(text):
    seconds = retry_after_s({"retry-after": text}, NOW)
    assert seconds is None or 0 <= seconds < float("inf")


@given(st.integers(0, 10**6))
def test_dates_and_seconds_mean_the_same(seconds):
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert retry_after_s({"retry-after": date}, NOW) == seconds
    assert retry_after_s({"retry-after": str(seconds)}, NOW) == seconds


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_back_off_doubles_up_to_its_limit_and_jitters_by_half(attempt, jitter):
    wait = backoff_s(0.5, 30.0, attempt, jitter)
    whole = min(30.0, 0.5 * 2 ** min(attempt, 10))
    assert whole / 2 <= wait <= whole


def test_jitter_is_a_function_of_its_key_and_differs_between_keys():
    pytest.importorskip("openai")
    config = LlmConfig(api_key_env="DIFFGR2_NO_SUCH_VARIABLE", backoff_s=1.0)
    first, again, other = (ChatClient(config, seed=seed) for seed in (1, 1, 2))
    fault = _Fault("server_error", "HTTP 500")
    waits = [[c._wait_s(fault, i, "key") for i in range(5)] for c in (first, again, other)]
    assert waits[0] == waits[1]
    assert waits[0] != waits[2]
    assert first._wait_s(fault, 0, "key") != first._wait_s(fault, 0, "other key")
    asked = _Fault("rate_limited", "HTTP 429", 4.0)
    assert 4.0 <= first._wait_s(asked, 0, "key") < 5.0
