"""Downloads against a real server on the loopback that misbehaves on purpose."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from diffgr2.data.fetch import KNOWN, fetch
from diffgr2.errors import ConfigError, DataError, RemoteError

BODY = bytes(i * 7919 % 251 for i in range(300_000))


@dataclass
class Behaviour:
    """What the server does; `log` holds (Range header, status) of each request."""

    body: bytes = BODY
    cut_after: list[int] = field(default_factory=list)  # bytes sent before the line is cut
    fail_first: list[int] = field(default_factory=list)  # status codes answered first
    ranges: bool = True
    etag: str | None = '"v1"'
    length_lie: int = 0  # added to Content-Length
    silent_length: bool = False  # no Content-Length at all
    change_after: int = 0  # the file changes after so many requests
    log: list[tuple[str | None, int]] = field(default_factory=list)


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            if behaviour.fail_first:
                code = behaviour.fail_first.pop(0)
                behaviour.log.append((asked, code))
                self.send_error(code)
                return
            body, etag = behaviour.body, behaviour.etag
            if behaviour.change_after and len(behaviour.log) >= behaviour.change_after:
                body, etag = body[::-1], '"v2"' if etag else None
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            guard = self.headers.get("If-Range")
            partial = bool(asked) and behaviour.ranges and (guard is None or guard == etag)
            if partial and start >= len(body):
                behaviour.log.append((asked, 416))
                self.send_error(416)
                return
            behaviour.log.append((asked, 206 if partial else 200))
            self.send_response(206 if partial else 200)
            rest = body[start:] if partial else body
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if etag:
                self.send_header("ETag", etag)
            if not behaviour.silent_length:
                self.send_header("Content-Length", str(len(rest) + behaviour.length_lie))
            self.end_headers()
            cut = behaviour.cut_after.pop(0) if behaviour.cut_after else len(rest)
            self.wfile.write(rest[:cut])
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/sets/x.json.gz"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Instead of waiting."""
    pauses: list[float] = []
    monkeypatch.setattr("diffgr2.data.fetch.sleep", pauses.append)
    monkeypatch.setattr("diffgr2.data.fetch.TIMEOUT_S", 20)
    return pauses


def get(url: str, folder: Path, sha256: str = "", tries: int = 4) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffgr2.data.fetch.TRIES", tries)
        [path] = fetch(url, folder, sha256)
    assert sorted(p.name for p in folder.iterdir()) == [path.name], "nothing else is left behind"
    return path


def test_a_line_cut_seven_times_is_resumed_where_it_stopped(tmp_path: Path) -> None:
    cuts = [1, 40_000, 10, 99_999, 5, 30_000, 70_000]
    behaviour = Behaviour(cut_after=list(cuts))
    with serving(behaviour) as url:
        path = get(url, tmp_path, sha256=hashlib.sha256(BODY).hexdigest())
    assert path.read_bytes() == BODY
    starts = [sum(cuts[:i]) for i in range(len(cuts) + 1)]
    expected = [(None, 200)] + [(f"bytes={start}-", 206) for start in starts[1:]]
    assert behaviour.log == expected, "no byte is asked for twice"


def test_a_server_that_ignores_range_starts_anew(tmp_path: Path) -> None:
    behaviour = Behaviour(cut_after=[50_000, 80_000], ranges=False)
    with serving(behaviour) as url:
        assert get(url, tmp_path).read_bytes() == BODY
    assert [status for _, status in behaviour.log] == [200, 200, 200]


def test_without_an_etag_the_size_guards_the_resume(tmp_path: Path) -> None:
    behaviour = Behaviour(cut_after=[50_000], etag=None)
    with serving(behaviour) as url:
        assert get(url, tmp_path).read_bytes() == BODY
    assert behaviour.log == [(None, 200), ("bytes=50000-", 206)]


def test_a_file_that_changes_between_two_tries_is_never_mixed(tmp_path: Path) -> None:
    behaviour = Behaviour(cut_after=[50_000], change_after=1)
    with serving(behaviour) as url:
        assert get(url, tmp_path).read_bytes() == BODY[::-1]


def test_an_interrupted_download_goes_on_in_the_next_call(tmp_path: Path) -> None:
    behaviour = Behaviour(cut_after=[120_000])
    with serving(behaviour) as url:
        with pytest.raises(RemoteError):
            get(url, tmp_path, tries=1)
        assert (tmp_path / "x.json.gz.part").stat().st_size == 120_000
        assert not (tmp_path / "x.json.gz").exists()
        assert get(url, tmp_path).read_bytes() == BODY
    assert behaviour.log[-1] == ("bytes=120000-", 206)


def test_passing_failures_are_tried_again(tmp_path: Path) -> None:
    behaviour = Behaviour(fail_first=[500, 503, 429])
    with serving(behaviour) as url:
        assert get(url, tmp_path).read_bytes() == BODY
    assert len(behaviour.log) == 4


def test_pauses_grow_and_are_bounded(
    tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffgr2.data.fetch.LONGEST_PAUSE_S", 5.0)
    with serving(Behaviour(fail_first=[500] * 9)) as url, pytest.raises(RemoteError) as caught:
        get(url, tmp_path, tries=6)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert str(caught.value) == (
        f"{url}: the server answers 500 (6 tries without headway; "
        "0 bytes are kept in x.json.gz.part)"
    )


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_final_refusal_is_not_tried_again(tmp_path: Path, status: int) -> None:
    behaviour = Behaviour(fail_first=[status] * 3)
    with serving(behaviour) as url, pytest.raises(RemoteError) as caught:
        get(url, tmp_path)
    assert str(caught.value) == f"{url}: the server answers {status}"
    assert len(behaviour.log) == 1


def test_a_size_that_is_announced_too_large_ends_in_an_error(tmp_path: Path) -> None:
    with serving(Behaviour(length_lie=1_000)) as url, pytest.raises(RemoteError) as caught:
        get(url, tmp_path, tries=3)
    assert "3 tries without headway" in str(caught.value)
    assert not (tmp_path / "x.json.gz").exists()


def test_a_size_that_is_announced_too_small_is_caught_by_the_hash(tmp_path: Path) -> None:
    expected = hashlib.sha256(BODY).hexdigest()
    found = hashlib.sha256(BODY[:-1_000]).hexdigest()
    with serving(Behaviour(length_lie=-1_000)) as url, pytest.raises(RemoteError) as caught:
        get(url, tmp_path, sha256=expected)
    assert str(caught.value) == f"x.json.gz.part: sha256 is {found}, expected {expected}"
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_a_size_is_read_to_its_end(tmp_path: Path) -> None:
    with serving(Behaviour(silent_length=True)) as url:
        assert get(url, tmp_path).read_bytes() == BODY


def test_a_file_that_stands_is_not_asked_for_again(tmp_path: Path) -> None:
    behaviour = Behaviour()
    with serving(behaviour) as url:
        get(url, tmp_path)
        get(url, tmp_path)
    assert len(behaviour.log) == 1


def test_no_server_is_one_line(tmp_path: Path) -> None:
    with serving(Behaviour()) as url:
        pass
    with pytest.raises(RemoteError, match=r"no connection \(.*refused.*2 tries without headway"):
        get(url, tmp_path, tries=2)


@pytest.mark.parametrize(
    "name",
    ["amazon-beuty", "", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://", "http://a:b/x"],
)
def test_what_is_no_name_and_no_url_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fetch(name, tmp_path)
    assert str(caught.value) == (
        f"{name}: neither a known data set (amazon-beauty, amazon-sports, amazon-toys) "
        "nor an http(s) URL"
    )


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving(Behaviour()) as url, pytest.raises(DataError, match="cannot be written"):
        get(url, tmp_path / "file" / "folder")


def test_beauty_comes_from_its_publisher() -> None:
    base = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
    assert KNOWN["amazon-beauty"] == (
        f"{base}/reviews_Beauty_5.json.gz",
        f"{base}/meta_Beauty.json.gz",
    )
