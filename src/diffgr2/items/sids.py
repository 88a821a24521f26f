"""Semantic IDs: item -> codes, codes -> item, and the one spelling of both as text.

Contract: `SemanticIds` holds one unique row of codes per item (checked) and answers both ways.
`sid_token` spells a code, `sid_text` an ID, `parse_sid` reads what `sid_text` wrote and nothing
else. Not here: how codes come about (`items.quantize`), tokenizers and the allowed sets of a
decoder (`prompts`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays, write_json
from diffgr2.errors import ArtifactError, DataError

LETTERS = "abcdefgh"  # names of the levels
SID_TOKEN = r"<s_[a-h]_[0-9]{1,9}>"


def sid_token(level: int, code: int) -> str:
    """The token of one code: `<s_a_57>`."""
    return f"<s_{LETTERS[level]}_{code}>"


def sid_text(codes: Sequence[int] | np.ndarray) -> str:
    """One ID as text: `<s_a_57><s_b_3>...`."""
    return "".join(sid_token(level, int(code)) for level, code in enumerate(codes))


def parse_sid(text: str) -> tuple[int, ...] | None:
    """The codes of `sid_text`; None if the text is anything else."""
    tokens = re.findall(SID_TOKEN, text)[: len(LETTERS)]
    codes = tuple(int(token[len("<s_a_") : -1]) for token in tokens)
    return codes if codes and sid_text(codes) == text else None


@dataclass(frozen=True)
class SemanticIds:
    """Codes of all items; `n_codes` is the size of each level's alphabet."""

    codes_IL: np.ndarray  # int32
    n_codes: int

    def __post_init__(self) -> None:
        codes_IL = self.codes_IL
        shaped = codes_IL.ndim == 2 and 1 <= codes_IL.shape[1] <= len(LETTERS)
        if codes_IL.dtype != np.int32 or not shaped:
            raise ArtifactError(
                f"semantic IDs: expected int32 (items, 1..{len(LETTERS)} levels), "
                f"got {codes_IL.dtype} {codes_IL.shape}"
            )
        if codes_IL.min(initial=0) < 0 or codes_IL.max(initial=0) >= self.n_codes:
            raise ArtifactError(f"semantic IDs: a code is outside 0..{self.n_codes - 1}")
        if len(np.unique(codes_IL, axis=0)) < len(codes_IL):
            raise ArtifactError("semantic IDs: two items share the same codes")

    def __len__(self) -> int:
        return len(self.codes_IL)

    @property
    def levels(self) -> int:
        return self.codes_IL.shape[1]

    @cached_property
    def _item_of(self) -> dict[tuple[int, ...], int]:
        return {tuple(codes): item for item, codes in enumerate(self.codes_IL.tolist())}

    def codes(self, item: int) -> tuple[int, ...]:
        """Codes of one item."""
        if not 0 <= item < len(self):
            raise DataError(f"item {item}: the catalogue has items 0..{len(self) - 1}")
        return tuple(self.codes_IL[item].tolist())

    def text(self, item: int) -> str:
        """`sid_text` of one item."""
        return sid_text(self.codes(item))

    def item(self, codes: Sequence[int]) -> int | None:
        """Item of one ID, or None."""
        return self._item_of.get(tuple(codes))

    def save(self, directory: Path) -> None:
        """Write `codes.safetensors` and `items.index.json` (LC-Rec's: `{"0": ["<a_57>", ...]}`)."""
        alphabet = np.array([self.n_codes], dtype=np.int32)
        save_arrays(directory / "codes.safetensors", codes_IL=self.codes_IL, n_codes=alphabet)
        index = {
            str(item): [f"<{letter}_{code}>" for letter, code in zip(LETTERS, codes, strict=False)]
            for item, codes in enumerate(self.codes_IL.tolist())
        }
        write_json(directory / "items.index.json", index)

    @classmethod
    def load(cls, directory: Path) -> SemanticIds:
        """Read what `save` wrote."""
        path = directory / "codes.safetensors"
        arrays = load_arrays(path)
        try:
            return cls(arrays["codes_IL"], int(arrays["n_codes"][0]))
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from None
