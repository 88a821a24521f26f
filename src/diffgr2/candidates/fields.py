"""The evidence fields: what each says about a candidate.

Contract: `FIELDS` is the order of the F axis everywhere. A larger value is stronger evidence, but
for `rank` and `gap` (0 is best). `zero_is_none` fields have 0 = "no such evidence", which gets
bucket 0 to itself. Not here: how values are computed (`index`), how explanations word them
(`prompts.english`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One column of the evidence."""

    name: str
    meaning: str
    zero_is_none: bool = True


FIELDS = (
    Field("rank", "place in the retriever's list", zero_is_none=False),
    Field("gap", "retriever score below the list's best", zero_is_none=False),
    Field("copurchase", "users who bought it near a history item, recent items count more"),
    Field("lift", "co-purchase relative to what the items' popularity would give"),
    Field("last", "co-purchase with the newest item, as a cosine"),
    Field("next", "users who bought it soon after a history item, by closeness"),
    Field(
        "session", "users who bought it soon after the newest item on the same day, by closeness"
    ),
    Field("brand", "history of the same brand"),
    Field("category", "history of like categories"),
    Field("text", "words shared with the history", zero_is_none=False),
)

NAMES = tuple(field.name for field in FIELDS)
