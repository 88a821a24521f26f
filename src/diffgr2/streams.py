"""Counter-based randomness: every draw is a function of (seed, purpose, counters).

Contract: the same key gives the same stream in any process, on any worker, after any resume; so no
random state is ever stored. Keys are tuples of strings and integers, for
example `generator(seed, "cft", "noise", step, n)`. `words` are the first draws of many streams at
once, for loops in which a generator of its own for each would cost more than the work. Not here:
global seeding, which hides order dependence; nothing in this package calls `torch.manual_seed` for
its draws.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

WORDS_A_BLOCK = 8  # of 32 bits


def key_of(*parts: str | int) -> int:
    """A 63-bit key of the parts; distinct tuples give distinct keys (up to hash collisions).

    >>> key_of(1, "a") == key_of("1", "a")
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: str | int) -> np.random.Generator:
    """A NumPy generator for the key."""
    return np.random.Generator(np.random.Philox(key_of(*parts)))


def torch_generator(*parts: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for the key."""
    import torch  # late: most users of streams draw with NumPy alone

    return torch.Generator(device=device).manual_seed(key_of(*parts))


def keys_of(last: Sequence[str], *parts: str | int) -> np.ndarray:
    """`key_of(*parts, text)` of each of these texts, uint64."""
    stem = "".join(f"{type(part).__name__}:{part}\x1f" for part in parts) + "str:"
    start = hashlib.sha256(stem.encode())
    found = bytearray()
    for text in last:
        sha = start.copy()
        sha.update(text.encode())
        found += sha.digest()[:8]
    return np.frombuffer(found, "<u8") >> np.uint64(1)


def words(keys_K: np.ndarray, count_K: np.ndarray) -> np.ndarray:
    """The first `count` numbers below 2^32 of each key's generator, one key behind the other.

    They are what `generator(...).integers(1 << 32, size=count, dtype=np.uint32)` draws.
    """
    blocks_K = -(-count_K // WORDS_A_BLOCK)
    first_K = np.cumsum(blocks_K) - blocks_K
    counter_B = np.arange(int(blocks_K.sum())) - np.repeat(first_K, blocks_K) + 1
    key_B2 = np.repeat(_philox_keys(keys_K), blocks_K, 0)
    block_B8 = _philox(counter_B.astype(np.uint64), key_B2).astype("<u8").view("<u4")
    inside_B8 = (counter_B[:, None] - 1) * WORDS_A_BLOCK + np.arange(WORDS_A_BLOCK)
    return block_B8[inside_B8 < np.repeat(count_K, blocks_K)[:, None]]


def _philox_keys(keys_K: np.ndarray) -> np.ndarray:
    """What NumPy's SeedSequence makes of these seeds for Philox, uint64 (K, 2)."""
    factor = 0x43B0D7E5

    def hashed(value_K: np.ndarray, multiplier: int) -> np.ndarray:
        nonlocal factor
        value_K = value_K ^ np.uint32(factor)
        factor = factor * multiplier & 0xFFFFFFFF
        value_K = value_K * np.uint32(factor)
        return value_K ^ value_K >> np.uint32(16)

    low_high_2K = keys_K.astype("<u8").view("<u4").reshape(-1, 2).T
    none_K = np.zeros(len(keys_K), np.uint32)
    pool_4K = [hashed(part_K, 0x931E8875) for part_K in (*low_high_2K, none_K, none_K)]
    for source, target in itertools.permutations(range(4), 2):
        mixed_K = pool_4K[target] * np.uint32(0xCA01F9DD)
        mixed_K = mixed_K - hashed(pool_4K[source], 0x931E8875) * np.uint32(0x4973F715)
        pool_4K[target] = mixed_K ^ mixed_K >> np.uint32(16)
    factor = 0x8B51F9DD
    state_K4 = np.stack([hashed(part_K, 0x58F38DED) for part_K in pool_4K], 1)
    return np.ascontiguousarray(state_K4, "<u4").view("<u8").astype(np.uint64)


def _philox(counter_B: np.ndarray, key_B2: np.ndarray) -> np.ndarray:
    """Philox4x64-10 (Salmon et al., 2011) of these counters under these keys, uint64 (B, 4)."""
    a_B, b_B, c_B, d_B = counter_B, *(np.zeros_like(counter_B) for _ in range(3))
    one_B, two_B = key_B2[:, 0], key_B2[:, 1]
    for _ in range(10):
        (high_a_B, low_a_B), (high_c_B, low_c_B) = (
            _product(a_B, 0xD2E7470EE14C6C93),
            _product(c_B, 0xCA5A826395121157),
        )
        a_B, b_B, c_B, d_B = high_c_B ^ b_B ^ one_B, low_c_B, high_a_B ^ d_B ^ two_B, low_a_B
        one_B = one_B + np.uint64(0x9E3779B97F4A7C15)
        two_B = two_B + np.uint64(0xBB67AE8584CAA73B)
    return np.stack([a_B, b_B, c_B, d_B], 1)


def _product(x_B: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """(high, low) 64 bits of the products of 64 bits each."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    f_high, f_low = np.uint64(factor >> 32), np.uint64(factor & 0xFFFFFFFF)
    x_high, x_low = x_B >> half, x_B & low
    middle = x_high * f_low + (x_low * f_low >> half)
    other = x_low * f_high + (middle & low)
    return x_high * f_high + (middle >> half) + (other >> half), x_B * np.uint64(factor)


def permutation(n: int, *parts: str | int) -> np.ndarray:
    """A permutation of range(n) for the key (data order, shuffles)."""
    return generator(*parts).permutation(n)
