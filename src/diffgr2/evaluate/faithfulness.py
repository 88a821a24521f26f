"""Whether the cited evidence is what moved the strength: remove it and look again.

Contract: a `Removal` is one field taken out of one candidate's evidence, with its strength before
and after. A field counts *for* a candidate if removing it lowers the strength, *against* if it
raises it. `choose` draws the fields to remove, cited ones and graded ones that were not cited as
the control; `moved` is the share that moved as its side says, with an interval over lists. Not
here: decoding (`stages.probes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffgr2.evaluate.significance import ratio_interval
from diffgr2.prompts.english import NEITHER
from diffgr2.prompts.request import MISSING
from diffgr2.prompts.said import Reading

STILL = 1e-4
"""Strengths nearer than this are the same, as in the said order."""


@dataclass(frozen=True)
class Removal:
    """One field without which a list was decoded again."""

    list: int
    candidate: int
    field: int
    side: int  # FOR or AGAINST
    cited: bool
    before: float = np.nan
    after: float = np.nan

    def without(self, buckets_KF: np.ndarray) -> np.ndarray:
        """The evidence that is left."""
        left_KF = buckets_KF.copy()
        left_KF[self.candidate, self.field] = MISSING
        return left_KF

    @property
    def movement(self) -> float:
        """Levels moved in the direction that the side says."""
        return self.side * (self.before - self.after)


def choose(
    number: int, reading: Reading, side_KF: np.ndarray, most: int, rng: np.random.Generator
) -> list[Removal]:
    """Up to `most` cited fields and as many others that have a grade, of any candidates."""
    graded = [tuple(pair) for pair in np.argwhere(side_KF != NEITHER).tolist()]
    graded = [pair for pair in graded if not np.isnan(reading.levels_K[pair[0]])]
    cited = [pair for pair in graded if pair[1] in reading.cites[pair[0]]]
    # The control is about the same candidates: the strong move more than the weak.
    speaking = {candidate for candidate, _ in cited}
    other = [pair for pair in graded if pair not in set(cited) and pair[0] in speaking]
    chosen = []
    for pairs, is_cited in ((cited, True), (other, False)):
        for at in rng.permutation(len(pairs))[:most].tolist():
            i, field = pairs[at]
            before, side = float(reading.levels_K[i]), int(side_KF[i, field])
            chosen.append(Removal(number, i, field, side, is_cited, before))
    return chosen


def moved(removals: Sequence[Removal], resamples: int, *key: str | int) -> dict[str, Any]:
    """Share that moved as its side says, its 95 % interval over lists, and the mean movement."""
    known = [removal for removal in removals if not np.isnan(removal.movement)]
    if not known:
        return {"n": 0}
    move_N = np.array([removal.movement for removal in known])
    lists, list_N = np.unique([removal.list for removal in known], return_inverse=True)
    right_N = move_N > STILL
    right_U, all_U = np.bincount(list_N, right_N), np.bincount(list_N)
    return {
        "n": len(known),
        "lists": len(lists),
        "moved": float(right_N.mean()),
        "ci": list(ratio_interval(right_U, all_U, resamples, *key) or ()),  # a list counts whole
        "against": float((move_N < -STILL).mean()),
        "mean_levels": float(move_N.mean()),
    }


def faithfulness(removals: Sequence[Removal], resamples: int, *key: str | int) -> dict[str, Any]:
    """Cited fields, and the control; what has no case is left out."""
    parts = {"cited": True, "uncited": False}
    found = {
        name: moved([r for r in removals if r.cited == cited], resamples, *key, name)
        for name, cited in parts.items()
    }
    return {name: part for name, part in found.items() if part["n"]}
