"""Keys: who is let in, with which rights, how often; files as people and editors write them."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

import pytest

from diffgr2.errors import ConfigError
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve import keys as module
from diffgr2.serve.keys import ANYBODY, Bucket, Keys, read_keys
from support.live import Live, body_of

RANK, OPS, SLOW = "a-key-that-may-rank", "a-key-that-may-do-all", "a-key-that-is-slow"
LINES = [
    f"{RANK} name=search",
    f"{OPS} name=ops roles=rank,shoppers,admin",
    f"{SLOW} name=slow rate=2/h",
]


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o600)
    return path


def found(keys: Keys, key: str | bytes, scheme: str = "Bearer"):
    given = key.encode() if isinstance(key, str) else key
    return keys.find(scheme.encode() + b" " + given)


# ------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    "content",
    [
        f"{RANK}",
        f"{RANK}\n",
        f"{RANK}\r\n",
        f"{RANK}\r",
        f"\n\n  {RANK}  \n\n",
        f"\t{RANK}\t",
        f"# a comment\n{RANK}",
        f"   # an indented comment\n{RANK}",
        f"\t#{OPS}\n{RANK}",
        f"{RANK} # whose it is",
        f"{RANK}   name=search   # whose it is",
        b"\xef\xbb\xbf" + RANK.encode(),
        b"\xef\xbb\xbf# marked\r\n" + RANK.encode() + b"\r\n",
    ],
)
def test_files_of_all_editors_hold_the_same_key(content: bytes | str, tmp_path: Path) -> None:
    keys = read_keys(written(tmp_path / "keys", content))
    caller = found(keys, RANK)
    assert caller is not None
    assert caller.roles == {"rank"}
    for other in (OPS, RANK[:-1], RANK + "x", "#", "\ufeff" + RANK, f"{RANK} name=search", ""):
        assert found(keys, other) is None, other


@pytest.mark.parametrize("key", ["schlüssel-der-shopsuche", "ключ-для-поиска-товаров", "鍵" * 16])
def test_keys_beyond_ascii_are_found_as_clients_write_them(key: str, tmp_path: Path) -> None:
    keys = read_keys(written(tmp_path / "keys", key))
    assert found(keys, key.encode("utf-8"))
    if key[0] == "s":  # the one that Latin-1 can spell
        assert found(keys, key.encode("latin-1"))
    assert found(keys, key.encode("utf-16")) is None
    assert found(keys, key.encode("ascii", "ignore")) is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "holds no key"),
        ("# only a comment", "holds no key"),
        ("short", "line 1: an API key has at least 16 characters"),
        (f"{RANK}\n\nshort", "line 3: an API key has at least 16 characters"),
        (f"{RANK}\n{OPS}\n{RANK}", "line 3: a key stands twice"),
        (f"{RANK} {OPS}", "line 1: expected name="),
        (f"{RANK} name=a name=b", "line 1: expected name="),
        (f"{RANK} colour=red", "line 1: expected name="),
        (f"{RANK} name=", "line 1: name:"),
        (f"{RANK} name=a/b", "line 1: name:"),
        (f"{RANK} name={'x' * 65}", "line 1: name:"),
        (f"{RANK} roles=", "line 1: roles:"),
        (f"{RANK} roles=root", "line 1: roles:"),
        (f"{RANK} roles=rank,", "line 1: roles:"),
        (f"{RANK} rate=0/s", "line 1: rate:"),
        (f"{RANK} rate=-1/s", "line 1: rate:"),
        (f"{RANK} rate=5", "line 1: rate:"),
        (f"{RANK} rate=1e9/s", "line 1: rate:"),
        (f"{RANK} rate=5/d", "line 1: rate:"),
        (f"{RANK}\x07", "line 1: not an API key"),
        (RANK.encode("utf-16"), "not UTF-8"),
        (b"\xff\xfe" + b"x" * 20, "not UTF-8"),
    ],
)
def test_what_is_no_keys_file_is_one_line_without_a_key(content, told, tmp_path: Path) -> None:
    path = written(tmp_path / "keys", content)
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert told in message
    assert "\n" not in message
    assert not any(key in message for key in (RANK, OPS))


def test_no_file_and_a_directory_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_keys(path)


def test_a_file_that_others_may_read_is_said(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.WARNING)
    path = written(tmp_path / "keys", RANK)
    read_keys(path)
    assert not caplog.records
    for mode in (0o640, 0o604, 0o644):
        path.chmod(mode)
        caplog.clear()
        read_keys(path)
        assert "others on this machine may read the keys" in caplog.text
        assert RANK not in caplog.text


def test_the_environment_holds_keys_too(monkeypatch) -> None:
    for empty in ("", "  "):
        monkeypatch.setenv(module.VARIABLE, empty)
        assert not read_keys(None)
    monkeypatch.setenv(module.VARIABLE, f"{RANK} name=search, {OPS} name=ops roles=rank+admin")
    keys = read_keys(None)
    caller = found(keys, OPS)
    assert caller is not None
    assert (caller.name, caller.roles) == ("ops", {"rank", "admin"})
    assert found(keys, RANK)
    assert keys.reread() is keys
    for broken in (",", "# none", "short"):  # what was meant to be closed must not be open
        monkeypatch.setenv(module.VARIABLE, broken)
        with pytest.raises(ConfigError, match=module.VARIABLE):
            read_keys(None)


# ------------------------------------------------------------------------------------ comparing


def test_every_key_is_compared_whole_whichever_matches(monkeypatch) -> None:
    keys = Keys(LINES)
    genuine, compared = hmac.compare_digest, []

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return genuine(one, other)

    monkeypatch.setattr(module.hmac, "compare_digest", counting)
    for given in (RANK, OPS, SLOW, "wrong" * 4, ""):
        compared.clear()
        caller = found(keys, given)
        assert (caller is not None) == (given in (RANK, OPS, SLOW))
        assert len(compared) == len(LINES)  # as many for the first as for the last and for none
        assert {len(one) for one, _ in compared} == {32}  # digests: no length, no prefix shows


def test_keys_are_not_kept_in_the_clear() -> None:
    keys = Keys(LINES)
    assert all(key not in repr(vars(keys)) for key in (RANK, OPS, SLOW))
    assert hashlib.sha256(RANK.encode()).digest() in keys._callers


def test_a_scheme_other_than_bearer_is_none() -> None:
    keys = Keys(LINES)
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert found(keys, RANK, scheme)
    for scheme in ("Basic", "Token", "Bearerx"):
        assert found(keys, RANK, scheme) is None
    for given in (None, b"", b"Bearer", b"Bearer ", RANK.encode(), b"Bearer\x00" + RANK.encode()):
        assert keys.find(given) is None
    assert Keys().find(None) is ANYBODY
    assert ANYBODY.roles == {"rank"}


# ------------------------------------------------------------------------------------ rates


def test_a_bucket_gives_its_rate_and_no_more(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    bucket = Bucket(rate=2.0, burst=10.0)
    assert [bucket.wait_s() for _ in range(10)] == [0.0] * 10
    assert bucket.wait_s() == pytest.approx(0.5)
    now[0] += 0.5
    assert bucket.wait_s() == 0.0
    assert bucket.wait_s() > 0.0
    now[0] += 1e6
    assert [bucket.wait_s() > 0 for _ in range(12)] == [False] * 10 + [True] * 2


def test_a_used_up_rate_is_429_with_its_time_and_others_are_served(reranker: Reranker) -> None:
    with Live(reranker, keys=Keys(LINES)) as server, server.client() as client:

        def send(key: str, path: str = "/rerank"):
            body = body_of(reranker, 1, reasoning="off")
            return client.post(path, json=body, headers={"authorization": f"Bearer {key}"})

        assert [send(SLOW).status_code for _ in range(3)] == [200, 200, 429]
        refused = send(SLOW, "/v1/rerank/batch")
        assert refused.status_code == 429
        assert 1700 < int(refused.headers["retry-after"]) <= 1801
        assert refused.json()["error"]["type"] == "overloaded"
        assert send(RANK).status_code == 200
        held = client.get("/v1/models", headers={"authorization": f"Bearer {SLOW}"})
        assert held.status_code == 200  # a rate is of rankings
        said = client.get("/metrics", headers={"authorization": f"Bearer {OPS}"}).text
        assert 'diffgr2_key_requests_total{key="slow"} 5.0' in said
        assert not any(key in said for key in (RANK, OPS, SLOW))


# ------------------------------------------------------------------------------------ roles


def test_each_route_asks_for_its_role(reranker: Reranker) -> None:
    with Live(reranker, keys=Keys(LINES)) as server, server.client() as client:
        for path in ("/admin/reload", "/admin%2freload", "/admin/reload?x=1", "/admin/./reload"):
            answer = client.post(path, headers={"authorization": f"Bearer {RANK}"})
            assert answer.status_code in (403, 404), path
        assert server.state.metrics.registry.get_sample_value("diffgr2_reloads_total") == 0
        answer = client.post("/admin/reload", headers={"authorization": f"Bearer {RANK}"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "forbidden")
        done = client.post("/admin/reload", headers={"authorization": f"Bearer {OPS}"})
        assert (done.status_code, done.json()) == (200, {"reloaded": [reranker.name]})


def test_without_keys_nobody_reloads(reranker: Reranker) -> None:
    with Live(reranker) as server, server.client() as client:
        assert client.post("/admin/reload").status_code == 403


# ------------------------------------------------------------------------------------ reloading


def test_keys_are_exchanged_by_a_reload_and_a_broken_file_changes_none(
    reranker: Reranker, tmp_path: Path
) -> None:
    path = written(tmp_path / "keys", "\n".join(LINES))
    with Live(reranker, keys=read_keys(path)) as server, server.client() as client:

        def status(key: str, method: str = "GET", where: str = "/v1/models") -> int:
            return client.request(
                method, where, headers={"authorization": f"Bearer {key}"}
            ).status_code

        def rank(key: str) -> int:
            sent = {"authorization": f"Bearer {key}"}
            body = body_of(reranker, 1, reasoning="off")
            return client.post("/rerank", json=body, headers=sent).status_code

        assert [rank(SLOW) for _ in range(3)] == [200, 200, 429]
        for broken in ("", "# nothing", "short", b"\xff\xfe", f"{RANK} roles=root"):
            written(path, broken)
            answer = client.post("/admin/reload", headers={"authorization": f"Bearer {OPS}"})
            assert answer.status_code == 409
            assert "nothing was exchanged" in answer.json()["message"]
            assert [status(key) for key in (RANK, OPS, SLOW, "x" * 20)] == [200, 200, 200, 401]
        path.unlink()
        assert status(OPS, "POST", "/admin/reload") == 409
        assert status(RANK) == 200
        written(path, "\n".join([LINES[1], LINES[2], "the-key-that-follows"]))
        assert status(OPS, "POST", "/admin/reload") == 200
        assert [status(key) for key in (RANK, OPS, "the-key-that-follows")] == [401, 200, 200]
        assert rank(SLOW) == 429  # reading a rate again does not fill it
