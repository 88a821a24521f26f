"""A folder of files, on this machine or behind a URI (`s3://…`, `gs://…`, `hdfs://…`).

Contract: `Place(text)` reads, lists and writes files by name; a written file is there whole or not
at all, however often it is written and whoever is killed. URIs are those of Arrow's file systems,
which are Ray's too; a plain path needs no Arrow. Not here: what the files hold (`sources`, `job`).
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from diffgr2.artifacts import fsync_path
from diffgr2.errors import ConfigError, DataError, MissingExtraError, first_line


def arrow(module: str) -> Any:
    """A module of Arrow, or the one line that says what brings it."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        told = "pyarrow is missing: pip install 'diffgr2[bulk]' (or 'diffgr2[ray]')"
        raise MissingExtraError(told) from None


def remote(text: str) -> bool:
    """Whether this is a URI and no path of this machine."""
    return "://" in text and not text.startswith("file://")


class Place:
    """See the module's docstring; `text` as the user wrote it, paths made absolute."""

    def __init__(self, text: str) -> None:
        self._store: Any = None
        text = text.removeprefix("file://")
        if remote(text):
            fs = arrow("pyarrow.fs")
            try:
                self._store, base = fs.FileSystem.from_uri(text.rstrip("/"))
            except Exception as error:  # Arrow's own kinds, by scheme
                raise ConfigError(f"{text}: {first_line(error)}") from None
            self.text, self.base = text.rstrip("/"), base
        else:
            self.text = self.base = str(Path(text).absolute())

    def __str__(self) -> str:
        return self.text

    def _path(self, name: str) -> str:
        return str(PurePosixPath(self.base) / name) if name else self.base

    # ------------------------------------------------------------------------------ reading

    def kind(self, name: str = "") -> str:
        """`file`, `directory` or nothing."""
        path = self._path(name)
        if self._store is None:
            found = Path(path)
            return "file" if found.is_file() else "directory" if found.is_dir() else ""
        kind = self._store.get_file_info(path).type.name
        return {"File": "file", "Directory": "directory"}.get(kind, "")

    def names(self, folder: str = "") -> list[str]:
        """The files below, in order, by their names from here."""
        if self.kind(folder) != "directory":
            return []
        top = self._path(folder)
        if self._store is None:
            paths = [str(path) for path in Path(top).rglob("*") if path.is_file()]
        else:
            selector = arrow("pyarrow.fs").FileSelector(top, recursive=True)
            infos = self._store.get_file_info(selector)
            paths = [info.path for info in infos if info.type.name == "File"]
        return sorted(str(PurePosixPath(path).relative_to(self.base)) for path in paths)

    def open(self, name: str = "") -> BinaryIO:
        """A file to read from; it can be sought in."""
        path = self._path(name)
        try:
            return open(path, "rb") if self._store is None else self._store.open_input_file(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({first_line(error)})") from None

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None where there is none."""
        if self.kind(name) != "file":
            return None
        with self.open(name) as file:
            return file.read()

    def read_json(self, name: str) -> Any:
        """A file's JSON, None where there is none."""
        data = self.read(name)
        try:
            return None if data is None else json.loads(data)
        except ValueError:
            raise DataError(f"{self._path(name)}: not valid JSON") from None

    # ------------------------------------------------------------------------------ writing

    def make(self) -> None:
        """The folder itself, where folders are made."""
        try:
            if self._store is None:
                Path(self.base).mkdir(parents=True, exist_ok=True)
            else:
                self._store.create_dir(self.base, recursive=True)
        except OSError as error:
            raise ConfigError(f"{self.text}: cannot be written ({first_line(error)})") from None

    def write(self, name: str, data: bytes) -> None:
        """A file, in one step."""
        path = self._path(name)
        if self._store is not None:  # an object appears when it is whole
            with self._store.open_output_stream(path) as file:
                file.write(data)
            return
        # Two who write the same file at once must not share a temporary one.
        temporary = Path(path).with_name(f".{Path(path).name}.{uuid.uuid4().hex}.tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            fsync_path(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)
        self.write(name, text.encode() + b"\n")

    def remove(self, name: str) -> None:
        """A file less, if it is there."""
        path = self._path(name)
        with suppress(FileNotFoundError):
            if self._store is None:
                os.unlink(path)
            else:
                self._store.delete_file(path)

    def sweep(self) -> None:
        """Take away what killed writers left; for whoever holds the place alone."""
        if self._store is None:
            for path in Path(self.base).rglob(".*.tmp"):
                path.unlink(missing_ok=True)

    @property
    def local(self) -> Path | None:
        """The folder's path, where it has one."""
        return Path(self.base) if self._store is None else None
