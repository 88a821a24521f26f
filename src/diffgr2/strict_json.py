"""JSON without surprises: what two readers could understand differently is refused.

Contract: `loads` accepts UTF-8 JSON and raises a DataError that says what is wrong for anything
else: duplicate keys, NaN and infinities (by name or by size), integers of more than 18 digits, lone
surrogates, more than 64 levels, bad UTF-8. `weigh` says before any parsing how many values a text
may hold, and how deep. Not here: what the values mean.
"""

import json
import math
import re
from typing import Any

import numpy as np

from diffgr2.errors import DataError

MAX_DEPTH = 64
MAX_DIGITS = 18
SURROGATE = re.compile(r"[\ud800-\udfff]")
COUNTED = np.isin(np.arange(256), list(b",[{"))
LEVELS = np.zeros(256, np.int8)
LEVELS[list(b"[{")], LEVELS[list(b"]}")] = 1, -1


def weigh(data: bytes) -> tuple[int, int]:
    """How many values a JSON text holds at most, and how deep; cheap beside reading it.

    >>> weigh(b'{"a": [1, 2, "x, [y"]}')
    (5, 2)
    """
    if b"\\" in data:  # an escaped quote ends no string
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    bytes_N = np.frombuffer(data, np.uint8)
    inside_N = np.logical_xor.accumulate(bytes_N == ord('"'))
    outside_M = bytes_N[~inside_N]
    depth = np.cumsum(LEVELS[outside_M], dtype=np.int32).max(initial=0)
    return int(COUNTED[outside_M].sum()) + 1, int(depth)


def loads(data: bytes | str) -> Any:
    """The value of a JSON text.

    >>> loads('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    diffgr2.errors.DataError: key 'a' stands twice
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start})") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise DataError(f"not valid JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise DataError(f"not valid JSON: more than {MAX_DEPTH} levels") from None
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise DataError(f"key {key[:80]!r} stands twice")
        result[key] = value
    return result


def _constant(name: str) -> Any:
    raise DataError(f"{name} is not a JSON number")


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise DataError(f"integer of more than {MAX_DIGITS} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DataError("number out of range")
    return value


def _check(value: Any, above: int = 0) -> None:
    """Depth and texts of a parsed value."""
    if isinstance(value, str):
        if SURROGATE.search(value):
            raise DataError("text holds half a surrogate pair")
    elif isinstance(value, list | dict):
        if above == MAX_DEPTH:
            raise DataError(f"not valid JSON: more than {MAX_DEPTH} levels")
        for inner in value if isinstance(value, list) else [*value, *value.values()]:
            _check(inner, above + 1)
