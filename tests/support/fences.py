"""The examples of README and docs, taken out of their fences.

`fences(page)` gives (language, text) of each fence; `commands(text)` the command lines of a shell
example that call `diffgr2`, as lists of words.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SHELL = ("sh", "bash")
BREAKS = {"|", "||", "&", "&&", ";", "(", ")", "<", ">", ">>", "2>"}


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """See the module's docstring."""
    for indent, language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        yield language, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


def is_shell(language: str, text: str) -> bool:
    """Whether an example is for a shell, as it says or by its first word."""
    return language in SHELL or (not language and text.startswith(("diffgr2 ", "$ ", "make ")))


def typed(text: str) -> str:
    """A shell example without its answers, where it shows both."""
    lines = text.replace("\\\n", " ").splitlines()
    asked = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return "\n".join([*(asked or lines), ""])


def commands(text: str) -> Iterator[list[str]]:
    """See the module's docstring."""
    for line in typed(text).splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split, words.commenters = True, "#"
        try:
            given = list(words)
        except ValueError:  # a quotation that goes on in the next line
            continue
        command: list[str] = []
        for word in [*given, ";"]:
            if word not in BREAKS:
                command.append(word)
                continue
            while command and re.fullmatch(r"\w+=.*|time", command[0]):
                command.pop(0)
            if command and Path(command[0]).name == "diffgr2":
                yield command[1:]
            command = []
