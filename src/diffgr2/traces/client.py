"""One question to an OpenAI-compatible endpoint, asked until it is answered or refused for good.

Contract: `ChatClient.complete(messages, n)` returns 1 … n samples (some servers ignore `n`; the
caller asks again for the rest). The openai package tries again after 408, 409, 429, 5xx, time-outs
and lost connections, waits longer each time and as long as `Retry-After` asks, up to its own bound;
an answer that is unreadable or empty is asked for again here. A prompt that the endpoint refuses
(400, 413, 422) raises `PromptRefusedError`; an endpoint that refuses us (401, 403, 404, no quota)
raises RemoteError; retries used up raise `UnansweredError`. The API key comes from the environment
and is blotted out of every message. Not here: what is paid for and remembered (`traces.journal`,
`traces.llm`). Needs the extra `llm`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffgr2.config import LlmConfig
from diffgr2.errors import ConfigError, MissingExtraError, RemoteError

_PROMPT_STATUS = (400, 413, 422)
_PASSING_STATUS = (408, 409, 425, 429)  # and 5xx

Message = Mapping[str, str]


@dataclass(frozen=True)
class Sample:
    """One of the answers that a call brought."""

    text: str
    finish: str  # stop | length | content_filter | ...
    metered: bool  # the endpoint told its token counts
    prompt_tokens: int  # a call is paid as a whole: its tokens stand on its first sample
    completion_tokens: int


class PromptRefusedError(Exception):
    """The endpoint refuses this very prompt; others may go on."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status, self.reason = status, reason


class UnansweredError(Exception):
    """All tries of one question failed; it may be asked again later."""


class ChatClient:
    """Asks chat questions of one endpoint; an async context manager."""

    def __init__(self, config: LlmConfig) -> None:
        try:
            import openai
        except ImportError:
            raise MissingExtraError(
                "the llm teacher needs the openai package: pip install 'diffgr2[llm]'"
            ) from None
        self.config, self._openai = config, openai
        self.calls = 0  # questions put; the package's own retries are not counted
        self._secret = os.environ.get(config.api_key_env, "").strip()
        if not (self._secret.isascii() and self._secret.isprintable()):
            raise ConfigError(f"{config.api_key_env}: the key holds characters no key can hold")
        if not config.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"traces.llm.base_url: {config.base_url} is no http(s) address")
        # Local servers need no key, but the client insists on some text.
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",
            base_url=config.base_url,
            max_retries=config.retries,
            timeout=config.timeout_s,
        )

    async def __aenter__(self) -> ChatClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def complete(self, messages: Sequence[Message], n: int) -> list[Sample]:
        """Between 1 and `n` answers to one question."""
        tries = self.config.retries + 1
        limit_s = tries * self.config.timeout_s
        try:
            # The package's own time-out is per read; a server that drips bytes would hold us.
            async with asyncio.timeout(limit_s):
                return await self._complete(messages, n, tries)
        except TimeoutError:
            raise UnansweredError(f"no answer within {limit_s:g} s") from None

    async def _complete(self, messages: Sequence[Message], n: int, tries: int) -> list[Sample]:
        """Asks again for what cannot be read; raises what no further try can mend."""
        openai, unreadable = self._openai, ""
        for _ in range(tries):
            self.calls += 1
            try:
                response = await self._client.chat.completions.create(
                    model=self.config.model,
                    messages=[dict(message) for message in messages],  # type: ignore[arg-type]
                    temperature=self.config.temperature,
                    max_tokens=self.config.max_tokens,
                    n=n,
                )
                return self._read(response, n)
            except openai.APIStatusError as error:
                raise self._failure(error) from None
            except openai.APIConnectionError as error:  # time-outs among them
                reason = self._safe(error.__cause__ or error)
                raise UnansweredError(f"no answer in {tries} tries ({reason})") from None
            except (openai.APIError, ValueError) as error:  # cut JSON, broken UTF-8
                unreadable = self._safe(error)
        raise UnansweredError(f"no readable answer in {tries} tries ({unreadable})")

    def _failure(self, error: Any) -> Exception:
        """What an HTTP status means that stayed after all retries."""
        status, reason = error.status_code, self._safe(error)
        if error.code == "insufficient_quota":
            return RemoteError(f"{self.config.base_url}: no quota left: {reason}")
        if status in _PROMPT_STATUS:
            return PromptRefusedError(status, reason)
        if status in _PASSING_STATUS or status >= 500:
            return UnansweredError(f"no answer, HTTP {status}: {reason}")
        hint = "" if self._secret else f" (the variable {self.config.api_key_env} is not set)"
        return RemoteError(f"{self.config.base_url}: HTTP {status}: {reason}{hint}")

    def _read(self, response: Any, n: int) -> list[Sample]:
        """A response's answers, at most `n`; ValueError for what is no chat completion."""
        choices = getattr(response, "choices", None)
        if not isinstance(choices, list) or not choices:
            raise ValueError("no choices")
        usage = getattr(response, "usage", None)
        counts = [getattr(usage, name, -1) for name in ("prompt_tokens", "completion_tokens")]
        metered = all(isinstance(count, int) and count >= 0 for count in counts)
        samples = []
        for i, choice in enumerate(choices[:n]):
            message = getattr(choice, "message", None)
            content = getattr(message, "content", None)
            finish = getattr(choice, "finish_reason", None) or "unknown"
            if message is None or not isinstance(content, str | None):
                raise ValueError("a choice without a message")
            # A null text is a paid answer all the same (refusals): it counts and does not parse.
            text, paid = self._blot(content or ""), counts if metered and i == 0 else (0, 0)
            samples.append(Sample(text, str(finish), metered, *paid))
        return samples

    def _safe(self, error: BaseException) -> str:
        """An error as one short line without the API key."""
        return self._blot(" ".join(str(error).split()) or type(error).__name__)[:300]

    def _blot(self, text: str) -> str:
        """The text without the API key; placeholders that local servers are given may stay."""
        return text.replace(self._secret, "***") if len(self._secret) >= 8 else text
