"""Who may ask for what: API keys with names, roles and rates.

Contract: a keys file holds one key a line, followed by options:

    0123456789abcdef            name=search  roles=rank
    another-key-of-16-or-more   name=ops     roles=rank,shoppers,admin  rate=600/m

`rank` (the default) may rank; `shoppers` may name a shopper of the bundle and see histories;
`admin` may reload. Keys are kept as digests and compared in constant time. Without keys everybody
may rank and nobody has another right. The file may be read again at any time (`reload`); a broken
one is an error that leaves the old keys in place. Not here: where rights are asked for (`door`,
`ranking`, `page`).
"""

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from diffgr2.errors import ConfigError

ROLES = ("rank", "shoppers", "admin")
SHORTEST = 16  # characters
VARIABLE = "DIFFGR2_API_KEYS"
RATE = re.compile(r"([1-9][0-9]{0,6})/(s|m|h)")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

log = logging.getLogger("diffgr2.serve")


@dataclass
class Bucket:
    """A rate as a bucket of tokens: `rate` a second, at most `burst` at once."""

    rate: float
    burst: float
    left: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.left, self.at = self.burst, time.monotonic()

    def wait_s(self) -> float:
        """Take one token: 0, or the seconds until there is one."""
        now = time.monotonic()
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left >= 1.0:
            self.left -= 1.0
            return 0.0
        return (1.0 - self.left) / self.rate

    def charge(self, more: int) -> None:
        """Take tokens that are not there yet: who comes next waits until they are."""
        self.left -= more


@dataclass(frozen=True, eq=False)
class Caller:
    """Who a request comes from."""

    name: str
    roles: frozenset[str]
    bucket: Bucket | None = None

    def may(self, role: str) -> bool:
        return role in self.roles


ANYBODY = Caller("", frozenset({"rank"}))
"""Where no keys are set."""


class Keys:
    """See the module's docstring."""

    def __init__(self, lines: Iterable[str] = (), path: Path | None = None) -> None:
        self.path = path
        self._callers = callers_of(lines, str(path or VARIABLE))

    def __bool__(self) -> bool:
        return bool(self._callers)

    def find(self, header: bytes | None) -> Caller | None:
        """The caller whose key an Authorization header carries."""
        if not self._callers:
            return ANYBODY
        scheme, _, given = (header or b"").strip().partition(b" ")
        digest = hashlib.sha256(given.strip()).digest()
        # Every key is compared, so that time tells neither which one matched nor how far.
        found = [c for known, c in self._callers.items() if hmac.compare_digest(digest, known)]
        return found[0] if found and scheme.lower() == b"bearer" else None

    def reload(self) -> None:
        """Read the file again; an error leaves the old keys."""
        if self.path is not None:
            self._callers = callers_of(lines_of(self.path), str(self.path))


def callers_of(lines: Iterable[str], source: str) -> dict[bytes, Caller]:
    """Digest of each key -> its caller."""
    callers: dict[bytes, Caller] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        key, options = words[0], words[1:]
        if len(key) < SHORTEST:
            raise ConfigError(f"{source}: line {number}: an API key has at least 16 characters")
        digest = hashlib.sha256(key.encode()).digest()
        if digest in callers:
            raise ConfigError(f"{source}: line {number}: a key stands twice")
        callers[digest] = _caller(options, len(callers) + 1, f"{source}: line {number}")
    return callers


def _caller(options: list[str], number: int, where: str) -> Caller:
    """A key's options; a comment may end the line."""
    given: dict[str, str] = {}
    for option in options:
        if option.startswith("#"):
            break
        word, equals, value = option.partition("=")
        if not equals or word not in ("name", "roles", "rate") or word in given:
            raise ConfigError(f"{where}: expected name=…, roles=… or rate=…, each once")
        given[word] = value
    name = given.get("name", f"key{number}")
    roles = frozenset(given.get("roles", "rank").split(","))
    rate = RATE.fullmatch(given["rate"]) if "rate" in given else None
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where}: name: letters, digits, dots and dashes, at most 64")
    if not roles <= set(ROLES):
        raise ConfigError(f"{where}: roles: expected some of {', '.join(ROLES)}")
    if "rate" in given and rate is None:
        raise ConfigError(f"{where}: rate: expected a number per s, m or h, such as 600/m")
    bucket = None
    if rate is not None:
        per_s = int(rate[1]) / SECONDS[rate[2]]
        bucket = Bucket(per_s, max(1.0, min(float(rate[1]), per_s * 10)))
    return Caller(name, roles, bucket)


def lines_of(path: Path) -> list[str]:
    """The lines of a keys file, without a byte order mark."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        shared = path.stat().st_mode & 0o077
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    if shared:
        log.warning("%s: others on this machine may read the keys (chmod 600)", path)
    return text.splitlines()


def read_keys(path: Path | None) -> Keys:
    """Keys from a file or, comma-separated, from the environment."""
    if path is None:
        return Keys(os.environ.get(VARIABLE, "").split(","))
    keys = Keys(lines_of(path), path)
    if not keys:
        raise ConfigError(f"{path}: holds no key")
    return keys
