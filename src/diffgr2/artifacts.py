"""Directories that are either complete or absent: manifest, hashes, one rename.

Contract: `publish` moves a finished temporary directory to its final name in one rename after every
file was hashed, synced and listed in `manifest.json`; `read_manifest` returns a manifest only if
the directory holds the listed files with the listed sizes and, when asked, hashes; what was hashed
once is known for the rest of the process while path, size and time of the file stay. A reader never
sees half a directory. Arrays are safetensors, tables parquet, the rest JSON; nothing is pickled.
Not here: what a stage computes (`pipeline`, `stages`) and training checkpoints' rotation
(`train.checkpoint`), which builds on the same functions.
"""

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save

from diffgr2.errors import ArtifactError

MANIFEST = "manifest.json"

_HASHES: dict[tuple[Path, int, int], str] = {}
"""sha256 of files that this process wrote or verified, by (path, size, time)."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex digest of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file or directory entry to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; on success it is synced and takes `path`'s place in one rename.

    A kill, or an error inside, leaves the old file or none.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock file, which goes with the process; if another holds it, `busy` is the error."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(busy) from None
        yield


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a directory's lock, which goes with the process; where there are no locks, nothing."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_held(directory: Path) -> bool:
    """Whether a process holds a directory's lock."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(handle)
    return False


def json_text(value: Any) -> str:
    """The one form in which JSON files are written."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json_text(value))


def read_json(path: Path) -> Any:
    """Read JSON; a missing or broken file is an ArtifactError that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: file is missing") from None
    except ValueError as error:
        raise ArtifactError(f"{path}: not valid JSON ({error})") from None


def header_of(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """What a safetensors file of these arrays says of each, in the order in which they stand."""
    # The order is the library's own, and is asked of it.
    blank = save({name: np.empty(0, array.dtype) for name, array in arrays.items()})
    header = json.loads(blank[8 : 8 + int.from_bytes(blank[:8], "little")])
    at = 0
    for name, entry in header.items():
        entry["shape"] = list(arrays[name].shape)
        entry["data_offsets"] = [at, at := at + arrays[name].nbytes]
    return header


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays as one safetensors file (deterministic bytes).

    They go to the file one by one: neither the file nor a map that is saved has to fit in memory.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = header_of(arrays)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    # `save_file` would make a file that nobody else may read.
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            file.write(arrays[name].reshape(-1).view(np.uint8).data)


TYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
    "U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16,
    "F32": np.float32, "F64": np.float64,
}  # fmt: skip


def mapped_arrays(path: Path) -> dict[str, np.ndarray]:
    """The same as `load_arrays`, read-only and mapped: processes share the pages of one file, and
    what nobody asks for is never read. The file must not be written to while it is open."""
    try:
        with safe_open(path, framework="numpy"):  # the library checks the header and the sizes
            pass
        whole = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        begin = 8 + int.from_bytes(whole[:8].tobytes(), "little")
        header = json.loads(whole[8:begin].tobytes())
        header.pop("__metadata__", None)
        found = {}
        for name, entry in header.items():
            first, last = (begin + at for at in entry["data_offsets"])
            found[name] = whole[first:last].view(TYPES[entry["dtype"]]).reshape(entry["shape"])
        return found
    except FileNotFoundError:
        raise ArtifactError(f"{path}: file is missing") from None
    except Exception as error:
        raise ArtifactError(f"{path}: not a readable safetensors file ({error})") from None


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read named arrays; a broken file is an ArtifactError that names it."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: file is missing") from None
    except Exception as error:
        raise ArtifactError(f"{path}: not a readable safetensors file ({error})") from None


def list_files(directory: Path) -> dict[str, dict[str, Any]]:
    """`{relative name: {sha256, size}}` of every file but the manifest."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {
        str(p.relative_to(directory)): {"sha256": sha256_of(p), "size": p.stat().st_size}
        for p in files
    }


def fingerprint(manifest: dict[str, Any]) -> str:
    """Digest of a directory's contents: what downstream keys depend on."""
    return digest({name: entry["sha256"] for name, entry in manifest["files"].items()})


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with a digest of all else in it."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return {**content, "seal": digest(content)}


def finish(temporary: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Seal `temporary` with its manifest: every file listed, all of it on the disk."""
    manifest = sealed({**manifest, "files": list_files(temporary)})
    write_json(temporary / MANIFEST, manifest)
    for path in temporary.rglob("*"):
        fsync_path(path)
    fsync_path(temporary)
    return manifest


def publish(temporary: Path, final: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Seal `temporary` with its manifest and rename it to `final`, replacing what stood there."""
    manifest = finish(temporary, manifest)
    if final.exists():
        # A directory cannot be replaced by one rename; the old one first loses its manifest, so
        # that a kill between the two steps leaves nothing that looks finished.
        (final / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(final)
    os.rename(temporary, final)
    fsync_path(final.parent)
    for name, entry in manifest["files"].items():
        _HASHES[_state(final / name)] = entry["sha256"]
    return manifest


def exchange(one: Path, two: Path) -> bool:
    """Let two directories change names in one step; False where the system has no such step."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    names = (os.fsencode(one), os.fsencode(two))
    if rename(AT_HERE, names[0], AT_HERE, names[1], BOTH_WAYS) != 0:
        return False
    fsync_path(two.parent)
    return True


AT_HERE, BOTH_WAYS = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def _state(path: Path) -> tuple[Path, int, int]:
    facts = path.stat()
    return path.absolute(), facts.st_size, facts.st_mtime_ns


def known_sha256(path: Path) -> str:
    """Hex digest of a file, read once per process as long as its size and time stay."""
    state = _state(path)
    _HASHES[state] = _HASHES.get(state) or sha256_of(path)
    return _HASHES[state]


def read_manifest(directory: Path, *, verify: bool = False) -> dict[str, Any]:
    """The manifest of a complete directory; raises ArtifactError that says what is wrong."""
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: no such directory")
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(f"{directory / MANIFEST}: not a manifest")
    if verify and "seal" in manifest and manifest != sealed(manifest):
        raise ArtifactError(f"{directory / MANIFEST}: was changed after it was written")
    for name, entry in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path}: listed in the manifest but missing")
        if path.stat().st_size != entry["size"]:
            raise ArtifactError(f"{path}: size differs from the manifest")
        if verify and known_sha256(path) != entry["sha256"]:
            raise ArtifactError(f"{path}: content differs from the manifest")
    return manifest
