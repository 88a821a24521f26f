"""What a system answered on the test lists: the saved form that every table is made from.

Contract: `order_LK` is a permutation of candidate positions per decoded list, after the repair
policy; what the raw answers were worth stands beside it in `raw_valid_L` and `failures_LX`.
`rows_L` names the decoded lists when only some were. Everything is checked when an object is made
and when one is loaded; `<name>.safetensors` holds the arrays, `<name>.json` the rest.
Not here: tokens, text, or anything that needs a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.errors import ArtifactError, DataError
from diffgr2.evaluate.metrics import rows_are_permutations
from diffgr2.types import FAILURES

TYPES = {
    "order_LK": np.int16,
    "shown_LK": np.int16,
    "rows_L": np.int32,
    "raw_valid_L": np.bool_,
    "failures_LX": np.bool_,
    "n_tokens_L": np.int32,
    "reasoning_tokens_L": np.int32,
    "nfe_L": np.int32,
    "cited_right_L": np.int32,
    "cited_total_L": np.int32,
    "text_L": np.int64,
}

REST = {"name": str, "split": str, "n_lists": int, "timing": dict, "meta": dict}
"""What stands in the JSON file, with its types."""


@dataclass(frozen=True)
class SystemOutputs:
    """One row of a results table, before it is measured. L is the number of decoded lists."""

    name: str
    order_LK: np.ndarray  # candidate positions, best first
    n_lists: int  # lists in the split, decoded or not
    split: str = "test"
    rows_L: np.ndarray | None = None  # which lists were decoded, ascending; None = all
    shown_LK: np.ndarray | None = None  # the order the model saw; None = the floor's
    raw_valid_L: np.ndarray | None = None
    failures_LX: np.ndarray | None = None  # X = types.FAILURES
    n_tokens_L: np.ndarray | None = None
    reasoning_tokens_L: np.ndarray | None = None
    nfe_L: np.ndarray | None = None
    cited_right_L: np.ndarray | None = None
    cited_total_L: np.ndarray | None = None
    text_L: np.ndarray | None = None  # digest of the output's tokens: equal texts, equal digests
    timing: dict[str, Any] = field(default_factory=dict)  # tokens, seconds, batch[, outputs]
    meta: dict[str, Any] = field(default_factory=dict)  # decoder, threshold, rule, stage, ...

    def __post_init__(self) -> None:
        for name, dtype in TYPES.items():
            array = getattr(self, name)
            if array is not None:
                object.__setattr__(self, name, np.asarray(array).astype(dtype))
        problem = _problem(self)
        if problem:
            raise DataError(f"outputs {self.name}: {problem}")

    @property
    def rows(self) -> np.ndarray:
        """The decoded lists' numbers."""
        return np.arange(self.n_lists) if self.rows_L is None else self.rows_L


def _problem(outputs: SystemOutputs) -> str | None:
    """What is wrong with these outputs, if anything."""
    order_LK = outputs.order_LK
    if order_LK.ndim != 2:
        return f"order_LK has {order_LK.ndim} dimensions, not 2"
    n = len(order_LK)
    if outputs.rows_L is None and n != outputs.n_lists:
        return f"order_LK has {n} rows for {outputs.n_lists} lists and rows_L is not given"
    rows = outputs.rows
    if len(rows) != n or (np.diff(rows) <= 0).any():
        return f"rows_L is not {n} ascending list numbers"
    if n and (rows[0] < 0 or rows[-1] >= outputs.n_lists):
        return f"rows_L names a list outside 0..{outputs.n_lists - 1}"
    for name in ("order_LK", "shown_LK"):
        array = getattr(outputs, name)
        if array is None:
            continue
        if array.shape != order_LK.shape:
            return f"{name} has shape {array.shape}, not {order_LK.shape}"
        bad = np.flatnonzero(~rows_are_permutations(array))
        if len(bad):
            return f"{name}: row {bad[0]} is not a permutation"
    for name in TYPES:
        array = getattr(outputs, name)
        shape = (n, len(FAILURES)) if name == "failures_LX" else (n,)
        if array is not None and not name.endswith("_LK") and array.shape != shape:
            return f"{name} has shape {array.shape}, not {shape}"
    right_L, total_L = outputs.cited_right_L, outputs.cited_total_L
    if (right_L is None) != (total_L is None):
        return "cited_right_L and cited_total_L go together"
    if right_L is not None and total_L is not None and (right_L > total_L).any():
        return "cited_right_L exceeds cited_total_L"
    return None


def save_outputs(directory: Path, outputs: SystemOutputs) -> None:
    """Write `<name>.safetensors` and `<name>.json`."""
    arrays = {name: getattr(outputs, name) for name in TYPES}
    save_arrays(
        directory / f"{outputs.name}.safetensors",
        **{name: array for name, array in arrays.items() if array is not None},
    )
    rest = {name: getattr(outputs, name) for name in REST}
    write_json(directory / f"{outputs.name}.json", rest)


def load_outputs(directory: Path, name: str) -> SystemOutputs:
    """Read what `save_outputs` wrote; anything odd is an ArtifactError that names the file."""
    path = directory / f"{name}.json"
    rest = read_json(path)
    arrays = load_arrays(directory / f"{name}.safetensors")
    if not isinstance(rest, dict):
        raise ArtifactError(f"{path}: not a description of outputs")
    for name, kind in REST.items():
        if not isinstance(rest.get(name), kind):
            raise ArtifactError(f"{path}: {name} is missing or not of type {kind.__name__}")
    strange = sorted(set(rest) - set(REST)) + sorted(set(arrays) - set(TYPES))
    if strange:
        raise ArtifactError(f"{path}: unknown field {strange[0]}")
    if "order_LK" not in arrays:
        raise ArtifactError(f"{path.with_suffix('.safetensors')}: order_LK is missing")
    values: dict[str, Any] = {**rest, **arrays}
    try:
        return SystemOutputs(**values)
    except DataError as error:
        raise ArtifactError(f"{path}: {error}") from None


def load_all(directory: Path) -> list[SystemOutputs]:
    """Every system saved in a directory, by name."""
    return [
        load_outputs(directory, path.stem)
        for path in sorted(directory.glob("*.safetensors"))
        if path.with_suffix(".json").is_file()
    ]
