"""What a system answered on the test lists: the saved form that every table is made from.

Contract: `order_LK` is a permutation of candidate positions per decoded list, after the repair
policy, ended by -1 where a list is shorter than K; what the raw answers were worth stands beside it
in `raw_valid_L` and `failures_LX`, what was stated (`levels_LK`), how often an output contradicts
itself and how sure it is in arrays of their own. `rows_L` names the decoded lists when only some
were. Orders and lengths are checked where an object is made; `<name>.safetensors` holds the arrays,
`<name>.json` the rest. Not here: tokens, text, or anything that needs a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.errors import DataError
from diffgr2.evaluate.metrics import rows_are_permutations


@dataclass(frozen=True)
class SystemOutputs:
    """One row of a results table, before it is measured. L is the number of decoded lists."""

    name: str
    order_LK: np.ndarray  # int16 candidate positions, best first
    n_lists: int  # lists in the split, decoded or not
    split: str = "test"
    rows_L: np.ndarray | None = None  # int32, which lists were decoded, ascending; None = all
    raw_valid_L: np.ndarray | None = None
    failures_LX: np.ndarray | None = None  # X = types.FAILURES
    n_tokens_L: np.ndarray | None = None
    reasoning_tokens_L: np.ndarray | None = None
    nfe_L: np.ndarray | None = None
    forced_L: np.ndarray | None = None  # tokens that the grammar left no choice about
    cited_right_L: np.ndarray | None = None
    cited_total_L: np.ndarray | None = None
    contradictions_L: np.ndarray | None = None  # statements that contradict another, the prompt …
    levels_LK: np.ndarray | None = None  # float32 expected strengths, floor order; NaN: unjudged
    chance_LK: np.ndarray | None = None  # float32 calibrated probabilities, floor order
    text_L: np.ndarray | None = None  # digest of the output's tokens: equal texts, equal digests
    timing: dict[str, Any] = field(default_factory=dict)  # ms_per_list, prefill_ms, batch, …
    meta: dict[str, Any] = field(default_factory=dict)  # decoder, threshold, rule, accept

    def __post_init__(self) -> None:
        n = len(self.rows)
        for name, array in self.arrays().items():
            if len(array) != n:
                raise DataError(f"outputs {self.name}: {name} has {len(array)} entries, not {n}")
            if name.endswith("_LK") and array.shape != self.order_LK.shape:
                raise DataError(f"outputs {self.name}: {name} is not {self.order_LK.shape[1]} wide")
        bad = np.flatnonzero(~rows_are_permutations(self.order_LK))
        if len(bad):
            raise DataError(f"outputs {self.name}: order_LK: row {bad[0]} is not a permutation")

    @property
    def rows(self) -> np.ndarray:
        """The decoded lists' numbers."""
        return np.arange(self.n_lists) if self.rows_L is None else self.rows_L

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays that are there, by name."""
        return {name: a for name, a in vars(self).items() if isinstance(a, np.ndarray)}


def stacked(rows: Sequence[np.ndarray], k: int, fill: float) -> np.ndarray:
    """Rows of at most k entries as one array, filled up at their ends."""
    result_LK = np.full((len(rows), k), fill, dtype=np.result_type(*rows, type(fill)))
    for row, values in enumerate(rows):
        result_LK[row, : len(values)] = values
    return result_LK


def save_outputs(directory: Path, outputs: SystemOutputs) -> None:
    """Write `<name>.safetensors` and `<name>.json`."""
    arrays = outputs.arrays()
    save_arrays(directory / f"{outputs.name}.safetensors", **arrays)
    rest = {k: v for k, v in vars(outputs).items() if v is not None and k not in arrays}
    write_json(directory / f"{outputs.name}.json", rest)


def load_outputs(directory: Path, name: str) -> SystemOutputs:
    """Read what `save_outputs` wrote; a file that cannot be read is an ArtifactError naming it."""
    rest = read_json(directory / f"{name}.json")
    return SystemOutputs(**{**rest, **load_arrays(directory / f"{name}.safetensors")})
