"""What may be known of the interactions, and which of a shop's own lists train.

Contract: `known_part` is what items, retriever, evidence and mid-training count and learn from: the
train part of every history, or, where the lists are the shop's own, what their split allows
(`candidates.own_split`). `own_parts` are the own lists and the split of each. Not here: the lists
of a retriever of ours (`candidates.lists`).
"""

from pathlib import Path

import numpy as np

from diffgr2.candidates.own_split import known_part as known_of
from diffgr2.candidates.own_split import parts_of
from diffgr2.config import Recipe
from diffgr2.data.own_store import OwnLists, read_own_lists
from diffgr2.data.store import Dataset
from diffgr2.errors import ArtifactError
from diffgr2.types import Histories


def own_parts(recipe: Recipe, data: Path) -> tuple[OwnLists, np.ndarray] | None:
    """The shop's own lists and their splits; None where the recipe has none."""
    if recipe.lists.file is None:
        return None
    own = read_own_lists(data)
    if own is None:
        raise ArtifactError(f"{data}: holds no own lists (run: diffgr2 data RECIPE)")
    return own, parts_of(own, recipe.lists)


def known_part(recipe: Recipe, data: Path, dataset: Dataset) -> Histories:
    """See the module's docstring."""
    found = own_parts(recipe, data)
    if found is None:
        return dataset.histories.train_part()
    return known_of(found[0], dataset.histories, found[1], recipe.lists)
