"""Download data sets from their publishers, surviving cut lines.

Contract: `fetch(name_or_url, folder)` leaves complete files in `folder` and returns their paths. A
file grows as `NAME.part` and gets its name in one rename, after its size (and sha256, where one is
known) was checked. A cut connection is resumed by an HTTP Range request where the server honours
it and the file has not changed there (ETag, Last-Modified, size), else begun anew; failures are
tried again with growing pauses, and what stays wrong is one RemoteError line. A file that already
stands is not fetched again. Not here: what the files mean (`data.amazon`).

    diffgr2 data fetch amazon-beauty
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffgr2.artifacts import fsync_path, read_json, write_json
from diffgr2.errors import ArtifactError, ConfigError, DataError, RemoteError
from diffgr2.progress import Progress, Task

CHUNK = 1 << 18
AGENT = "diffgr2 (data fetch)"

_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"


@dataclass(frozen=True)
class RemoteFile:
    """One file at its publisher; sha256 empty where the publisher names none."""

    url: str
    sha256: str = ""


KNOWN: dict[str, tuple[RemoteFile, ...]] = {
    f"amazon-{short}": (
        RemoteFile(f"{_SNAP}/reviews_{category}_5.json.gz"),
        RemoteFile(f"{_SNAP}/meta_{category}.json.gz"),
    )
    for short, category in (
        ("beauty", "Beauty"),
        ("sports", "Sports_and_Outdoors"),
        ("toys", "Toys_and_Games"),
    )
}


@dataclass(frozen=True)
class Patience:
    """When to give up."""

    tries: int = 8  # without a byte of headway; every new byte starts the count again
    pause_s: float = 1.0  # before the second try, doubled each time
    longest_pause_s: float = 60.0
    timeout_s: float = 60.0  # of one read
    sleep: Callable[[float], None] = time.sleep


class _Again(Exception):  # noqa: N818 (never leaves this module)
    """This try failed but another may succeed."""


def fetch(
    name: str,
    folder: Path,
    progress: Progress | None = None,
    *,
    sha256: str = "",
    patience: Patience | None = None,
) -> list[Path]:
    """All files of a known data set, or the one file of a URL."""
    files = KNOWN.get(name)
    if files is None:
        if not _is_url(name):
            known = ", ".join(KNOWN)
            raise ConfigError(f"{name}: neither a known data set ({known}) nor an http(s) URL")
        files = (RemoteFile(name, sha256),)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [
            fetch_file(file, folder, progress or Progress(), patience or Patience())
            for file in files
        ]
    except OSError as error:
        if isinstance(error, RemoteError):
            raise
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None


def _is_url(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        _ = parts.port  # raises if it is no number
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain


def fetch_file(file: RemoteFile, folder: Path, progress: Progress, patience: Patience) -> Path:
    """One file, resumed where it stopped."""
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(file.url).path)).name
    if not name or name in (".", ".."):
        raise ConfigError(f"{file.url}: the URL names no file")
    final, part = folder / name, folder / f"{name}.part"
    if final.exists():
        _check_hash(final, file, discard=None)
        progress.line(f"{name}: stands")
        return final
    failures = best = 0
    with progress.task(name) as task:
        while True:
            best = max(best, _size(part))
            try:
                _one_try(file, part, task, patience.timeout_s)
                break
            except _Again as again:
                failures = 1 if _size(part) > best else failures + 1
                if failures >= patience.tries:
                    raise RemoteError(
                        f"{file.url}: {again} ({patience.tries} tries without headway; "
                        f"{_size(part)} bytes are kept in {part.name})"
                    ) from None
                pause_s = patience.pause_s * 2 ** (failures - 1)
                patience.sleep(min(pause_s, patience.longest_pause_s))
    _check_hash(part, file, discard=part)
    fsync_path(part)
    os.replace(part, final)
    fsync_path(folder)
    _note(part).unlink(missing_ok=True)
    return final


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note(part: Path) -> Path:
    """Remembers which version of the remote file the .part belongs to."""
    return part.with_name(f"{part.name}.json")


def _version(part: Path) -> tuple[str, int]:
    """(ETag or Last-Modified, size) of the file the .part belongs to; ("", 0) if unknown."""
    try:
        value = read_json(_note(part))
    except ArtifactError:
        return "", 0
    match value:
        case {"validator": str(validator), "size": int(size)}:
            return validator, size
    return "", 0


def _one_try(file: RemoteFile, part: Path, task: Task, timeout_s: float) -> None:
    """Append to `part` until it is complete; raises _Again or RemoteError."""
    have, (validator, noted) = _size(part), _version(part)
    request = urllib.request.Request(file.url, headers={"User-Agent": AGENT})
    request.add_header("Accept-Encoding", "identity")
    if have and (validator or noted):
        request.add_header("Range", f"bytes={have}-")
        if validator:
            request.add_header("If-Range", validator)
    else:
        have = 0
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            resumed = response.status == 206 and have > 0
            total = _total(response, have if resumed else 0)
            if resumed and noted and total not in (None, noted):
                part.unlink()
                raise _Again("the file changed at the server")
            if not resumed:
                have = 0
                write_json(_note(part), {"validator": _strong(response), "size": total or 0})
            task.total, task.done = total, have
            _copy(response, part, task, append=resumed)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the .part is as long as or longer than the file: begin anew
            part.unlink(missing_ok=True)
        elif error.code not in (408, 425, 429) and error.code < 500:
            raise RemoteError(f"{file.url}: the server answers {error.code}") from None
        raise _Again(f"the server answers {error.code}") from None
    except http.client.IncompleteRead:
        raise _Again("the connection was cut") from None
    except urllib.error.URLError as error:
        raise _Again(f"no connection ({error.reason})") from None
    except (TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _Again(f"the connection was cut ({type(error).__name__})") from None
    except (http.client.HTTPException, ValueError) as error:
        raise _Again(f"the answer is not HTTP ({type(error).__name__})") from None
    size = _size(part)
    if total is not None and size < total:
        raise _Again(f"the connection was cut at {size} of {total} bytes")
    if total is not None and size > total:
        part.unlink()
        raise _Again(f"{size} bytes came, {total} were announced")


def _copy(response: http.client.HTTPResponse, part: Path, task: Task, *, append: bool) -> None:
    """Write what comes; every byte received counts, also when the line is cut."""
    with part.open("ab" if append else "wb") as out:
        while block := response.read1(CHUNK):
            out.write(block)
            task.advance(len(block))


def _strong(response: http.client.HTTPResponse) -> str:
    """What If-Range may be asked with: a strong ETag, or Last-Modified."""
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):
        return etag
    return response.headers.get("Last-Modified", "")


_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


def _total(response: http.client.HTTPResponse, have: int) -> int | None:
    """The whole file's announced size; None if the server does not say."""
    if have:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not match or int(match.group(1)) != have:
            raise _Again("the server resumes at another place than asked for")
        if match.group(3) != "*":
            return int(match.group(3))
    length = response.headers.get("Content-Length", "")
    return have + int(length) if length.isascii() and length.isdigit() else None


def _check_hash(path: Path, file: RemoteFile, discard: Path | None) -> None:
    """Compare with the known sha256; a wrong download is thrown away."""
    if not file.sha256:
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found == file.sha256.lower():
        return
    if discard is not None:
        discard.unlink()
        _note(discard).unlink(missing_ok=True)
    raise RemoteError(f"{path.name}: sha256 is {found}, expected {file.sha256.lower()}")
