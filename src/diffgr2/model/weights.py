"""A checkpoint's weights as arrays, without a tensor library.

Contract: `placed` says where a directory's safetensors files hold each tensor; `read` copies them
all into memory of our own, so that nothing that happens to the files reaches a model, and refuses
what is no finite number. BF16, which NumPy does not have, comes as its bits in uint16. `rounded`
adds the matrices in eight bits. Not here: what the tensors mean (`graph`, `load`).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffgr2.errors import CheckpointError

KINDS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""NumPy's type for each kind of float."""


EMBEDDING = "model.embed_tokens.weight"
INT8, SCALE = ".int8", ".scale"
"""Ends of the names of a matrix's rounded form."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    file: str
    kind: str
    shape: tuple[int, ...]
    start: int
    length: int


def placed(directory: Path) -> dict[str, Place]:
    """Every tensor by its name."""
    places: dict[str, Place] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(length))
            except ValueError:
                raise CheckpointError(f"{path}: not a readable safetensors file") from None
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in KINDS:
                raise CheckpointError(f"{path}: tensor {name} is {entry['dtype']}, no float")
            start, end = entry["data_offsets"]
            begin = 8 + length + start
            places[name] = Place(
                path.name, entry["dtype"], tuple(entry["shape"]), begin, end - start
            )
    if not places:
        raise CheckpointError(f"{directory}: holds no safetensors weights")
    return places


def read(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor's values."""
    arrays: dict[str, np.ndarray] = {}
    for name, place in placed(directory).items():
        kind = np.dtype(KINDS[place.kind])
        with (directory / place.file).open("rb") as file:
            file.seek(place.start)
            flat = np.fromfile(file, kind, place.length // kind.itemsize)
        if flat.nbytes != place.length:
            raise CheckpointError(f"{directory / place.file}: ends within tensor {name}")
        arrays[name] = flat.reshape(place.shape)
        if not _finite(arrays[name]):
            raise CheckpointError(f"{directory}: weights are not finite ({name})")
    return arrays


def rounded(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with every matrix in eight bits, turned, and its scale per output.

    The embedding stays beside its own rounded form, because it is looked up as well.

    Without the processor's own instruction (VNNI) sums of two products must fit 16 bits: 7 bits.
    """
    most = 127 if _vnni() else 63
    made = dict(arrays)
    for name, array in arrays.items():
        if array.ndim != 2:
            continue
        matrix = widened(array)
        scale = np.maximum(np.abs(matrix).max(1), np.float32(1e-12)) / np.float32(most)
        whole = np.rint(matrix / scale[:, None]).astype(np.int8)
        made[name + INT8] = np.ascontiguousarray(whole.T)
        made[name + SCALE] = scale.astype(np.float32)
        if name != EMBEDDING:
            del made[name]
    return made


def widened(array: np.ndarray) -> np.ndarray:
    """An array of any kind in fp32."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _vnni() -> bool:
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _finite(array: np.ndarray) -> bool:
    if array.dtype == np.uint16:
        return bool(((array & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(array).all())
