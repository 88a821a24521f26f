"""A cost as a power law of the data's sizes, from a few measurements.

Contract: `fit(points, expected)` finds `base + scale * x1^a1 * x2^a2 …` of the sizes named in
`expected`, whose values are the powers that theory expects: where measurements tell two powers
apart they decide, where they do not (all sizes grew together, or noise) the expected ones stand.
`Law.beyond(sizes)` is how far outside the measured range a size lies: 1 inside. Not here: what is
measured (`measuring`).

>>> law = fit([({"n": n}, 2.0 + 3e-6 * n) for n in (1e4, 1e5, 1e6, 1e7)], {"n": 1.0})
>>> round(law.powers["n"], 2), round(law.at({"n": 1e8}), -1)
(1.0, 300.0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TRUST = 0.1
"""How much a power's square distance from what is expected weighs beside square residuals: what one
run is off from the next, 5 %, over what a power is off from its loops, .15, squared."""

BASES = 81
"""Values of the base that are tried, from none to nearly the smallest measurement."""

MORE = 0.3
"""What is added to an expected power, at most."""

LESS = 0.1
"""How far below the suggested power a fit may end where there is one size."""

Sizes = Mapping[str, float]


@dataclass(frozen=True)
class Law:
    """See the module's docstring."""

    base: float
    scale: float
    powers: dict[str, float]
    least: dict[str, float]  # smallest and largest measured of each size
    most: dict[str, float]
    misfit: float  # largest share by which a measurement is off
    count: int

    def at(self, sizes: Sizes) -> float:
        growing = math.prod(sizes[name] ** power for name, power in self.powers.items())
        return self.base + self.scale * growing

    def beyond(self, sizes: Sizes) -> float:
        """How many times larger, or smaller, than what was measured."""
        outside = [
            max(sizes[name] / self.most[name], self.least[name] / sizes[name], 1.0)
            for name in self.powers
        ]
        return max(outside, default=1.0)

    def said(self) -> str:
        """`2 + 3e-06 * n^1.00`."""
        grows = " ".join(f"{name}^{power:.2f}" for name, power in self.powers.items())
        return f"{self.base:.3g} + {self.scale:.2g} × {grows}"


def fit(
    points: Sequence[tuple[Sizes, float]],
    expected: Mapping[str, float],
    grain: float = 0.0,
    *,
    based: bool = True,
) -> Law:
    """See the module's docstring; values and sizes are above 0, values below `grain` are noise.

    Where it is known that nothing is spent on no data, it is not `based`.
    """
    names = list(expected)
    value_P = np.array([value for _, value in points], float)
    log_PV = np.array([[math.log(sizes[name]) for name in names] for sizes, _ in points])
    expected_V = np.array([*expected.values()], float)
    best: tuple[float, float, float, np.ndarray] | None = None
    for base in np.linspace(0.0, 0.98, BASES if based else 1) * value_P.min():
        # What is off by a percent is off by more once the base is taken from it.
        weight_P = np.square((value_P - base) / (value_P + grain))
        scale, power_V = _powers(log_PV, np.log(value_P - base), weight_P, expected_V)
        said_P = base + np.exp(scale + log_PV @ power_V)
        off = float(weight_P @ np.square(np.log(said_P / value_P)))
        off += TRUST * float(np.square(power_V - expected_V).sum())
        if best is None or off < best[0] - 1e-12:
            best = off, float(base), scale, power_V
    assert best is not None, "nothing was measured"
    _, base, scale, power_V = best
    said_P = base + np.exp(scale + log_PV @ power_V)
    ends = {name: sorted(sizes[name] for sizes, _ in points) for name in names}
    return Law(
        base,
        math.exp(scale),
        dict(zip(names, power_V.tolist(), strict=True)),
        {name: found[0] for name, found in ends.items()},
        {name: found[-1] for name, found in ends.items()},
        float(np.abs(said_P / value_P - 1).max()),
        len(points),
    )


def _powers(
    log_PV: np.ndarray, value_P: np.ndarray, weight_P: np.ndarray, expected_V: np.ndarray
) -> tuple[float, np.ndarray]:
    """Ridge regression towards the expected powers: (log of the scale, powers)."""
    share_P = weight_P / weight_P.sum()
    middle_V, rest_P = share_P @ log_PV, value_P - log_PV @ expected_V
    centred_PV = log_PV - middle_V
    left_VP = centred_PV.T * weight_P
    square_VV = left_VP @ centred_PV + TRUST * np.eye(len(expected_V))
    change_V = np.linalg.solve(square_VV, left_VP @ (rest_P - share_P @ rest_P))
    # No part of a pipeline gets cheaper with more data, or grows much faster than its loops say.
    # Beside others a size may turn out not to matter; what grows with one alone is a loop over it.
    least_V = np.maximum(expected_V - LESS, 0.0) if len(expected_V) == 1 else 0.0
    power_V = np.clip(expected_V + change_V, least_V, expected_V + MORE)
    return float(share_P @ (value_P - log_PV @ power_V)), power_V
