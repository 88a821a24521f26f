"""The vocabulary: text tokens, the mask, semantic IDs, evidence and control tokens.

Contract: the mask id is reserved first, before any token of ours (151669 on a Qwen3 tokenizer);
then come semantic IDs, candidate indices, evidence, strengths and control tokens, each
kind a contiguous range. `text_ids` encodes user text with a tokenizer that has no added tokens at
all, so a reserved token spelled in an item title is plain text, never a control token. Not here:
prompts (`compact`, `gr2`) and embeddings (`model.load`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
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
    bases: dict[str, int]  # kind -> first id


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


class Vocabulary:
    """A tokenizer plus the ids of everything that is not text."""

    def __init__(self, tokenizer: Tokenizer, spec: VocabularySpec) -> None:
        self.tokenizer, self.spec = tokenizer, spec
        # Without any added token: what user text is encoded with.
        plain = json.loads(tokenizer.to_str()) | {"added_tokens": [], "post_processor": None}
        self._text = Tokenizer.from_str(json.dumps(plain))
        self.control: dict[str, int] = {}
        for name in (*CHAT, *CONTROL, MASK):
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
    ) -> Vocabulary:
        """Add the mask first, then our tokens, to a text tokenizer (trained here or Qwen's)."""
        for name in (*CHAT, MASK):  # the chat's are present on Qwen, added on ours
            if tokenizer.token_to_id(name) is None:
                tokenizer.add_special_tokens([AddedToken(name, special=True)])
        bases: dict[str, int] = {}

        def add(kind: str, names: list[str]) -> None:
            bases[kind] = tokenizer.get_vocab_size()
            tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
            if tokenizer.token_to_id(names[-1]) != bases[kind] + len(names) - 1:
                raise ArtifactError(f"tokenizer already knows some of the {kind} tokens")

        for kind, names in own_tokens(levels, codes, k, fields, buckets, strengths).items():
            add(kind, names)
        mask_id, size = tokenizer.token_to_id(MASK), tokenizer.get_vocab_size()
        assert mask_id is not None
        spec = VocabularySpec(levels, codes, k, fields, buckets, strengths, mask_id, size, bases)
        return cls(tokenizer, spec)

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
        if not isinstance(spec.bases, dict) or spec.bases.keys() != {*KINDS}:
            raise ArtifactError(f"{directory}: a vocabulary of another version (make it anew)")
        return cls(tokenizer, spec)

    def text_ids(self, text: str) -> list[int]:
        """User text as ids, special tokens off."""
        return self._text.encode(text, add_special_tokens=False).ids

    def sid_ids(self, codes_NL: np.ndarray) -> np.ndarray:
        """Ids of semantic IDs, same shape."""
        level_L = np.arange(codes_NL.shape[-1]) * self.spec.codes
        return self.spec.bases["sid"] + level_L + codes_NL.astype(np.int64)

    def index_id(self, position: int) -> int:
        return self.spec.bases["index"] + position

    def evidence_ids(self, buckets_KF: np.ndarray) -> np.ndarray:
        """Ids of evidence tokens, same shape."""
        field_F = np.arange(buckets_KF.shape[-1]) * self.spec.buckets
        return self.spec.bases["evidence"] + field_F + buckets_KF.astype(np.int64)

    @cached_property
    def missing_ids(self) -> np.ndarray:
        """Of each field the token that says that nothing is known of it."""
        return self.spec.bases["missing"] + np.arange(len(self.spec.fields))

    def strength_id(self, level: int) -> int:
        return self.spec.bases["strength"] + level

    def _offset(self, token: int, kind: str, count: int) -> int | None:
        """A token's number among the `count` of its kind; None if it is of another kind."""
        offset = token - self.spec.bases[kind]
        return offset if 0 <= offset < count else None

    def index_of(self, token: int) -> int | None:
        """Candidate position of an index token, else None."""
        return self._offset(token, "index", self.spec.k)

    def evidence_of(self, token: int) -> tuple[int, int] | None:
        """(field, bucket) of an evidence token, else None."""
        spec = self.spec
        offset = self._offset(token, "evidence", len(spec.fields) * spec.buckets)
        return None if offset is None else divmod(offset, spec.buckets)

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
