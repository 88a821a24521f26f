"""What the server takes on, and who may ask: numbers, admission and keys.

Contract: `Limits` is every bound of the server in one place; `Slots` is the one admission
authority, taken before any work on a request and given back exactly once; `Keys` compares in
constant time. Not here: where they are enforced (`app`, `wire`).
"""

import hashlib
import hmac
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from diffgr2.errors import ConfigError

PUBLIC = ("/", "/health/live", "/health/ready")
"""What answers without a key: the page (it holds no data) and the two health routes."""


@dataclass(frozen=True)
class Limits:
    """See the module's docstring."""

    body_bytes: int = 2_000_000
    connections: int = 1_000
    headers: int = 256
    header_bytes: int = 65_536
    header_s: float = 10.0  # until a connection's request line and headers are there
    body_s: float = 10.0  # until a request's body is there
    candidates: int = 100
    history: int = 200
    text: int = 2_048  # characters
    waiting: int = 128  # requests admitted beyond those that decode
    running: int = 32  # rows decoded at once
    tokens: int = 32_768  # cache slots of all rows together
    timeout_s: float = 30.0  # deadline where the client names none
    max_timeout_s: float = 300.0
    drain_s: float = 30.0  # for requests in flight after SIGTERM
    retry_after_s: int = 1
    stall_s: float = 10.0  # a step that takes longer makes the server unready

    @property
    def in_flight(self) -> int:
        """Requests that hold a slot at once."""
        return self.waiting + self.running


class Slots:
    """A counter with a limit; used on the event loop only, so taking is atomic."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def take(self) -> bool:
        """One slot, or False if none is free."""
        if self.taken >= self.limit:
            return False
        self.taken += 1
        return True

    def give_back(self) -> None:
        assert self.taken > 0, "a slot was given back twice"
        self.taken -= 1


class Keys:
    """API keys, kept as digests; several for rotation, none = open."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, header: str | None) -> bool:
        """Whether an Authorization header carries one of the keys."""
        scheme, _, given = (header or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        # Every key is compared, so that time tells neither which one matched nor how far.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def read_keys(path: Path | None, variable: str = "DIFFGR2_API_KEYS") -> Keys:
    """Keys from a file (one a line) or, comma-separated, from the environment."""
    if path is None:
        lines = os.environ.get(variable, "").split(",")
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if path is not None and not keys:
        raise ConfigError(f"{path}: holds no key")
    for key in keys:
        if len(key) < 16:
            raise ConfigError("an API key has at least 16 characters")
    return Keys(keys)
