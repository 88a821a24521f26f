"""What recipes used to call things: keys and words under earlier names, and keys that went.

Contract: `modern(values, source)` gives a recipe's values by this version's names, `modern_sets`
the same of `--set` texts; what was changed is told on stderr, a line each that names who said it,
the old name and the new one. Both names said at once is a ConfigError. A name in these tables never
gets another meaning. Not here: reading a recipe (`recipe`), what a key holds (`config`).
"""

import os
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from diffgr2.errors import ConfigError

KEYS = {"cft.shuffle": "distill.shuffle"}
"""Keys under another name: old -> new."""

WORDS = {
    f"{section}.rule": {"permutation": "grammar"}
    for section in ("decode", "opd", "block_rl", "cft_rl")
}
"""Words that a key takes under another name: key -> old -> new."""

GONE = {
    "traces.llm.backoff_s": "the client chooses its waits; traces.llm.retries says how often",
    "traces.llm.max_wait_s": "all tries share (traces.llm.retries + 1) * traces.llm.timeout_s",
}
"""Keys that nothing reads any more, and what does their work."""


def modern(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """See the module's docstring; what is given stays as it is."""
    found, told = deepcopy(dict(values)), list[str]()
    for old, new in KEYS.items():
        if (section := _holding(found, old)) is None:
            continue
        if _holding(found, new) is not None:
            raise ConfigError(_twice(source, old, new))
        value, node = section.pop(_last(old)), found
        for part in new.split(".")[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{source}: {new}: {part} is not a section")
        node[_last(new)] = value
        told.append(_called(old, new))
    for key, words in WORDS.items():
        section = _holding(found, key)
        if section is not None and isinstance(word := section[_last(key)], str) and word in words:
            section[_last(key)] = words[word]
            told.append(_called(f"{key}: {word}", f"{key}: {words[word]}"))
    for key, why in GONE.items():
        if (section := _holding(found, key)) is not None:
            del section[_last(key)]
            told.append(_passed_over(key, why))
    _tell(source, told)
    return found


def modern_sets(texts: Sequence[str]) -> list[str]:
    """`--set` texts by this version's names; those of keys that went are left out."""
    pairs = [tuple(part.strip() for part in text.partition("=")) for text in texts]
    given = {key for key, *_ in pairs}
    found, told = list[str](), list[str]()
    for text, (old, _, value) in zip(texts, pairs, strict=True):
        key = KEYS.get(old, old)
        if key != old:
            if key in given:
                raise ConfigError(_twice("--set", old, key))
            told.append(_called(old, key))
            text = f"{key}={value}"
        if value in (words := WORDS.get(key, {})):
            told.append(_called(f"{key}={value}", f"{key}={words[value]}"))
            text = f"{key}={words[value]}"
        if key in GONE:
            told.append(_passed_over(key, GONE[key]))
        else:
            found.append(text)
    _tell("--set", told)
    return found


def _holding(values: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The section that says this key, None where nobody says it."""
    node: Any = values
    for part in key.split("."):
        above = node
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return above


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _twice(source: str, old: str, new: str) -> str:
    return f"{source}: {old}: is called {new} now, and both are given (keep {new})"


def _called(old: str, new: str) -> str:
    return f"{old} is called {new} now"


def _passed_over(key: str, why: str) -> str:
    return f"{key} is no longer read ({why})"


def _tell(source: str, told: Sequence[str]) -> None:
    """Once, by the first process of several."""
    if os.environ.get("RANK", "0") == "0":
        for line in told:
            print(f"warning: {source}: {line}", file=sys.stderr)
