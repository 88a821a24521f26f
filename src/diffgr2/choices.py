"""What recipes, requests and decoders may choose between, by name.

Contract: plain words, nothing computed. Not here: the sections that use them (`config`).
"""

from typing import Literal

Answering = Literal["said", "written"]
"""Read from the strengths that a response states, or the permutation written at its end."""

Rule = Literal["raw", "grammar"]
"""Whether a response is held to its template's grammar."""

Decoder = Literal["ar", "block", "verify"]
DECODERS: dict[Decoder, tuple[str, ...]] = {
    "ar": ("temperature", "rule"),
    "block": ("temperature", "accept", "threshold", "per_step", "entropy_bound", "rule"),
    "verify": ("temperature", "canvas", "rule"),
}
"""What each decoder reads of a recipe's `decode` section."""

Counted = Literal[
    "rank", "gap", "copurchase", "lift", "last", "next", "session", "brand", "category", "text"
]
"""Evidence that can be counted (`candidates.fields` says what each one is)."""

FAILING = ("floor", "scorer")
"""What a run may not be worse than: the order as it came, and what it was taught by."""
