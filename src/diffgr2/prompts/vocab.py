"""The vocabulary: text tokens, the mask, semantic IDs, evidence and control tokens.

Contract: the mask id is reserved first, before any token of ours (151669 on a Qwen3 tokenizer);
then come semantic IDs, candidate indices, evidence, strengths and control tokens, each
kind a contiguous range. A plain vocabulary (`spec.words`) adds the mask alone: candidates, evidence
and strengths are words that the tokenizer has. `text_ids` encodes user text with a tokenizer that
has no added tokens at all, so a reserved token spelled in an item title is plain text, never a
control token. Not here: prompts (the templates), which words those are (`plain_words`), and
embeddings (`model.load`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from diffgr2.artifacts import read_json, write_json
from diffgr2.errors import ArtifactError
from diffgr2.items.sids import sid_token
from diffgr2.model.contract import MASK

END = "<|im_end|>"  # ends every response
PAD = "<|endoftext|>"
CHAT = (PAD, "<|im_start|>", END)  # Qwen's own names, so both kinds of tokenizer agree
BEGIN, FINISH = "<|sid_begin|>", "<|sid_end|>"  # around a semantic ID inside text
CONTROL = (
    *(BEGIN, FINISH),
    *("<history>", "<candidates>", "<reason>", "<direct>"),
    *("<answer>", "<none>"),
    *("<task_next>", "<task_caption>", "<task_persona>", "<task_text>"),
)


SPOKEN = ("<none>", "<answer>")
"""Control tokens that a plain vocabulary has words for."""

KINDS = ("sid", "index", "evidence", "missing", "strength", "control")
"""Our tokens, in the order of their ids."""


@dataclass(frozen=True)
class VocabularySpec:
    """How many tokens of each kind, and where each kind begins."""

    levels: int
    codes: int
    k: int  # candidate index tokens
    fields: tuple[str, ...]  # evidence fields
    buckets: int
    strengths: int
    mask_id: int
    size: int  # all ids are below this
    bases: dict[str, int]  # kind -> first id; empty where `words` are what stands for them
    words: dict[str, list[int]] = field(default_factory=dict)  # kind -> ids of words, or nothing

    @property
    def sound(self) -> bool:
        """Bases of every kind, or words: as many as there should be, all different."""
        if not isinstance(self.bases, dict) or not isinstance(self.words, dict):
            return False
        if not self.words:
            return self.bases.keys() == {*KINDS}
        counts = {"index": self.k, "evidence": len(self.fields), "strength": self.strengths}
        counts["control"] = len(SPOKEN)
        if self.bases or self.words.keys() != counts.keys():
            return False
        if any(not isinstance(self.words[kind], list) for kind in counts):
            return False
        ids = [token for kind in counts for token in self.words[kind]]
        fitting = all(type(t) is int and 0 <= t < self.size and t != self.mask_id for t in ids)
        counted = all(len(self.words[kind]) == count for kind, count in counts.items())
        return fitting and counted and len(set(ids)) == len(ids)


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer; the 256 bytes come first, so any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(size, 256),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def own_tokens(
    levels: int, codes: int, k: int, fields: Sequence[str], buckets: int, strengths: int
) -> dict[str, list[str]]:
    """Our tokens by kind (`KINDS`), kinds and tokens in the order of their ids."""
    return {
        "sid": [sid_token(level, code) for level in range(levels) for code in range(codes)],
        "index": [f"<c_{i + 1}>" for i in range(k)],
        "evidence": [f"<e_{name}_{b}>" for name in fields for b in range(buckets)],
        "missing": [f"<no_{name}>" for name in fields],
        "strength": [f"<v_{s}>" for s in range(strengths)],
        "control": list(CONTROL),
    }


def without_added(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer without any added token: what user text is encoded with."""
    plain = json.loads(tokenizer.to_str()) | {"added_tokens": [], "post_processor": None}
    return Tokenizer.from_str(json.dumps(plain))


class Vocabulary:
    """A tokenizer plus the ids of everything that is not text."""

    def __init__(self, tokenizer: Tokenizer, spec: VocabularySpec) -> None:
        self.tokenizer, self.spec = tokenizer, spec
        self._text = without_added(tokenizer)
        self.control: dict[str, int] = {}
        self.control |= zip(SPOKEN, spec.words.get("control", ()), strict=False)
        for name in (*CHAT, *(() if spec.words else CONTROL), MASK):
            token = tokenizer.token_to_id(name)
            if token is None:
                raise ArtifactError(f"tokenizer lacks reserved token {name}")
            self.control[name] = token
        self.end_id, self.pad_id, self.mask_id = (self.control[n] for n in (END, PAD, MASK))

    @classmethod
    def extend(
        cls,
        tokenizer: Tokenizer,
        *,
        levels: int,
        codes: int,
        k: int,
        fields: tuple[str, ...],
        buckets: int,
        strengths: int,
        words: dict[str, list[int]] | None = None,
    ) -> Vocabulary:
        """Add the mask first, then our tokens, to a text tokenizer (trained here or Qwen's).

        With `words` (`plain_words`) of that tokenizer the mask is all, and what its chat lacks.
        """
        for name in (*CHAT, MASK):  # the chat's are present on Qwen, added on ours
            if tokenizer.token_to_id(name) is None:
                tokenizer.add_special_tokens([AddedToken(name, special=True)])
        bases: dict[str, int] = {}

        def add(kind: str, names: list[str]) -> None:
            bases[kind] = tokenizer.get_vocab_size()
            tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
            if tokenizer.token_to_id(names[-1]) != bases[kind] + len(names) - 1:
                raise ArtifactError(f"tokenizer already knows some of the {kind} tokens")

        own = {} if words else own_tokens(levels, codes, k, fields, buckets, strengths)
        for kind, names in own.items():
            add(kind, names)
        mask_id, size = tokenizer.token_to_id(MASK), tokenizer.get_vocab_size()
        assert mask_id is not None
        counts = (levels, codes, k, fields, buckets, strengths)
        return cls(tokenizer, VocabularySpec(*counts, mask_id, size, bases, words or {}))

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, the files other tools read, and vocabulary.json."""
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(directory / "tokenizer.json"))
        special = {"eos_token": END, "pad_token": PAD, "mask_token": MASK}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        write_json(directory / "tokenizer_config.json", config)
        write_json(directory / "special_tokens_map.json", special)
        tokens = self.tokenizer.get_added_tokens_decoder()
        added = {token.content: number for number, token in tokens.items()}
        write_json(directory / "added_tokens.json", added)
        write_json(directory / "vocabulary.json", asdict(self.spec))

    @classmethod
    def load(cls, directory: Path) -> Vocabulary:
        """Read what `save` wrote."""
        values = read_json(directory / "vocabulary.json")
        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
            spec = VocabularySpec(**{**values, "fields": tuple(values["fields"])})
        except Exception as error:
            raise ArtifactError(f"{directory}: not a vocabulary ({error})") from None
        if not spec.sound:
            told = "a vocabulary without all tokens of this version (diffgr2 upgrade adds them)"
            raise ArtifactError(f"{directory}: {told}")
        return cls(tokenizer, spec)

    def text_ids(self, text: str) -> list[int]:
        """User text as ids, special tokens off."""
        return self._text.encode(text, add_special_tokens=False).ids

    def sid_ids(self, codes_NL: np.ndarray) -> np.ndarray:
        """Ids of semantic IDs, same shape."""
        level_L = np.arange(codes_NL.shape[-1]) * self.spec.codes
        return self.spec.bases["sid"] + level_L + codes_NL.astype(np.int64)

    @cached_property
    def index_ids(self) -> np.ndarray:
        """Of each place in a list the token that names its candidate."""
        return self._of("index", self.spec.k)

    @cached_property
    def strength_ids(self) -> np.ndarray:
        """Of each level of strength its token."""
        return self._of("strength", self.spec.strengths)

    def _of(self, kind: str, count: int) -> np.ndarray:
        words = self.spec.words
        return np.array(words[kind]) if words else self.spec.bases[kind] + np.arange(count)

    def index_id(self, position: int) -> int:
        return int(self.index_ids[position])

    def evidence_ids(self, buckets_KF: np.ndarray) -> np.ndarray:
        """Ids of evidence tokens, same shape; words are of fields alone, whatever the bucket."""
        if self.spec.words:
            return np.broadcast_to(np.array(self.spec.words["evidence"]), buckets_KF.shape)
        field_F = np.arange(buckets_KF.shape[-1]) * self.spec.buckets
        return self.spec.bases["evidence"] + field_F + buckets_KF.astype(np.int64)

    @cached_property
    def missing_ids(self) -> np.ndarray:
        """Of each field the token that says that nothing is known of it."""
        return self.spec.bases["missing"] + np.arange(len(self.spec.fields))

    def strength_id(self, level: int) -> int:
        return int(self.strength_ids[level])

    def _offset(self, token: int, kind: str, count: int) -> int | None:
        """A token's number among the `count` of its kind; None if it is of another kind."""
        if self.spec.words:
            return self._numbers[kind].get(token) if kind in self._numbers else None
        offset = token - self.spec.bases[kind]
        return offset if 0 <= offset < count else None

    @cached_property
    def _numbers(self) -> dict[str, dict[int, int]]:
        """Of each kind of words the number of each."""
        words = self.spec.words
        return {kind: {token: n for n, token in enumerate(ids)} for kind, ids in words.items()}

    def index_of(self, token: int) -> int | None:
        """Candidate position of an index token, else None."""
        return self._offset(token, "index", self.spec.k)

    def evidence_of(self, token: int) -> tuple[int, int] | None:
        """(field, bucket) of an evidence token, else None: a word says no bucket (`field_of`)."""
        spec = self.spec
        if spec.words:
            return None
        offset = self._offset(token, "evidence", len(spec.fields) * spec.buckets)
        return None if offset is None else divmod(offset, spec.buckets)

    def field_of(self, token: int) -> int | None:
        """The field that a word names, else None."""
        return self._numbers["evidence"].get(token) if self.spec.words else None

    def strength_of(self, token: int) -> int | None:
        """Level of a strength token, else None."""
        return self._offset(token, "strength", self.spec.strengths)

    def sid_of(self, token: int) -> tuple[int, int] | None:
        """(level, code) of a semantic-ID token, else None."""
        offset = self._offset(token, "sid", self.spec.levels * self.spec.codes)
        return None if offset is None else divmod(offset, self.spec.codes)

    def decode(self, ids: list[int]) -> str:
        """Ids as text, reserved tokens by name."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    @cached_property
    def names(self) -> list[str]:
        """Token text of every id (for pictures of trajectories)."""
        return [self.tokenizer.id_to_token(i) or "" for i in range(self.spec.size)]
