"""Counter-based randomness: every draw is a function of (seed, purpose, counters).

Contract: the same key gives the same stream in any process, on any worker, after any resume; so no
random state is ever stored. Keys are tuples of strings and integers, for
example `generator(seed, "cft", "noise", step, n)`. Not here: global seeding, which hides order
dependence; nothing in this package calls `torch.manual_seed` for its draws.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


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


def permutation(n: int, *parts: str | int) -> np.ndarray:
    """A permutation of range(n) for the key (data order, shuffles)."""
    return generator(*parts).permutation(n)
