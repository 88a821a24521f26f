"""The words the whole system speaks: small frozen dataclasses over plain arrays.

Shape letters: U users, N interactions, I items, L lists, K candidates, F evidence fields,
T tokens of one output. Item and user numbers are dense integers from 0; raw ids live in the
catalogue and the user table only. Not here: anything that reads files or knows a model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

NEVER = np.iinfo(np.int32).max
"""The step of a position that was not committed."""

MISS = -1
"""`hit_L` of a list that does not hold its target."""

MISSING = 255
"""Stands among buckets for evidence that is not there; a prompt passes over it."""

PADDING = -1
"""The item number behind the end of a list that is shorter than the array."""


def ndcg_of(rank: np.ndarray, depth: int) -> np.ndarray:
    """What a single target at this 0-based rank is worth: NDCG@depth (a negative rank is a miss).

    >>> ndcg_of(np.array([0, 2, 3, MISS]), 3).tolist()
    [1.0, 0.5, 0.0, 0.0]
    """
    inside = (rank >= 0) & (rank < depth)
    return np.where(inside, 1.0 / np.log2(np.maximum(rank, 0) + 2.0), 0.0)


@dataclass(frozen=True)
class Histories:
    """All users' items in order, as one flat array with offsets (user u: items[off[u]:off[u+1]]).

    Leave-one-out: test target = last item, validation target = last but one, the train
    part = all before. `cut` says how many trailing items a view hides.
    """

    offsets_U1: np.ndarray  # int64, length users + 1
    items_N: np.ndarray  # int32
    timestamps_N: np.ndarray  # int64, unix seconds; zeros if unknown
    n_items: int

    def __post_init__(self) -> None:
        assert self.offsets_U1[0] == 0
        assert self.offsets_U1[-1] == len(self.items_N) == len(self.timestamps_N)

    @property
    def n_users(self) -> int:
        return len(self.offsets_U1) - 1

    @property
    def lengths_U(self) -> np.ndarray:
        return np.diff(self.offsets_U1)

    def of(self, user: int, end: int | None = None) -> np.ndarray:
        """The first `end` items of a user (all by default; negative counts from the end)."""
        return self.items_N[self.offsets_U1[user] : self.offsets_U1[user + 1]][:end]

    def train_part(self) -> Histories:
        """Everything but each user's last two items."""
        keep_N = np.ones(len(self.items_N), dtype=bool)
        keep_N[self.offsets_U1[1:, None] - np.array([1, 2])] = False
        offsets_U1 = np.append(0, np.cumsum(self.lengths_U - 2))
        return Histories(offsets_U1, self.items_N[keep_N], self.timestamps_N[keep_N], self.n_items)


@dataclass(frozen=True)
class Catalogue:
    """What is known of each item, indexed by its dense number."""

    raw_ids: list[str]
    titles: list[str]  # "" where unknown
    brands: list[str]  # "" where unknown
    categories: list[list[str]]  # path from general to specific, may be empty
    prices: np.ndarray  # float64, NaN where unknown
    descriptions: list[str]

    def __len__(self) -> int:
        return len(self.raw_ids)


@dataclass(frozen=True)
class CandidateLists:
    """L candidate lists in floor order: the retriever's or the shop's order, best first.

    List l belongs to `user_L[l]`, sees that user's first `end_L[l]` items, and should rank what
    came of it first: `target_L[l]` (the item at position `end_L[l]`; -1 where there is none), or
    several candidates by `gains`. The target is in the list only where its maker put it there. A
    list may be shorter than the array: PADDING follows its last item, with score 0. Two lists of
    one `owner_L` are one person's: they are held back together and left out of counts together.
    """

    split: str  # train | validation | test
    user_L: np.ndarray  # int32
    end_L: np.ndarray  # int32
    target_L: np.ndarray  # int32
    items_LK: np.ndarray  # int32
    scores_LK: np.ndarray  # float32, NaN where the shop gave none
    gains: np.ndarray | None = None  # float32 (L, K), worth of a candidate's outcome; None: target
    person: np.ndarray | None = None  # int32 (L), whose list it is where that is not `user_L`
    moment: np.ndarray | None = None  # int64 (L), when it was shown, milliseconds; -1 unknown

    @property
    def k(self) -> int:
        return self.items_LK.shape[1]

    def __len__(self) -> int:
        return len(self.user_L)

    @cached_property
    def there_LK(self) -> np.ndarray:
        """Which columns hold a candidate."""
        return self.items_LK != PADDING

    @cached_property
    def length_L(self) -> np.ndarray:
        """How many candidates each list has."""
        return self.there_LK.sum(1).astype(np.int32)

    @cached_property
    def gains_LK(self) -> np.ndarray:
        """What each candidate's outcome is worth: 1 for the target where nothing else is said."""
        if self.gains is not None:
            return self.gains
        own_LK = (self.items_LK == self.target_L[:, None]) & self.there_LK
        return own_LK.astype(np.float32)

    @cached_property
    def hit_L(self) -> np.ndarray:
        """Column of the highest gain, the first of equals; MISS where nothing came of the list."""
        best_L = self.gains_LK.argmax(1)
        return np.where(self.gains_LK.max(1, initial=0.0) > 0, best_L, MISS).astype(np.int32)

    @property
    def owner_L(self) -> np.ndarray:
        """Whose list it is."""
        return self.user_L if self.person is None else self.person

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays that are there, by name."""
        return {name: a for name, a in vars(self).items() if name in ARRAYS and a is not None}

    def take(self, which: np.ndarray) -> CandidateLists:
        """These lists (index or mask), in that order."""
        return CandidateLists(self.split, **{name: a[which] for name, a in self.arrays().items()})


ARRAYS = tuple(field.name for field in fields(CandidateLists) if field.name != "split")
"""The arrays of `CandidateLists`, of which the last three may be missing."""


@dataclass(frozen=True)
class Trajectory:
    """One decoded output: tokens, when each was committed, and at which log-probability.

    `step_of_T[i]` is the number of the forward (0-based, counted per output) after which position i
    was committed; for AR it rises by one a decision. What the grammar left no choice about has the
    step of the commit that settled it (−1: settled before the first forward), log-probability 0 and
    `forced_T`. `logprob_T` is taken at the sampling temperature, over the tokens that were allowed.
    `level_T` is the expected level wherever a strength stands, NaN elsewhere. `canvas_T` and
    `canvas_step_T` hold the terminal block in full (tokens after the end token included, and NEVER
    where nothing was committed), which exact replay needs. `nfe` counts the forwards of this output
    without the prompt's prefill.
    """

    tokens_T: np.ndarray  # int64, up to and including the end (or the length limit)
    step_of_T: np.ndarray  # int32
    logprob_T: np.ndarray  # float32
    nfe: int
    finished: bool  # an end token was committed, or all that the grammar asks for
    canvas_T: np.ndarray | None = None
    canvas_step_T: np.ndarray | None = None
    forced_T: np.ndarray | None = None  # bool
    level_T: np.ndarray | None = None  # float32
    chances: dict[int, tuple[np.ndarray, np.ndarray]] | None = None
    """Where details were asked for: position -> (allowed tokens, their probabilities)."""

    @property
    def tpf(self) -> float:
        """Output tokens per forward."""
        return len(self.tokens_T) / max(self.nfe, 1)


FAILURES = ("unparseable", "duplicate", "missing", "out_of_set", "overlong")
"""Failure kinds of a raw answer, in the order in which they are reported."""


@dataclass(frozen=True)
class Answer:
    """A parsed output: positions in the candidate list, as the model wrote them.

    `order` may be invalid (that is what `failures` says); `repaired` and `floor` policies in
    `diffgr2.prompts.repair` turn it into a permutation.
    """

    order: tuple[int, ...]
    failures: tuple[str, ...]  # empty if `order` is a permutation of range(K)
    reasoning: str = ""  # plain English

    @property
    def valid(self) -> bool:
        return not self.failures
