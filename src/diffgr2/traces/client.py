"""One question to an OpenAI-compatible endpoint, asked until it is answered or refused for good.

Contract: `ChatClient.complete(messages, n, stream_key)` returns a `Reply` with 1 … n completions
(some servers ignore `n`; the caller asks again for the rest), after retries with exponential
back-off, jitter that is a function of its key, and respect for `Retry-After`. Faults of the moment
(429, 408, 409, 425, 5xx, time-outs, resets, cut or strange bodies, no choices) are retried; a
prompt that the endpoint refuses (400, 413, 422) raises `PromptRefusedError`; an endpoint that
refuses us (401, 403, 404, no quota) raises RemoteError; retries used up raise `UnansweredError`.
The API key comes from the environment and is blotted out of every message. Not here: what is paid
for and remembered (`traces.journal`, `traces.llm`). Needs the extra `llm`.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any

from diffgr2.config import LlmConfig
from diffgr2.errors import ConfigError, MissingExtraError, RemoteError
from diffgr2.streams import generator

FAULTS = ("rate_limited", "server_error", "timeout", "connection", "bad_body", "no_choices")
"""Kinds of faults that are worth another try."""

_RETRY_STATUS = {408: "timeout", 409: "server_error", 425: "server_error", 429: "rate_limited"}
_PROMPT_STATUS = (400, 413, 422)

Message = Mapping[str, str]


@dataclass(frozen=True)
class Completion:
    """One choice of a reply."""

    text: str
    finish: str  # stop | length | content_filter | ...


@dataclass(frozen=True)
class Reply:
    """What one paid call brought."""

    completions: tuple[Completion, ...]
    prompt_tokens: int
    completion_tokens: int
    metered: bool  # the endpoint told its token counts


@dataclass
class Meter:
    """What a client did so far, faults by kind included."""

    calls: int = 0  # requests sent, failed ones included
    retries: int = 0
    faults: Counter[str] = field(default_factory=Counter)


class PromptRefusedError(Exception):
    """The endpoint refuses this very prompt; others may go on."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status, self.reason = status, reason


class UnansweredError(Exception):
    """All retries of one question failed; it may be asked again later."""


@dataclass(frozen=True)
class _Fault:
    kind: str
    detail: str
    retry_after_s: float | None = None


class ChatClient:
    """Asks chat questions of one endpoint; an async context manager."""

    def __init__(self, config: LlmConfig, *, seed: int = 0) -> None:
        self.config, self.seed, self.meter = config, seed, Meter()
        self._openai = _import_openai()
        self._secret = os.environ.get(config.api_key_env, "").strip()
        if not (self._secret.isascii() and self._secret.isprintable()):
            raise ConfigError(f"{config.api_key_env}: the key holds characters no key can hold")
        if not config.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"traces.llm.base_url: {config.base_url} is no http(s) address")
        # Local servers need no key, but the client insists on some text.
        self._client = self._openai.AsyncOpenAI(
            api_key=self._secret or "none",
            base_url=config.base_url,
            max_retries=0,
            timeout=config.timeout_s,
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def complete(self, messages: Sequence[Message], n: int, stream_key: str) -> Reply:
        """Between 1 and `n` completions of one question."""
        fault = _Fault("", "")
        for attempt in range(self.config.retries + 1):
            if attempt:
                self.meter.retries += 1
                await asyncio.sleep(self._wait_s(fault, attempt - 1, stream_key))
            self.meter.calls += 1
            outcome = await self._try(messages, n)
            if isinstance(outcome, Reply):
                return outcome
            fault = outcome
            self.meter.faults[fault.kind] += 1
        tries = self.config.retries + 1
        raise UnansweredError(f"no answer in {tries} tries, the last: {fault.detail}")

    async def _try(self, messages: Sequence[Message], n: int) -> Reply | _Fault:
        """One request; raises only what no retry can mend."""
        openai = self._openai
        try:
            # The package's own time-out is per read; a server that drips bytes would hold us.
            async with asyncio.timeout(self.config.timeout_s):
                response = await self._client.chat.completions.create(
                    model=self.config.model,
                    messages=[dict(message) for message in messages],  # type: ignore[arg-type]
                    temperature=self.config.temperature,
                    max_tokens=self.config.max_tokens,
                    n=n,
                )
        except (TimeoutError, openai.APITimeoutError):
            return _Fault("timeout", f"no answer within {self.config.timeout_s:g} s")
        except openai.APIStatusError as error:
            return self._status_fault(error)
        except openai.APIConnectionError as error:
            return _Fault("connection", self._safe(error.__cause__ or error))
        except (openai.APIError, ValueError) as error:  # cut JSON, broken UTF-8
            return _Fault("bad_body", f"unreadable answer ({self._safe(error)})")
        return read_reply(response, n, self._blot)

    def _status_fault(self, error: Any) -> _Fault:
        status, reason = error.status_code, self._safe(error)
        if getattr(error, "code", None) == "insufficient_quota":
            raise RemoteError(f"{self.config.base_url}: no quota left: {reason}") from None
        if status in _RETRY_STATUS or status >= 500:
            kind = _RETRY_STATUS.get(status, "server_error")
            wait = retry_after_s(error.response.headers, datetime.now(UTC))
            if wait is not None and wait > self.config.max_wait_s:
                raise RemoteError(
                    f"{self.config.base_url}: HTTP {status} asks to wait {wait:.0f} s, "
                    f"more than max_wait_s ({self.config.max_wait_s:g})"
                ) from None
            return _Fault(kind, f"HTTP {status}: {reason}", wait)
        if status in _PROMPT_STATUS:
            raise PromptRefusedError(status, reason) from None
        hint = "" if self._secret else f" (the variable {self.config.api_key_env} is not set)"
        raise RemoteError(f"{self.config.base_url}: HTTP {status}: {reason}{hint}") from None

    def _wait_s(self, fault: _Fault, attempt: int, stream_key: str) -> float:
        """Seconds before the next try; never less than the endpoint asked for."""
        jitter = generator(self.seed, "llm", "backoff", stream_key, attempt).random()
        backoff = backoff_s(self.config.backoff_s, self.config.max_wait_s, attempt, jitter)
        if fault.retry_after_s is None:
            return backoff
        # A little more than asked, spread out: all callers were told the same moment.
        return fault.retry_after_s + self.config.backoff_s * jitter

    def _safe(self, error: BaseException) -> str:
        """An error as one short line without the API key."""
        text = " ".join(str(error).split()) or type(error).__name__
        return self._blot(text)[:300]

    def _blot(self, text: str) -> str:
        """The text without the API key; placeholders that local servers are given may stay."""
        return text.replace(self._secret, "***") if len(self._secret) >= 8 else text


def backoff_s(base: float, limit: float, attempt: int, jitter: float) -> float:
    """`base` doubled per attempt up to `limit`, of which between a half and all is waited."""
    return min(limit, base * 2.0 ** min(attempt, 60)) * (0.5 + 0.5 * jitter)


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` (seconds or HTTP date) asks for, or None."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - now).total_seconds())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def read_reply(response: Any, n: int, blot: Callable[[str], str] = str) -> Reply | _Fault:
    """The completions of a response, at most `n`; whatever is no chat completion is a fault."""
    choices = getattr(response, "choices", None)
    if not isinstance(choices, list):
        return _Fault("bad_body", "answer is no chat completion")
    completions = tuple(_completion(choice, blot) for choice in choices[:n])
    if not completions:
        return _Fault("no_choices", "answer without choices")
    if not all(completions):
        return _Fault("bad_body", "choice without a message")
    usage = getattr(response, "usage", None)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    metered = all(isinstance(count, int) and count >= 0 for count in counts)
    prompt_tokens, completion_tokens = counts if metered else (0, 0)
    return Reply(
        tuple(c for c in completions if c),
        prompt_tokens,  # type: ignore[arg-type]
        completion_tokens,  # type: ignore[arg-type]
        metered,
    )


def _completion(choice: Any, blot: Callable[[str], str]) -> Completion | None:
    message = getattr(choice, "message", None)
    content = getattr(message, "content", None)
    finish = getattr(choice, "finish_reason", None)
    if message is None or not isinstance(content, str | None):
        return None
    # A null text is a paid answer all the same (refusals, filters): it counts and does not parse.
    return Completion(blot(content or ""), finish if isinstance(finish, str) else "unknown")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return max(0.0, value) if isfinite(value) else None


def _import_openai() -> Any:
    try:
        import openai
    except ImportError:
        raise MissingExtraError(
            "the llm teacher needs the openai package: pip install 'diffgr2[llm]'"
        ) from None
    return openai
