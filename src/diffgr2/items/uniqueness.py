"""From natural codes to one semantic ID per item.

Three figures, from strict to final, each the number of distinct IDs divided by the items:

- `natural`: every item takes the nearest code at every level, and nothing else is done.
- `assigned` (`assigned`): items whose codes are theirs alone keep them. Those that share codes get
  the free last codes under their prefix, so that all of them together are as near to their codes
  as can be (the Hungarian algorithm). Where more share a prefix than it has codes, those that come
  away empty go to the next nearest code of the last level but one, `BEAM` of them at most. Such an
  ID still says what the item is like. Whoever finds none keeps its natural codes and counts as a
  duplicate here.
- `after` (`make_unique`, the policy): the remaining duplicates get their last `random_last` codes
  at random from the free ones under their prefix ("random last levels"); where a prefix is full,
  one more level is drawn, and so on. Always 1, or an error.

`placed` gives items that come later IDs of their own beside those that stand, which never change.

Not here: whether the quantizer suffices; the stage compares `natural` with `items.min_unique`.
"""

from collections.abc import Iterator

import numpy as np

from diffgr2.errors import ConfigError
from diffgr2.items.kmeans import distances
from diffgr2.items.quantize import Quantizer
from diffgr2.streams import generator

BEAM = 8  # codes of the last level but one that an item may move to
ENUMERATE = 2**20  # suffixes whose free ones are listed; of more, they are drawn until one is free


def prefix_ids(codes_IP: np.ndarray) -> np.ndarray:
    """A dense number per distinct row, in lexicographic order (all 0 for no columns)."""
    ids_I = np.zeros(len(codes_IP), dtype=np.int64)
    for code_I in codes_IP.T:
        _, ids_I = np.unique(ids_I * (int(code_I.max(initial=0)) + 1) + code_I, return_inverse=True)
    return ids_I


def later_rows(codes_IL: np.ndarray) -> np.ndarray:
    """Rows whose codes an earlier row has already, ascending."""
    _, first = np.unique(prefix_ids(codes_IL), return_index=True)
    later_I = np.ones(len(codes_IL), dtype=bool)
    later_I[first] = False
    return np.flatnonzero(later_I)


def distinct_share(codes_IL: np.ndarray) -> float:
    """Distinct rows per row."""
    return 1.0 - len(later_rows(codes_IL)) / max(len(codes_IL), 1)


def check_capacity(n_items: int, levels: int, codes: int) -> None:
    """There must be at least as many semantic IDs as items."""
    if codes**levels < n_items:
        raise ConfigError(
            f"items.levels {levels} x items.codes {codes} allow {codes**levels} semantic IDs, "
            f"fewer than the {n_items} items"
        )


def shared_rows(codes_IL: np.ndarray) -> np.ndarray:
    """Rows whose codes some other row has, too, ascending."""
    group_I = prefix_ids(codes_IL)
    return np.flatnonzero(np.bincount(group_I)[group_I] > 1)


def assigned(latents_IE: np.ndarray, codes_IL: np.ndarray, quantizer: Quantizer) -> np.ndarray:
    """Codes in which rows that share theirs have moved to near free ones, where there are any."""
    return _assigned(latents_IE, codes_IL, quantizer, shared_rows(codes_IL))


def _assigned(
    latents_IE: np.ndarray, codes_IL: np.ndarray, quantizer: Quantizer, move_J: np.ndarray
) -> np.ndarray:
    """The same for the rows `move_J`; all others stay."""
    result_IL = codes_IL.copy()
    stays_I = np.ones(len(codes_IL), dtype=bool)
    stays_I[move_J] = False
    taken = _by_prefix(codes_IL[stays_I])
    levels = codes_IL.shape[1]
    rest_JE = latents_IE[move_J].astype(np.float32)
    for level in range(levels - 2):
        rest_JE = quantizer.left(rest_JE, level, codes_IL[move_J, level])
    waiting = np.arange(len(move_J))
    for near_J in _second_last(rest_JE, codes_IL[move_J], quantizer):
        if not len(waiting):
            break
        heads_JP = codes_IL[move_J, :-1].copy()
        last_JE = rest_JE
        if levels > 1:
            heads_JP[:, -1] = near_J
            last_JE = quantizer.left(rest_JE, levels - 2, near_J)
        group_W = prefix_ids(heads_JP[waiting])
        by_group = waiting[np.argsort(group_W, kind="stable")]
        empty = []
        for rows in np.split(by_group, np.cumsum(np.bincount(group_W))[:-1]):
            used = taken.setdefault(tuple(heads_JP[rows[0]].tolist()), set())
            placed_J, code_J = _dealt(last_JE[rows], quantizer.codebooks_LCD[-1], used)
            used.update(code_J.tolist())
            found = rows[placed_J]
            result_IL[move_J[found], :-1] = heads_JP[found]
            result_IL[move_J[found], -1] = code_J
            empty.append(np.delete(rows, placed_J))
        waiting = np.sort(np.concatenate(empty))
    return result_IL


def _by_prefix(codes_IL: np.ndarray) -> dict[tuple[int, ...], set[int]]:
    """Which last codes each prefix has given away."""
    taken: dict[tuple[int, ...], set[int]] = {}
    for *head, last in codes_IL.tolist():
        taken.setdefault(tuple(head), set()).add(last)
    return taken


def _second_last(
    rest_JE: np.ndarray, codes_JL: np.ndarray, quantizer: Quantizer
) -> Iterator[np.ndarray]:
    """Codes of the last level but one: each row's own, then the next nearest."""
    if codes_JL.shape[1] == 1:  # no such level: nowhere else to go
        yield codes_JL[:, -1]
        return
    own_J = codes_JL[:, -2]
    yield own_J
    gap_JC = distances(rest_JE, quantizer.codebooks_LCD[-2])
    gap_JC[np.arange(len(own_J)), own_J] = -np.inf
    near_JB = np.argsort(gap_JC, axis=1, kind="stable")[:, 1 : BEAM + 1]  # ties: the lower code
    yield from near_JB.T


def _dealt(
    rest_RE: np.ndarray, codes_CE: np.ndarray, used: set[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, codes) with the least total distance; as many rows as there are free codes."""
    free = np.setdiff1d(np.arange(len(codes_CE)), np.fromiter(used, np.int64, len(used)))
    cost_RF = distances(rest_RE, codes_CE[free])
    cost_RF += np.square(rest_RE).sum(axis=1, keepdims=True)  # who goes empty depends on it
    if not len(free):
        return np.zeros(0, dtype=np.int64), free
    if len(rest_RE) == 1:
        return np.zeros(1, dtype=np.int64), free[[int(cost_RF[0].argmin())]]
    from scipy.optimize import linear_sum_assignment  # late: a refresh seldom needs it

    row_P, place_P = linear_sum_assignment(cost_RF)
    return row_P, free[place_P]


def _draw(used: np.ndarray, wanted: int, n_codes: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `wanted` suffixes (rows of codes) that are not among the rows of `used`."""
    last = used.shape[1]
    space = n_codes**last
    if space <= ENUMERATE:
        place_M = n_codes ** np.arange(last - 1, -1, -1)
        free = np.setdiff1d(np.arange(space), used @ place_M)
        picked = rng.permutation(free)[:wanted]
        return picked[:, None] // place_M % n_codes
    taken = set(map(tuple, used.tolist()))
    wanted = min(wanted, space - len(taken))
    drawn: list[tuple[int, ...]] = []
    while len(drawn) < wanted:
        suffix = tuple(rng.integers(n_codes, size=last).tolist())
        if suffix not in taken:
            taken.add(suffix)
            drawn.append(suffix)
    return np.array(drawn, dtype=np.int64).reshape(-1, last)


def _redraw_last(
    codes_IL: np.ndarray, late_J: np.ndarray, last: int, n_codes: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw the last codes of the late rows among the free ones; returns the rows that moved."""
    kept = codes_IL.shape[1] - last
    prefix_I = prefix_ids(codes_IL[:, :kept])
    order_I = np.argsort(prefix_I, kind="stable")
    members_of = np.split(order_I, np.cumsum(np.bincount(prefix_I))[:-1])
    is_late_I = np.zeros(len(codes_IL), dtype=bool)
    is_late_I[late_J] = True
    moved = []
    for prefix in np.unique(prefix_I[late_J]):
        members = members_of[prefix]
        waiting = members[is_late_I[members]]
        suffixes = _draw(codes_IL[members, kept:].astype(np.int64), len(waiting), n_codes, rng)
        moved.append(waiting[: len(suffixes)])
        codes_IL[moved[-1], kept:] = suffixes
    return np.concatenate(moved)


def make_unique(
    codes_IL: np.ndarray, n_codes: int, random_last: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Unique codes, and for each item how many of its last codes were drawn at random."""
    n_items, levels = codes_IL.shape
    check_capacity(n_items, levels, n_codes)
    result_IL = codes_IL.astype(np.int32, copy=True)
    drawn_I = np.zeros(n_items, dtype=np.int32)
    late_J = later_rows(result_IL)
    if len(late_J) and random_last == 0:
        raise ConfigError(
            f"items: {len(late_J)} of {n_items} items share another item's semantic ID and "
            "items.random_last is 0"
        )
    last = min(random_last, levels)
    while len(late_J):  # ends: all levels together have room for every item
        rng = generator(seed, "items", "random_last", last)
        drawn_I[_redraw_last(result_IL, late_J, last, n_codes, rng)] = last
        late_J = later_rows(result_IL)
        last += 1
    return result_IL, drawn_I


def placed(
    codes_IL: np.ndarray,
    natural_NL: np.ndarray,
    latents_NE: np.ndarray,
    quantizer: Quantizer,
    random_last: int,
    seed: int,
) -> np.ndarray:
    """Codes of new items: their natural ones, or else near ones that no item has.

    Where none is free under their first codes, the last ones are drawn as `make_unique` draws them.
    """
    known = len(codes_IL)
    together_IL = np.concatenate([codes_IL, natural_NL]).astype(np.int32)
    latents_IE = np.zeros((len(together_IL), latents_NE.shape[1]), np.float32)
    latents_IE[known:] = latents_NE  # those of known items are not looked at: they stay
    shared_J = shared_rows(together_IL)
    near_IL = _assigned(latents_IE, together_IL, quantizer, shared_J[shared_J >= known])
    n_codes = quantizer.codebooks_LCD.shape[1]
    return make_unique(near_IL, n_codes, max(1, random_last), seed)[0][known:]
