"""Download data sets from their publishers, surviving cut lines.

Contract: `fetch(name_or_url, folder)` leaves complete files in `folder` and returns their paths. A
file grows as `NAME.part` and gets its name in one rename, after its size (and sha256, where one is
known) was checked. A cut connection is resumed by an HTTP Range request where the server honours
it and the file has not changed there (ETag, Last-Modified, size), else begun anew; failures are
tried again with growing pauses, and what stays wrong is one RemoteError line. A file that already
stands is not fetched again. Not here: what the files mean (`data.records`).

    diffgr2 data fetch amazon-beauty
"""

import http.client
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from time import sleep

from diffgr2.artifacts import fsync_path, read_json, sha256_of, write_json
from diffgr2.errors import ConfigError, DataError, RemoteError
from diffgr2.progress import Progress, Task

CHUNK = 1 << 18
TRIES = 8  # without a byte of headway; every new byte starts the count again
PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before the second try, doubled each time
TIMEOUT_S = 60.0  # of one read

_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
KNOWN = {
    f"amazon-{short}": (f"{_SNAP}/reviews_{long}_5.json.gz", f"{_SNAP}/meta_{long}.json.gz")
    for short, long in (
        ("beauty", "Beauty"),
        ("sports", "Sports_and_Outdoors"),
        ("toys", "Toys_and_Games"),
    )
}


class _Again(Exception):  # noqa: N818 (never leaves this module)
    """This try failed but another may succeed."""


def fetch(name: str, folder: Path, sha256: str = "") -> list[Path]:
    """All files of a known data set, or the one file of a URL, which may have this sha256."""
    urls = KNOWN.get(name, (name,))
    if name in KNOWN:
        sha256 = ""  # the publisher names none
    elif not _is_url(name):
        known = ", ".join(KNOWN)
        raise ConfigError(f"{name}: neither a known data set ({known}) nor an http(s) URL")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_fetch_file(url, folder, sha256.lower(), Progress()) for url in urls]
    except RemoteError:
        raise
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from None


def _is_url(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        _ = parts.port  # raises if it is no number
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain


def _fetch_file(url: str, folder: Path, sha256: str, progress: Progress) -> Path:
    """One file, resumed where it stopped."""
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if name in ("", ".", ".."):
        raise ConfigError(f"{url}: the URL names no file")
    final, part, note = folder / name, folder / f"{name}.part", folder / f"{name}.part.json"
    if final.exists():
        _check_hash(final, sha256)
        progress.line(f"{name}: stands")
        return final
    failures = best = 0
    with progress.task(name) as task:
        while True:
            best = max(best, _size(part))
            try:
                _one_try(url, part, note, task)
                break
            except _Again as again:
                failures = 1 if _size(part) > best else failures + 1
                if failures >= TRIES:
                    raise RemoteError(
                        f"{url}: {again} ({TRIES} tries without headway; "
                        f"{_size(part)} bytes are kept in {part.name})"
                    ) from None
                sleep(min(PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S))
    try:
        _check_hash(part, sha256)
    except RemoteError:
        part.unlink()
        note.unlink()
        raise
    fsync_path(part)
    os.replace(part, final)
    fsync_path(folder)
    note.unlink()
    return final


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _check_hash(path: Path, sha256: str) -> None:
    if sha256 and (found := sha256_of(path)) != sha256:
        raise RemoteError(f"{path.name}: sha256 is {found}, expected {sha256}")


def _one_try(url: str, part: Path, note: Path, task: Task) -> None:
    """Append to `part` until it is complete; raises _Again or RemoteError.

    `note` remembers which version of the remote file the part belongs to: its ETag or
    Last-Modified ("" if there is none) and its size (0 if unknown).
    """
    headers = {"User-Agent": "diffgr2 (data fetch)", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers)
    have = _size(part)
    noted = read_json(note) if note.exists() else {}
    if have and any(noted.values()):
        request.add_header("Range", f"bytes={have}-")
        if noted["validator"]:
            request.add_header("If-Range", noted["validator"])
    else:
        have = 0
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            if response.status != 206:
                have = 0
            total = _total(response, have)
            if not have:
                etag = response.headers.get("ETag", "")  # If-Range may ask with a strong one
                last = response.headers.get("Last-Modified", "")
                validator = etag if etag.startswith('"') else last
                write_json(note, {"validator": validator, "size": total or 0})
            elif noted["size"] and total not in (None, noted["size"]):
                part.unlink()
                raise _Again("the file changed at the server")
            task.total, task.done = total, have
            with part.open("ab" if have else "wb") as out:
                while block := response.read1(CHUNK):
                    out.write(block)  # every byte counts, also when the line is cut
                    task.advance(len(block))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the .part is as long as or longer than the file: begin anew
            part.unlink(missing_ok=True)
        elif error.code not in (408, 425, 429) and error.code < 500:
            raise RemoteError(f"{url}: the server answers {error.code}") from None
        raise _Again(f"the server answers {error.code}") from None
    except urllib.error.URLError as error:
        raise _Again(f"no connection ({error.reason})") from None
    except (http.client.IncompleteRead, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _Again(f"the connection was cut ({type(error).__name__})") from None
    except (http.client.HTTPException, ValueError) as error:
        raise _Again(f"the answer is not HTTP ({type(error).__name__})") from None
    size = _size(part)
    if total is not None and size < total:
        raise _Again(f"the connection was cut at {size} of {total} bytes")
    if total is not None and size > total:
        part.unlink()
        raise _Again(f"{size} bytes came, {total} were announced")


_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


def _total(response: http.client.HTTPResponse, have: int) -> int | None:
    """The whole file's announced size; None if the server does not say."""
    if have:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != have:
            raise _Again("the server resumes at another place than asked for")
        if match[3] != "*":
            return int(match[3])
    length = response.headers.get("Content-Length", "")
    return have + int(length) if length.isascii() and length.isdigit() else None
