"""Machines and amounts as people write them: `8x16c64g+1x80GBgpu`, `200M`.

Contract: `machines_of` reads `[N x] CORES c MEMORY g`, and behind a plus the GPUs of each machine;
`amount_of` reads a number with k, M or B behind it. Errors are one line that names the option.
Not here: what this machine is (`costtable`).

>>> machines_of("8x16c64g").cores, machines_of("4x8c32g+2x80GBgpu").gpus
(16, 8)
>>> amount_of("200M", "--interactions")
200000000.0
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from diffgr2.errors import ConfigError

GRAMMAR = "[N x]CORESc MEMORYg[+[N x]SIZEgpu], like 8x16c64g or 4x8c32g+1x80GBgpu"
PATTERN = re.compile(
    r"(?:(?P<count>\d+)x)?(?P<cores>\d+)c(?P<memory>\d+(?:\.\d+)?)gb?"
    r"(?:\+(?:(?P<gpus>\d+)x)?(?P<room>\d+(?:\.\d+)?)(?:gb?)?gpu)?",
    re.IGNORECASE,
)
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)([kKmMbB]?)")
TIMES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True)
class Machines:
    """So many equal machines."""

    count: int
    cores: int  # of each
    memory: float  # bytes of each
    each_gpus: int = 0
    gpu_memory: float = 0.0  # bytes of each GPU

    @property
    def gpus(self) -> int:
        return self.count * self.each_gpus

    def said(self) -> str:
        many = f"{self.count} machines of " if self.count > 1 else "a machine of "
        return f"{many}{self.cores} cores and {self.memory / 1e9:.0f} GB"


def machines_of(text: str) -> Machines:
    """See the module's docstring."""
    found = PATTERN.fullmatch(re.sub(r"\s", "", text))
    if found is None:
        raise ConfigError(f"--machines {text}: expected {GRAMMAR}")
    count, cores = int(found["count"] or 1), int(found["cores"])
    gpus = int(found["gpus"] or 1) if found["room"] else 0
    made = Machines(count, cores, float(found["memory"]) * 1e9, gpus, 0.0)
    room = float(found["room"] or 0) * 1e9
    if not (count and cores and made.memory) or (found["room"] and not (gpus and room)):
        raise ConfigError(f"--machines {text}: every number must be above 0")
    return Machines(count, cores, made.memory, gpus, room)


def amount_of(text: str, option: str) -> float:
    """`200M`, `1.5k` or `70000`."""
    found = AMOUNT.fullmatch(text.strip())
    value = float(found[1]) * TIMES[found[2].lower()] if found else 0.0
    if value <= 0:
        raise ConfigError(f"{option} {text}: expected a number above 0, like 70000, 1.5k or 200M")
    return value


def count_said(value: float) -> str:
    """`200 M`, `1.5 k`."""
    for unit in ("B", "M", "k"):
        if value >= TIMES[unit.lower()]:
            return f"{value / TIMES[unit.lower()]:.3g} {unit}"
    return f"{value:.3g}"
