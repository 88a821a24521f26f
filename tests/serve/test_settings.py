"""Settings of `serve`: every option by flag, environment and file, in that order of precedence."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
import typer
import yaml

from diffgr2 import cli
from diffgr2.cli import serve as verb
from diffgr2.cli.serve import answered, serve
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve import wire
from diffgr2.serve.app import make_app
from diffgr2.serve.limits import ANY_ADDRESS, Limits

KEY = "0123456789abcdef-of-settings"

# option: (value by flag or environment, the same in YAML, another in YAML)
SCALARS: dict[str, tuple[str, Any, Any]] = {
    "host": ("127.0.0.2", "127.0.0.2", "localhost"),
    "port": ("8123", 8123, 8124),
    "documents": ("40", 40, 41),
    "batch": ("7", 7, 8),
    "waiting": ("9", 9, 10),
    "running": ("3", 3, 4),
    "tokens": ("5000", 5000, 6000),
    "timeout": ("12.5", 12.5, 13),
    "drain": ("4", 4, 5.5),
    "threads": ("1", 1, 1),
    "log-dir": ("one", "one", "other"),
    "log-rotate-mb": ("5", 5, 6),
    "log-keep": ("4", 4, 3),
}
FLAGS: dict[str, bool] = {
    "log": False,
    "page": True,
    "docs": True,
    "no-keys": False,
    "strict": False,
    "force": False,
    "mapped": False,
}
LISTS = ("name", "allow-host", "cors")
REPLICAS = ("engine", "replicas", "replica-load", "replica-cpus", "replica-gpus")


@dataclass
class Started:
    """What a command line came to, with nothing opened and nothing served."""

    code: int
    error: str
    limits: Limits = field(default_factory=Limits)
    given: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "diffgr2.json").write_text("{}")
    return folder


@pytest.fixture
def start(monkeypatch, capsys, bundle: Path):
    """Run `serve` as far as its settings go."""

    class Stub:
        name = "stub"

    for name in [name for name in verb.os.environ if name.startswith(("DIFFGR2_", "OTEL_"))]:
        monkeypatch.delenv(name)

    def run(*options: str, file: Any = None, model: bool = True, **environ: str) -> Started:
        seen: dict[str, Any] = {}

        def make_app(rerankers: dict, *, limits: Limits, **more: Any) -> Any:
            log_to, shared = more["log_to"], type("T", (), {})()
            if log_to is not None:
                files = {"log_rotate_mb": log_to.rotate_bytes // 10**6, "log_keep": log_to.keep}
                seen.update(log_dir=str(log_to.directory), **files)
            seen.update(rerankers=rerankers, limits=limits, shared=shared, **more)
            return type("App", (), {"state": type("S", (), {"shared": shared})()})()

        def serves(app: Any, limits: Limits, *, host: str, port: int, log: bool) -> bool:
            seen.update(host=host, port=port, log=log)
            return True

        def opened(path: Path, mapped: bool) -> Stub:
            seen["mapped"] = mapped
            return Stub()

        monkeypatch.setattr(Reranker, "from_pretrained", opened)
        monkeypatch.setattr("diffgr2.serve.app.make_app", make_app)
        monkeypatch.setattr(verb, "run", serves)
        monkeypatch.setattr("torch.set_num_threads", lambda n: seen.update(threads=n))
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        line = ["serve", *(["--model", str(bundle)] if model else []), *options]
        if file is not None:
            path = bundle / "serve.yaml"
            path.write_text(file if isinstance(file, str) else yaml.safe_dump(file))
            line += ["--config", str(path)]
        code = cli.run(line)
        for name in environ:
            monkeypatch.delenv(name)
        shown = seen.get("shown")
        given = {**seen, **(vars(shown) if shown else {})}
        given["force"] = getattr(seen.get("shared"), "any_worth", None)
        return Started(code, capsys.readouterr().err, seen.get("limits", Limits()), given)

    return run


def effective(started: Started, option: str) -> Any:
    limits = started.limits
    named = {"documents": limits.candidates, "timeout": limits.timeout_s, "drain": limits.drain_s}
    if option in named:
        return named[option]
    if hasattr(limits, option):
        return getattr(limits, option)
    return started.given.get(option.replace("-", "_"))


def variable(option: str) -> str:
    return f"DIFFGR2_{option.replace('-', '_').upper()}"


@pytest.mark.parametrize("option", SCALARS)
def test_flag_before_environment_before_file_before_default(start, option: str) -> None:
    text, value, other = SCALARS[option]
    more = {"no-keys": True}  # so that any host will do
    more |= {} if option == "log-dir" else {"log-dir": "somewhere"}
    default = effective(start(file={**more, "threads": 2}), option)
    in_file = start(file={**more, option: other})
    assert in_file.code == 0, in_file.error
    assert effective(in_file, option) == other
    by_environ = start(file={**more, option: other}, **{variable(option): text})
    assert effective(by_environ, option) == value
    by_flag = start(f"--{option}", text, file={**more}, **{variable(option): str(other)})
    assert effective(by_flag, option) == value
    assert value != default


def test_flags_are_set_by_each_and_unset_by_the_stronger(start) -> None:
    for name, given in ((name, name) for name in ("page", "docs", "log", "force", "mapped")):
        default = FLAGS[name]
        assert effective(start(), given) is default
        assert effective(start(file={name: not default}), given) is not default
        word = "0" if default else "1"
        assert effective(start(**{variable(name): word}), given) is not default
    assert start("--page", DIFFGR2_PAGE="0").given["page"] is True
    assert start("--no-page", file={"page": True}).given["page"] is False
    assert start(file={"docs": False}, DIFFGR2_DOCS="true").given["docs"] is True
    assert start("--host", "0.0.0.0").code == 2
    for more in ({"file": {"no-keys": True}}, {"DIFFGR2_NO_KEYS": "1"}):
        assert start("--host", "0.0.0.0", **more).code == 0


def test_lists_are_replaced_whole_not_joined(start) -> None:
    def got(started: Started, option: str) -> tuple[str, ...]:
        assert started.code == 0, started.error
        return started.limits.hosts if option == "allow-host" else started.given[option + "s"]

    for option in ("name", "allow-host"):
        assert {"a", "b"} <= set(got(start(file={option: ["a", "b"]}), option))
        one = got(start(file={option: "alone"}), option)
        assert "alone" in one
        assert "a" not in one
        stronger = got(start(file={option: ["a"]}, **{variable(option): "c d"}), option)
        assert {"c", "d"} <= set(stronger)
        assert "a" not in stronger
        flags = got(start(f"--{option}", "e", f"--{option}", "f", file={option: ["a"]}), option)
        assert {"e", "f"} <= set(flags)
        assert "a" not in flags
    assert start(file={"cors": ["https://shop.example"]}).given["cors"] == ("https://shop.example",)


def test_model_config_and_keys_come_from_each(start, bundle: Path, tmp_path: Path) -> None:
    assert list(start().given["rerankers"]) == ["stub"]
    assert start(model=False, DIFFGR2_MODEL=str(bundle)).code == 0
    assert start(model=False, file={"model": str(bundle)}).code == 0
    named = start(model=False, file={"model": [f"shop={bundle}"]})
    assert list(named.given["rerankers"]) == ["shop"]
    assert start("--name", "front").given["rerankers"].keys() == {"front"}
    file = tmp_path / "other.yaml"
    file.write_text("port: 99\n")
    assert start(DIFFGR2_CONFIG=str(file)).given["port"] == 99
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY} name=shop\n")
    keys.chmod(0o600)
    header = f"Bearer {KEY}".encode()
    for started in (
        start("--keys", str(keys)),
        start(DIFFGR2_KEYS=str(keys)),
        start(file={"keys": str(keys)}),
    ):
        assert started.code == 0
        assert started.given["keys"].find(header).name == "shop"
    assert start(DIFFGR2_API_KEYS=KEY).given["keys"].find(header)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 8000", "prot: no such option of serve; did you mean port?"),
        ("config: x.yaml", "config: no such option of serve"),
        ("m: x", "m: no such option of serve"),
        ("1: 2", "key 1 is not text"),
        ("no-page: true", "no-page: no such option of serve"),
        ("allow_host: a\nallow-host: b", "allow-host: stands twice"),
        ("port: 80\nport: 81", "'port' stands twice"),
        ("port: '8000'", "port: expected a whole number, not '8000'"),
        ("port: 8000.5", "port: expected a whole number, not 8000.5"),
        ("port: true", "port: expected a whole number, not True"),
        ("port: [1]", "port: expected a whole number, not [1]"),
        ("port:", "port: expected a whole number, not None"),
        ("port: 70000", "--port"),
        ("page: 'no'", "page: expected true or false, not 'no'"),
        ("log: 1", "log: expected true or false, not 1"),
        ("timeout: .nan", "--timeout"),
        ("timeout: .inf", "--timeout"),
        ("timeout: 0", "--timeout"),
        ("timeout: soon", "timeout: expected a number, not 'soon'"),
        ("cors: [1]", "cors: expected text, not 1"),
        ("cors: {a: b}", "cors: expected text, not {'a': 'b'}"),
        ("host: 1", "host: expected text, not 1"),
        ("keys: 5", "keys: expected a path, not 5"),
        ("engine: spark", "--engine spark: expected one of local, ray"),
        ("- port", "expected a mapping"),
        ("port: [", "not valid YAML"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line(start, text: str, message: str) -> None:
    started = start(file=text)
    assert started.code == 2
    assert re.fullmatch(r"error: [^\n]*\n", started.error), started.error
    assert message in started.error
    assert "limits" not in started.given


@pytest.mark.parametrize(
    ("options", "environ", "message"),
    [
        (["--port", "x"], {}, "--port"),
        (["--port", "-1"], {}, "--port"),
        (["--timeout", "nan"], {}, "--timeout"),
        (["--drain", "inf"], {}, "--drain"),
        (["--running", "0"], {}, "--running"),
        (["--documents", "0"], {}, "--documents"),
        (["--nothing"], {}, "--nothing"),
        ([], {"DIFFGR2_PORT": "tcp://10.0.0.7:8000"}, "DIFFGR2_PORT"),
        ([], {"DIFFGR2_LOG": "perhaps"}, "DIFFGR2_LOG"),
        ([], {"DIFFGR2_TIMEOUT": "NaN"}, "DIFFGR2_TIMEOUT"),
        ([], {"DIFFGR2_CONFIG": "/nowhere/serve.yaml"}, "/nowhere/serve.yaml: cannot be read"),
        ([], {"DIFFGR2_KEYS": "/nowhere/keys"}, "/nowhere/keys: cannot be read"),
        ([], {"DIFFGR2_API_KEYS": "short"}, "16 characters"),
        (["--host", "0.0.0.0"], {}, "--host 0.0.0.0: needs --keys"),
    ],
)
def test_wrong_values_are_one_line(start, options, environ, message) -> None:
    started = start(*options, **environ)
    assert started.code == 2
    assert re.fullmatch(r"error: [^\n]*\n", started.error), started.error
    assert message in started.error


def test_bundles_are_named_or_refused(start, bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "lr=1"
    other.mkdir()
    (other / "diffgr2.json").write_text("{}")
    both = start(model=False, file={"model": [f"a={bundle}", f"b={other}"]})
    assert list(both.given["rerankers"]) == ["a", "b"]
    plain = start(model=False, file={"model": [str(other)]})
    assert list(plain.given["rerankers"]) == ["stub"]  # the = belongs to the directory
    for models, code, message in (
        (["a=/nowhere"], 3, "/nowhere: no such directory (a bundle is one: "),
        ([f"a={bundle}", f"a={other}"], 2, "stands twice"),
        ([f"a={bundle}", f"b={bundle}"], 2, "stands twice"),
        ([str(bundle), str(other)], 2, "the name stub is taken"),
        ([f"a={bundle}", f"default={other}"], 2, "the name default is taken"),
    ):
        started = start(model=False, file={"model": models})
        assert (started.code, message in started.error) == (code, True), started.error
    nothing = start(model=False)
    assert nothing.code == 0
    assert nothing.error.startswith("no --model given: using `demo`")


def parameters() -> list[Any]:
    app = typer.Typer(add_completion=False)
    app.command()(serve)
    return typer.main.get_command(app).params


def test_every_option_has_its_variable_and_help_shows_it(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    seen = 0
    for parameter in parameters():
        long = [name for name in parameter.opts if name.startswith("--")]
        if long == ["--help"]:
            continue
        seen += 1
        assert parameter.envvar == variable(long[0][2:])
        assert f"env var: {parameter.envvar}" in text
        assert parameter.help
    assert seen == len(
        {*SCALARS, *FLAGS, *LISTS, "model", "config", "keys", "traces", "backend", *REPLICAS}
    )


def test_who_may_be_named_in_host() -> None:
    own = ("127.0.0.1", "::1", "localhost")
    assert answered("127.0.0.1", (), keyed=False) == (*own, "127.0.0.1")
    assert answered("0.0.0.0", (), keyed=True) == ()
    others = (*own, ANY_ADDRESS, gethostname().lower())
    assert answered("0.0.0.0", ("Shop.Example",), keyed=True) == (*others, "shop.example")
    assert answered("0.0.0.0", (), keyed=False) == others
    assert answered("box", ("*",), keyed=False) == ()


def test_the_settings_reach_the_sockets(reranker: Reranker) -> None:
    limits = Limits(drain_s=7.0, header_bytes=1234)
    app = make_app(reranker, limits=limits)
    config = wire.make_server(app, limits, host="127.0.0.3", port=81).config
    assert (config.host, config.port) == ("127.0.0.3", 81)
    assert config.timeout_graceful_shutdown == 7
    assert config.h11_max_incomplete_event_size == 1234
