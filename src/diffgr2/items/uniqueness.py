"""From natural codes to one semantic ID per item.

Three figures, from strict to final, each the number of distinct IDs divided by the items:

- `natural`: every item takes the nearest code at every level, and nothing else is done.
- `before` (`take_neighbours`): the first item of each group of equal codes keeps them; each other
  one takes the nearest combination of its last two codes that is still free, by total
  reconstruction error, if one is among its `NEIGHBOURS` nearest. Such an ID still says what the
  item is like. Whoever finds none keeps its natural codes and counts as a duplicate here.
- `after` (`make_unique`, the policy): the remaining duplicates get their last `random_last` codes
  at random from the free ones under their prefix ("random last levels"); where a prefix is full,
  one more level is drawn, and so on. Always 1, or an error.

`placed` gives items that come later IDs of their own beside those that stand, which never change.

Not here: whether the quantizer suffices; the stage compares `natural` with `items.min_unique`.
"""

import numpy as np

from diffgr2.errors import ConfigError
from diffgr2.items.kmeans import distances
from diffgr2.streams import generator

BEAM = 8  # codes of the last level but one that an alternative may use
NEIGHBOURS = 64  # alternatives looked at per item; further ones would no longer describe it
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


def _alternatives(
    rest_NE: np.ndarray, before_CE: np.ndarray, last_CE: np.ndarray, most: int
) -> np.ndarray:
    """The nearest pairs of (last but one, last) codes per residual, nearest first: (N, A, 2)."""
    n_codes = len(last_CE)
    beam_NB = np.argsort(distances(rest_NE, before_CE), axis=1, kind="stable")[:, :BEAM]
    left_NBE = rest_NE[:, None] - before_CE[beam_NB]
    total_XC = distances(left_NBE.reshape(-1, left_NBE.shape[-1]), last_CE)
    total_XC += np.einsum("nbe,nbe->nb", left_NBE, left_NBE).reshape(-1, 1)
    total_NA = total_XC.reshape(len(rest_NE), -1)
    near_NA = np.argsort(total_NA, axis=1, kind="stable")[:, :most]  # ties: the lower code
    previous_NA = np.take_along_axis(beam_NB, near_NA // n_codes, 1)
    return np.stack([previous_NA, near_NA % n_codes], axis=-1)


def take_neighbours(
    latents_IE: np.ndarray,
    codes_IL: np.ndarray,
    codebooks_LCE: np.ndarray,
    most: int = NEIGHBOURS,
) -> np.ndarray:
    """Codes in which later items of a group moved to a near free code, where one of `most` is."""
    result_IL = codes_IL.copy()
    levels, n_codes = codebooks_LCE.shape[:2]
    fixed = max(levels - 2, 0)
    # With a single level there is no last but one: a book of one zero vector takes its place.
    before_CE = codebooks_LCE[-2] if levels > 1 else np.zeros_like(codebooks_LCE[0, :1])
    taken = set(map(tuple, codes_IL.tolist()))
    late_J = later_rows(codes_IL)
    step = max(1, 2**22 // (min(BEAM, len(before_CE)) * n_codes))
    for start in range(0, len(late_J), step):
        late_N = late_J[start : start + step]
        rest_NE = latents_IE[late_N].astype(np.float32, copy=True)
        for level in range(fixed):
            rest_NE -= codebooks_LCE[level, codes_IL[late_N, level]]
        ends_NA2 = _alternatives(rest_NE, before_CE, codebooks_LCE[-1], most)[..., -levels:]
        for item, ends_A2 in zip(late_N, ends_NA2.tolist(), strict=True):
            head = codes_IL[item, :fixed].tolist()
            near = ((*head, *end) for end in ends_A2)
            free = next((codes for codes in near if codes not in taken), None)
            if free is not None:
                taken.add(free)
                result_IL[item] = free
    return result_IL


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
    codebooks_LCE: np.ndarray,
    random_last: int,
    seed: int,
) -> np.ndarray:
    """Codes of new items: their natural ones, or else the nearest that no item has.

    Where none is free under their first codes, the last ones are drawn as `make_unique` draws them.
    """
    known, n_codes = len(codes_IL), codebooks_LCE.shape[1]
    together_IL = np.concatenate([codes_IL, natural_NL]).astype(np.int32)
    latents_IE = np.zeros((len(together_IL), latents_NE.shape[1]), np.float32)
    latents_IE[known:] = latents_NE  # those of known items are not looked at: they are not late
    near_IL = take_neighbours(latents_IE, together_IL, codebooks_LCE, BEAM * n_codes)
    return make_unique(near_IL, n_codes, max(1, random_last), seed)[0][known:]
