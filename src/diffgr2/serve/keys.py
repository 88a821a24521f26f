"""Who may ask for what: API keys with names, roles and rates.

Contract: a keys file holds one key a line, followed by options:

    0123456789abcdef            name=search  roles=rank
    another-key-of-16-or-more   name=ops     roles=rank,shoppers,admin  rate=600/m

`rank` (the default) may rank; `shoppers` may name a shopper of the bundle and see histories;
`admin` may reload. A rate is a number of requests per s, m or h, of which all may come at once.
Keys are kept as digests and compared in constant time. Without keys everybody may rank and nobody
has another right. The file may be read again at any time (`reread`, then `replace`); a broken or
emptied one is an error that leaves the old keys in place, and no message holds a key. Not here:
where rights are asked for (`door`, `ranking`, `page`).
"""

import contextlib
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

    def go_on_from(self, other: "Bucket") -> None:
        """Reading the same rate again must not fill it."""
        if (self.rate, self.burst) == (other.rate, other.burst):
            self.left, self.at = other.left, other.at


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
        digest = _digest(given.strip())
        # Every key is compared, so that time tells neither which one matched nor how far.
        found = [c for known, c in self._callers.items() if hmac.compare_digest(digest, known)]
        return found[0] if found and scheme.lower() == b"bearer" else None

    def reread(self) -> "Keys":
        """The keys that now stand in the file; nothing is replaced yet."""
        return self if self.path is None else read_keys(self.path)

    def replace(self, fresh: "Keys") -> None:
        """Put these keys in place; a rate that is the same goes on where it stood."""
        for digest, caller in fresh._callers.items():
            old = self._callers.get(digest)
            if caller.bucket is not None and old is not None and old.bucket is not None:
                caller.bucket.go_on_from(old.bucket)
        self._callers = fresh._callers


def callers_of(lines: Iterable[str], source: str) -> dict[bytes, Caller]:
    """Digest of each key -> its caller."""
    callers: dict[bytes, Caller] = {}
    count = 0
    for number, line in enumerate(lines, 1):
        words, where = line.split(), f"{source}: line {number}"
        if not words or words[0].startswith("#"):
            continue
        key, options = words[0], words[1:]
        if len(key) < SHORTEST:
            raise ConfigError(f"{where}: an API key has at least {SHORTEST} characters")
        if not key.isprintable() or key.lower() == "bearer":
            raise ConfigError(f"{where}: not an API key")
        count += 1
        caller = _caller(options, count, where)
        for digest in _digests(key):
            if callers.setdefault(digest, caller) is not caller:
                raise ConfigError(f"{where}: a key stands twice")
    return callers


def _digests(key: str) -> set[bytes]:
    """Clients write characters beyond ASCII into a header in either of two encodings."""
    spelled = [key.encode()]
    with contextlib.suppress(UnicodeEncodeError):
        spelled.append(key.encode("latin-1"))
    return {_digest(one) for one in spelled}


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


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
    # A comma ends a key where keys stand in the environment, so a plus sign may stand for it.
    roles = frozenset(re.split("[,+]", given.get("roles", "rank")))
    rate = RATE.fullmatch(given["rate"]) if "rate" in given else None
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where}: name: letters, digits, dots and dashes, at most 64")
    if not roles <= set(ROLES):
        raise ConfigError(f"{where}: roles: expected some of {', '.join(ROLES)}")
    if "rate" in given and rate is None:
        raise ConfigError(f"{where}: rate: expected a number per s, m or h, such as 600/m")
    bucket = None
    if rate is not None:
        bucket = Bucket(int(rate[1]) / SECONDS[rate[2]], float(rate[1]))
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
    # Not `splitlines`, which ends lines at characters at which no editor does.
    return re.split("\r\n|\n|\r", text)


def read_keys(path: Path | None) -> Keys:
    """Keys from a file or, comma-separated, from the environment."""
    given = os.environ.get(VARIABLE, "").strip()
    if path is None and not given:
        return Keys()
    keys = Keys(given.split(","), None) if path is None else Keys(lines_of(path), path)
    if not keys:  # to go on without would open to everybody what was meant to be closed
        raise ConfigError(f"{path or VARIABLE}: holds no key")
    return keys
