"""Words of one token: what the brief template names candidates, evidence and strengths by.

Contract: `plain_words` finds in a tokenizer one token each for every candidate's name, every field
of evidence, every strength, "nothing more" and the mark before the written order, all different;
what has none is an error that names the recipe's key or the field. Which words those may be is in
`brief.yaml`; a shop's own field goes by a word of its name. `spelled` is the text of such words,
for a tokenizer that is trained here. Not here: prompts and responses (`brief`).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice, product
from string import ascii_uppercase
from typing import Any

from tokenizers import Tokenizer

from diffgr2.candidates.fields import Field
from diffgr2.candidates.own_fields import spoken
from diffgr2.errors import ConfigError
from diffgr2.prompts.english import label_of, wording
from diffgr2.prompts.vocab import without_added


def names() -> Iterable[str]:
    """Names of candidates: letters, then pairs of them."""
    return chain(ascii_uppercase, map("".join, product(ascii_uppercase, repeat=2)))


def field_words(words: Mapping[str, Any], field: Field) -> list[str]:
    """What a field may be called, the best first."""
    if field.counted:
        return words["words"][field.name]
    own = spoken(field.name)
    return list(dict.fromkeys([*own.split(), *own.lower().split(), own]))


def grade_of(words: Mapping[str, Any], field: Field, bucket: int, n: int) -> str:
    """What bucket `bucket` of `n` of a field is called in a prompt."""
    if field.kind == "flag":
        return words["flag"][min(bucket, 1)]
    if field.kind == "category":
        known = bucket < len(field.words)
        return label_of(field.words[bucket], bucket) if known else words["other"]
    name = words["graded"].get(field.name, "amount") if field.counted else "amount"
    scale = words["grades"][name]
    if name == "place":  # a bucket per place, the last ones share a bucket
        return words["last_place"] if bucket == n - 1 else scale[bucket]
    return scale[int(bucket / (n - 1) * (len(scale) - 1) + 0.5)]


class _Taken:
    """Tokens that are taken already, and the tokenizer without anything but text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text, self._used = without_added(tokenizer), set[int]()
        self._special = {*tokenizer.get_added_tokens_decoder()}

    def one(self, words: Iterable[str]) -> int | None:
        """The first of these words that is one token, with a blank before it or without."""
        for word in words:
            for text in (f" {word}", word):
                ids = self._text.encode(text, add_special_tokens=False).ids
                if len(ids) == 1 and ids[0] not in self._used | self._special:
                    self._used.add(ids[0])
                    return ids[0]
        return None


def plain_words(
    tokenizer: Tokenizer, k: int, fields: Sequence[Field], strengths: int
) -> dict[str, list[int]]:
    """Token ids by kind: of `k` candidates, of each field, of each strength, and control words."""
    words, taken = wording("brief"), _Taken(tokenizer)
    hint = "(a larger prompt.text_vocab, or another base, has it)"
    if strengths > (most := len(words["levels"])):
        told = f"template brief has words for {most}"
        raise ConfigError(f"prompt.strengths: {told} (got {strengths})")

    def must(key: str, choices: Sequence[str]) -> int:
        token = taken.one(choices)
        if token is None:
            said = " or ".join(repr(choice) for choice in choices)
            raise ConfigError(f"{key}: the tokenizer has no token of its own for {said} {hint}")
        return token

    control = [must("prompt.template", words[name]) for name in ("nothing_more", "order")]
    levels = [must("prompt.strengths", [word]) for word in words["levels"][:strengths]]
    told = [must(f"evidence {field.name}", field_words(words, field)) for field in fields]
    found = (taken.one([name]) for name in names())
    index = list(islice((token for token in found if token is not None), k))
    if len(index) < k:
        raise ConfigError(
            f"candidates.k_max: the tokenizer has {len(index)} names of one token for {k} "
            f"candidates {hint}"
        )
    return {"index": index, "evidence": told, "strength": levels, "control": control}


def own_lines() -> list[str]:
    """What every prompt spells besides."""
    words = wording("brief")
    return [words[name] for name in ("ask", "candidates", "reason", "direct")]


def spelled(k: int, fields: Sequence[Field], strengths: int) -> str:
    """The words as they stand in texts, each with a blank before it."""
    words = wording("brief")
    told = [*words["nothing_more"][:1], *words["order"][:1], *words["levels"][:strengths]]
    told += [field_words(words, field)[0] for field in fields]
    told += islice(names(), k)
    told += [grade for scale in words["grades"].values() for grade in scale[:8]]
    return "".join(f" {word}" for word in told)
