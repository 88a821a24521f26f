"""A shop's own lists in the data stage's directory: numbered, flat, read once.

Contract: `write_own_lists(out, own)` writes `lists.safetensors` and `lists.json` beside the
dataset, the same bytes for the same lists; `read_own_lists(directory)` returns an equal `OwnLists`,
or None where the recipe has none. Candidates stand one behind the other in the shop's order, list
by list. Not here: the file that they come from (`own_rows`), splits (`candidates.own_split`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.data.columnar import packed_texts, texts_of

ARRAYS_FILE, NOTE = "lists.safetensors", "lists.json"


@dataclass(frozen=True)
class OwnLists:
    """L lists with N candidates in all, and G features of each."""

    offsets_L1: np.ndarray  # int64
    user_L: np.ndarray  # int32, whose history it sees
    end_L: np.ndarray  # int32, how many of that history's items
    person_L: np.ndarray  # int32, whose list it is: one of that person's rows for all of them
    moment_L: np.ndarray  # int64, when it was shown: seconds since 1970, or a position; -1 unknown
    target_L: np.ndarray  # int32, the item that the best outcome was about, in the list or not; -1
    item_N: np.ndarray  # int32
    score_N: np.ndarray  # float32, NaN where the shop gave none
    gain_N: np.ndarray  # float32
    feature_NG: np.ndarray  # float32, NaN missing
    names: list[str]  # of the lists, raw
    features: list[dict[str, Any]]  # name, kind, words
    moment: str  # time | position | none
    scored: bool  # the shop's scores are known
    inline: bool  # some histories came with the lists
    shown_N: np.ndarray | None = None  # int32, at which place it was shown, from 1; 0: it was not

    def __len__(self) -> int:
        return len(self.user_L)


def write_own_lists(out: Path, own: OwnLists) -> None:
    """Write both files into an existing directory."""
    arrays = {f.name: getattr(own, f.name) for f in fields(own) if f.name[-2:] in _ENDS}
    save_arrays(out / ARRAYS_FILE, **arrays, **packed_texts("name", own.names))
    about = {name: getattr(own, name) for name in ("features", "moment", "scored", "inline")}
    write_json(out / NOTE, about)


_ENDS = ("L1", "_L", "_N", "NG")
"""Endings of the names of arrays."""


def read_own_lists(directory: Path) -> OwnLists | None:
    """Read back what `write_own_lists` wrote."""
    if not (directory / NOTE).exists():
        return None
    arrays = load_arrays(directory / ARRAYS_FILE)
    names = texts_of("name", arrays)
    known = {f.name: arrays[f.name] for f in fields(OwnLists) if f.name in arrays}
    return OwnLists(**known, names=names, **read_json(directory / NOTE))
