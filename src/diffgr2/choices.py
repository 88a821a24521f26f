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

# fmt: off
Counted = Literal[
    "rank", "gap", "copurchase", "lift", "last", "next", "session", "brand", "category", "text",
    "title", "title_last", "after", "buyers", "fresh",
    "before_last", "before", "right_after", "month", "later", "trend", "range",
]
# fmt: on
"""Evidence that can be counted (`candidates.fields` says what each one is)."""

MOMENT = ("away", "buyers_now", "fresh_now", "trend_now")
"""What can be counted besides where the moment of the request is known (`evidence.moment`)."""

SHOWN: tuple[Counted, ...] = (
    *("rank", "gap", "copurchase", "lift", "last", "next", "session", "brand", "category", "text"),
    *("title", "title_last", "after", "buyers", "fresh"),
)
"""What of it a prompt shows where a recipe does not say."""

FAILING = ("floor", "scorer")
"""What a run may not be worse than: the order as it came, and what it was taught by."""
