"""Semantic IDs: item -> codes, codes -> item, and the prefix trie of a set of IDs.

Contract: `SemanticIds` holds one unique row of codes per item (checked) and answers both ways, for
one ID or many. `Trie` is a true prefix trie (a node per distinct prefix, not a table of pairs), so
what it allows is exactly the set it was built from; `SemanticIds.trie_of(items)` builds the small
one of a candidate list. Not here: how codes come about (`items.quantize`), tokenizers.
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

CODES_FILE = "codes.safetensors"
INDEX_FILE = "items.index.json"
MAX_LEVELS = 8
SID_TOKEN = re.compile(r"<s_([a-h])_(0|[1-9][0-9]*)>")
ABSENT = -1


def level_letter(level: int) -> str:
    """`a` for the first level, and so on."""
    if not 0 <= level < MAX_LEVELS:
        raise ValueError(f"level {level} is not in 0..{MAX_LEVELS - 1}")
    return chr(ord("a") + level)


def sid_token(level: int, code: int) -> str:
    """The token of one code: `<s_a_57>`."""
    return f"<s_{level_letter(level)}_{code}>"


def sid_tokens(levels: int, n_codes: int) -> list[str]:
    """All tokens, level by level, in the order in which vocabularies take them."""
    return [sid_token(level, code) for level in range(levels) for code in range(n_codes)]


def sid_text(codes: Sequence[int] | np.ndarray) -> str:
    """One ID as text: `<s_a_57><s_b_3>...`."""
    return "".join(sid_token(level, int(code)) for level, code in enumerate(codes))


def parse_sid(text: str) -> tuple[int, ...] | None:
    """The codes of `sid_text`; None if the text is anything else."""
    matches = list(SID_TOKEN.finditer(text))
    codes = tuple(int(match[2]) for match in matches)
    if not codes or len(codes) > MAX_LEVELS or sid_text(codes) != text:
        return None
    return codes


@dataclass(frozen=True)
class Trie:
    """Distinct prefixes as sorted arrays: node n of depth d stands for the prefix's last code.

    `keys[d][n] = parent node * n_codes + code`, ascending; the root is node 0 of depth 0.
    """

    keys: tuple[np.ndarray, ...]
    n_codes: int

    @classmethod
    def build(cls, codes_IL: np.ndarray, n_codes: int) -> Trie:
        parent_I = np.zeros(len(codes_IL), dtype=np.int64)
        keys = []
        for code_I in codes_IL.T:
            level, parent_I = np.unique(parent_I * n_codes + code_I, return_inverse=True)
            keys.append(level.astype(np.int64))
        return cls(tuple(keys), n_codes)

    @property
    def levels(self) -> int:
        return len(self.keys)

    def nodes(self, prefixes_NP: np.ndarray) -> np.ndarray:
        """Node of each prefix (rows of the same depth), ABSENT where there is none."""
        prefixes_NP = np.asarray(prefixes_NP)
        if prefixes_NP.ndim != 2 or prefixes_NP.shape[1] > self.levels:
            raise DataError(
                f"semantic ID prefix of shape {prefixes_NP.shape}: at most {self.levels} codes"
            )
        node_N = np.zeros(len(prefixes_NP), dtype=np.int64)
        for keys, code_N in zip(self.keys, prefixes_NP.T, strict=False):
            code_N = code_N.astype(np.int64)
            inside_N = (node_N != ABSENT) & (code_N >= 0) & (code_N < self.n_codes)
            wanted_N = node_N * self.n_codes + code_N
            place_N = np.minimum(np.searchsorted(keys, wanted_N), len(keys) - 1)
            found_N = inside_N & (keys[place_N] == wanted_N) if len(keys) else inside_N & False
            node_N = np.where(found_N, place_N, ABSENT)
        return node_N

    def children(self, prefix: Sequence[int] | np.ndarray = ()) -> np.ndarray:
        """Codes that may follow, ascending; none for an unknown or a complete prefix."""
        depth = len(prefix)
        node = int(self.nodes(np.asarray(prefix, dtype=np.int64)[None])[0])
        if node == ABSENT or depth == self.levels:
            return np.zeros(0, dtype=np.int32)
        low, high = np.searchsorted(
            self.keys[depth], [node * self.n_codes, (node + 1) * self.n_codes]
        )
        return (self.keys[depth][low:high] - node * self.n_codes).astype(np.int32)

    def allowed(self, prefixes_NP: np.ndarray) -> np.ndarray:
        """Mask (prefixes, n_codes) of the codes that may follow each prefix."""
        mask_NC = np.zeros((len(prefixes_NP), self.n_codes), dtype=bool)
        for row, prefix in enumerate(prefixes_NP):
            mask_NC[row, self.children(prefix)] = True
        return mask_NC


@dataclass(frozen=True)
class SemanticIds:
    """Codes of all items; `n_codes` is the size of each level's alphabet."""

    codes_IL: np.ndarray  # int32
    n_codes: int

    def __post_init__(self) -> None:
        codes = self.codes_IL
        if codes.ndim != 2 or codes.dtype != np.int32 or not 1 <= codes.shape[1] <= MAX_LEVELS:
            raise ArtifactError(
                f"semantic IDs: expected int32 (items, 1..{MAX_LEVELS} levels), "
                f"got {codes.dtype} {codes.shape}"
            )
        if codes.size and (codes.min() < 0 or codes.max() >= self.n_codes):
            raise ArtifactError(f"semantic IDs: a code is outside 0..{self.n_codes - 1}")
        if len(self.trie.keys[-1]) != len(codes):
            raise ArtifactError("semantic IDs: two items share the same codes")

    def __len__(self) -> int:
        return len(self.codes_IL)

    @property
    def levels(self) -> int:
        return self.codes_IL.shape[1]

    @cached_property
    def trie(self) -> Trie:
        """The prefix trie of the whole catalogue."""
        return Trie.build(self.codes_IL, self.n_codes)

    @cached_property
    def _item_of_leaf(self) -> np.ndarray:
        leaf_I = self.trie.nodes(self.codes_IL)
        items = np.empty(len(self), dtype=np.int32)
        items[leaf_I] = np.arange(len(self), dtype=np.int32)
        return items

    def codes(self, item: int) -> tuple[int, ...]:
        """Codes of one item."""
        if not 0 <= item < len(self):
            raise DataError(f"item {item}: the catalogue has items 0..{len(self) - 1}")
        return tuple(self.codes_IL[item].tolist())

    def text(self, item: int) -> str:
        """`sid_text` of one item."""
        return sid_text(self.codes(item))

    def items(self, codes_NL: np.ndarray) -> np.ndarray:
        """Item of each row of codes, ABSENT (-1) where no item has them; int32."""
        codes_NL = np.asarray(codes_NL)
        if codes_NL.ndim != 2 or codes_NL.shape[1] != self.levels:
            raise DataError(f"semantic ID of shape {codes_NL.shape[1:]}: expected {self.levels}")
        leaf_N = self.trie.nodes(codes_NL)
        return np.where(leaf_N == ABSENT, ABSENT, self._item_of_leaf[leaf_N]).astype(np.int32)

    def item(self, codes: Sequence[int] | np.ndarray) -> int | None:
        """Item of one ID, or None."""
        if len(codes) != self.levels:
            return None
        found = int(self.items(np.asarray(codes, dtype=np.int64)[None])[0])
        return None if found == ABSENT else found

    def trie_of(self, items: Sequence[int] | np.ndarray) -> Trie:
        """The prefix trie of some items only (say, the candidates that remain)."""
        return Trie.build(self.codes_IL[np.asarray(items, dtype=np.int64)], self.n_codes)

    def save(self, directory: Path) -> None:
        """Write `codes.safetensors` and `items.index.json`."""
        alphabet = np.array([self.n_codes], dtype=np.int32)
        save_arrays(directory / CODES_FILE, codes_IL=self.codes_IL, n_codes=alphabet)
        write_json(directory / INDEX_FILE, self.index())

    def index(self) -> dict[str, list[str]]:
        """LC-Rec's form: `{"0": ["<a_57>", "<b_3>", ...], ...}`."""
        letters = [level_letter(level) for level in range(self.levels)]
        return {
            str(item): [f"<{letter}_{code}>" for letter, code in zip(letters, row, strict=True)]
            for item, row in enumerate(self.codes_IL.tolist())
        }

    @classmethod
    def load(cls, directory: Path) -> SemanticIds:
        """Read what `save` wrote."""
        path = directory / CODES_FILE
        arrays = load_arrays(path)
        try:
            return cls(arrays["codes_IL"], int(arrays["n_codes"][0]))
        except (KeyError, IndexError):
            raise ArtifactError(f"{path}: not saved semantic IDs") from None
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from None
