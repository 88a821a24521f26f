"""What the command line shows to whoever names no model and no request.

Contract: `meant` is the model that was named, or the bundle that ships with the package,
said in one line on stderr; `example_of` is a bundle's example, of which it says on stderr whose it
is. Not here: the bundle (`rerank.shipped`) and the example (`rerank.example`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffgr2.rerank.reranker import Reranker

SAID = "no --model given: using `demo`, a small bundle of a simulated shop that ships with diffgr2"
LAST = 5  # purchases that are told


def meant(named: Path | None) -> Path:
    """Which bundle is meant."""
    from diffgr2.rerank.shipped import bundle_of

    found = bundle_of(named)
    if named is None:
        print(SAID, file=sys.stderr)
    return found


def example_of(reranker: Reranker) -> dict[str, Any]:
    """The arguments of the bundle's example."""
    from diffgr2.rerank.example import example

    found = example(reranker)
    given, resolve = found.arguments, reranker.names.resolve
    told = "no request given, so an example: "
    if "user" in given:
        past = resolve(given["history"][-LAST:], "history")
        bought = "; ".join(reranker.names.title(item) for item in past)
        told += f"shopper {given['user']} bought {'… ' * (len(given['history']) > LAST)}{bought}"
    else:
        told += "the catalogue's first items, for nobody in particular"
    if found.next:
        (item,) = resolve([found.next], "next")
        listed = found.next in given["candidates"]
        place = given["candidates"].index(found.next) + 1 if listed else 0
        where = f"listed at place {place}" if listed else "not in the list"
        told += (
            f". Bought next, which the model is not told: {reranker.names.title(item)} ({where})"
        )
    print(told, file=sys.stderr)
    return given
