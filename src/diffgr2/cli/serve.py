"""The verb `serve`: options, environment and settings file into a running server.

Contract: every option may stand on the command line, in the environment (`DIFFGR2_PORT`, …) or in
the YAML file of `--config`, in this order of precedence. What cannot work is one line before
anything heavy is imported: a missing bundle, a broken keys file, an address that would be open to
others without keys. A bundle that was judged worse than its floor or its scorer is served on demand
only. With `--engine ray` models run in replicas (`cli.replicas`). Not here: HTTP (`serve`).
"""

import logging
import math
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from socket import gethostname
from typing import Annotated, Any, get_args, get_type_hints

import typer

from diffgr2.cli.unnamed import meant
from diffgr2.errors import ArtifactError, ConfigError, MissingExtraError, nearest, one_of
from diffgr2.rerank.shipped import nowhere

LOOPBACK = ("127.0.0.1", "::1", "localhost")
DAY_S = 86_400.0
KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    str: ("text", (str,)),
    Path: ("a path", (str,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    bool: ("true or false", (bool,)),
}
"""What YAML may hold for an option of a type; nothing is turned into another type."""


def option(*names: str, help: str, **more: Any) -> Any:
    """An option that the environment may set too."""
    word = names[0].partition("/")[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(*names, help=help, envvar=f"DIFFGR2_{word}", show_envvar=True, **more)


def finite(value: float) -> float:
    """Comparisons with a range let `nan` through."""
    if math.isnan(value):
        raise typer.BadParameter("expected a number")
    return value


# ------------------------------------------------------------------------------ settings file


def from_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """The file's values become the options' defaults."""
    if path is None:
        return None
    from diffgr2.recipe import parse_yaml

    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    known = {name[2:]: p for p in ctx.command.params for name in p.opts if name.startswith("--")}
    del known["config"]
    defaults: dict[str, Any] = {}
    for name, value in values.items():
        parameter = known.get(str(name).replace("_", "-"))
        if parameter is None:
            raise ConfigError(f"{path}: {name}: no such option of serve{nearest(str(name), known)}")
        if parameter.name in defaults:
            raise ConfigError(f"{path}: {name}: stands twice")
        defaults[str(parameter.name)] = read_value(parameter, value, f"{path}: {name}")
    ctx.default_map = defaults
    return path


def read_value(parameter: Any, value: Any, where: str) -> Any:
    """A value of the file for its option; a list only where an option may be repeated."""
    kind: Any = get_type_hints(serve)[parameter.name]
    while get_args(kind):  # list[str] | None
        kind = get_args(kind)[0]
    told, types = KINDS[kind]
    for one in value if parameter.multiple and isinstance(value, list) else [value]:
        # In Python true is a number; here it is not.
        if not isinstance(one, types) or (isinstance(one, bool) and kind is not bool):
            raise ConfigError(f"{where}: expected {told}, not {one!r:.80}")
    return [value] if parameter.multiple and not isinstance(value, list) else value


@dataclass(frozen=True)
class How:
    """How and where models are run; what begins with `replica` is of Ray's."""

    force: bool
    mapped: bool
    backend: str
    threads: int
    replicas: str
    replica_load: float
    replica_cpus: float
    replica_gpus: float


# ------------------------------------------------------------------------------------ bundles


def bundles_of(models: list[str]) -> list[tuple[str, Path]]:
    """`[NAME=]DIR` -> (name, directory), the name empty where none is given; none: the shipped."""
    found: list[tuple[str, Path]] = []
    for text in models:
        name, equals, path = text.partition("=")
        if not equals or is_bundle(Path(text)):  # a directory may have an = in its name
            name, path = "", text
        directory = meant(Path(path))
        if not is_bundle(directory):
            told = f"{directory}: no bundle stands there (diffgr2.json is missing)"
            raise ArtifactError(told if directory.is_dir() else nowhere(directory))
        if (name and name in dict(found)) or directory in [place for _, place in found]:
            raise ConfigError(f"--model {text}: stands twice")
        found.append((name, directory))
    return found or [("", meant(None))]


def judged(directories: list[Path], *, force: bool) -> list[str]:
    """What is to be said of bundles that nobody judged, or that are served although they lose; one
    that loses is a ConfigError without `force`."""
    from diffgr2.rerank.bundle import read_verdict, refuse_worse

    lines = []
    for directory in directories:
        found = read_verdict(directory)
        if not force:
            refuse_worse(directory)
        if found is None:
            lines.append(f"{directory}: not judged (nobody knows whether it beats its floor)")
        elif found.worse_than:
            lines.append(f"warning: {directory}: {found.shortcoming}; served because of --force")
    return lines


def is_bundle(directory: Path) -> bool:
    return (directory / "diffgr2.json").is_file()


def opened(bundles: list[tuple[str, Path]], names: tuple[str, ...], how: How) -> dict[str, Any]:
    """The bundles by name: the one given, else the first of `--name`, else their run's. What is to
    be said of them is said, for only whole bundles have a verdict to believe."""
    from diffgr2.rerank.reranker import Reranker

    rerankers: dict[str, Any] = {}
    for given, directory in bundles:
        reranker = Reranker.from_pretrained(directory, mapped=how.mapped)
        rerankers[named(given, reranker.name, directory, names, rerankers)] = reranker
    for line in judged([directory for _, directory in bundles], force=how.force):
        print(line, file=sys.stderr)
    return rerankers


def named(
    given: str, own: str, directory: Path, names: tuple[str, ...], taken: Collection[str]
) -> str:
    """What a bundle is called among those before it."""
    from diffgr2.serve.state import ALIASES

    name = given or (names[0] if names and not taken else "") or own
    if name in taken or (taken and name in (*names, *ALIASES)):
        raise ConfigError(f"--model {directory}: the name {name} is taken (give NAME=DIR)")
    return name


# ------------------------------------------------------------------------------- the options

Models = Annotated[
    list[str] | None,
    option("--model", "-m", metavar="[NAME=]DIR", help="A bundle, by name if many; none: demo."),
]
Config = Annotated[
    Path | None,
    option("--config", is_eager=True, callback=from_file, help="These options as YAML."),
]
Host = Annotated[str, option("--host", help="Address to listen on.")]
Port = Annotated[int, option("--port", min=0, max=65535, help="0 = any free port.")]
KeysFile = Annotated[Path | None, option("--keys", help="File of API keys (or DIFFGR2_API_KEYS).")]
Insecure = Annotated[bool, option("--no-keys", help="Serve beyond this machine without keys.")]
Names = Annotated[list[str] | None, option("--name", help="Another name of the first model.")]
Hosts = Annotated[
    list[str] | None,
    option("--allow-host", help="Host that is answered, besides this machine; repeat; * = all"),
]
Cors = Annotated[list[str] | None, option("--cors", help="Origin whose pages may ask; repeat.")]
Page = Annotated[bool, option("--page/--no-page", help="The page at /.")]
Docs = Annotated[bool, option("--docs/--no-docs", help="/docs, /openapi.json.")]
Documents = Annotated[
    int, option("--documents", min=1, max=10_000, help="Documents in one list, at most.")
]
Strict = Annotated[
    bool, option("--strict", help="Unknown items and fields are 422, where a request does not say.")
]
Batch = Annotated[int, option("--batch", min=1, max=10_000, help="Lists in one batch, at most.")]
Waiting = Annotated[int, option("--waiting", min=0, help="Requests that may wait.")]
Running = Annotated[int, option("--running", min=1, help="Lists decoded at once.")]
Tokens = Annotated[int, option("--tokens", min=1, help="Cache slots of all lists.")]
Timeout = Annotated[
    float, option("--timeout", min=0.001, max=DAY_S, callback=finite, help="Default deadline, s.")
]
Drain = Annotated[
    float, option("--drain", min=0.0, max=DAY_S, callback=finite, help="Seconds after SIGTERM.")
]
Threads = Annotated[int, option("--threads", min=0, help="Of the model; 0 = as many as it likes.")]
Backend = Annotated[
    str, option("--backend", metavar="auto|onnx|onnx-int8|torch", help="What runs the model.")
]
LogDir = Annotated[
    Path | None,
    option("--log-dir", help="Keep impressions and POST /v1/feedback there, as JSON lines."),
]
LogRotate = Annotated[
    int, option("--log-rotate-mb", min=1, max=100_000, help="Megabytes of one file of --log-dir.")
]
LogKeep = Annotated[
    int, option("--log-keep", min=0, help="Newest files of each log to keep; 0 = all.")
]
Log = Annotated[bool, option("--log", help="One JSON line per request on stderr.")]
TracesTo = Annotated[
    str | None, option("--traces", metavar="URL", help="Send OpenTelemetry traces there.")
]
EngineOf = Annotated[
    str, option("--engine", metavar="local|ray", help="Rank here, or in replicas on Ray Serve.")
]
Replicas = Annotated[
    str, option("--replicas", metavar="N|MIN-MAX", help="Replicas on Ray; a range follows load.")
]
ReplicaLoad = Annotated[
    float,
    option("--replica-load", min=0.0, callback=finite, help="Requests of each; 0 = running / 2."),
]
ReplicaCpus = Annotated[
    float, option("--replica-cpus", min=0.0, callback=finite, help="CPUs of each replica.")
]
ReplicaGpus = Annotated[
    float, option("--replica-gpus", min=0.0, callback=finite, help="GPUs of each, as .25 or 1.")
]
Force = Annotated[
    bool, option("--force", help="Serve even a bundle that is worse than its floor or its scorer.")
]
Mapped = Annotated[bool, option("--mapped", help="Leave counts and histories in their files.")]


# ----------------------------------------------------------------------------------- the verb


def serve(
    models: Models = None,
    config: Config = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    keys_file: KeysFile = None,
    insecure: Insecure = False,
    names: Names = None,
    hosts: Hosts = None,
    cors: Cors = None,
    page: Page = True,
    docs: Docs = True,
    documents: Documents = 100,
    strict: Strict = False,
    batch: Batch = 100,
    waiting: Waiting = 128,
    running: Running = 32,
    tokens: Tokens = 32_768,
    timeout: Timeout = 30.0,
    drain: Drain = 30.0,
    threads: Threads = 0,
    backend: Backend = "auto",
    log: Log = False,
    log_dir: LogDir = None,
    log_rotate_mb: LogRotate = 64,
    log_keep: LogKeep = 0,
    traces: TracesTo = None,
    force: Force = False,
    mapped: Mapped = False,
    engine: EngineOf = "local",
    replicas: Replicas = "1",
    replica_load: ReplicaLoad = 0.0,
    replica_cpus: ReplicaCpus = 1.0,
    replica_gpus: ReplicaGpus = 0.0,
) -> None:
    """Serve models over HTTP: Cohere, Jina, vLLM and TEI shapes, and a page to try it."""
    bundles = bundles_of(models or [])
    bounds = {"candidates": documents, "strict": strict, "batch": batch, "waiting": waiting}
    bounds |= {"running": running, "tokens": tokens, "timeout_s": timeout, "drain_s": drain}
    shown = {"page": page, "docs": docs, "cors": tuple(cors or ())}
    given = settings_of(bounds, shown, (log_dir, log_rotate_mb, log_keep))
    keys, tracing = keys_of(keys_file, host, insecure=insecure), tracing_of(traces)
    hosted = answered(host, tuple(hosts or ()), keyed=bool(keys))
    limits = replace(given["limits"], hosts=hosted)
    given |= {"limits": limits, "keys": keys}
    ray = (replicas, replica_load, replica_cpus, replica_gpus)
    how = How(force, mapped, backend, threads, *ray)
    made = app_here if engine == "local" else elsewhere(engine)
    app = made(bundles, tuple(names or ()), given, how)
    app.state.shared.traces, app.state.shared.any_worth = tracing, force
    if not run(app, limits, host=host, port=port, log=log):
        raise typer.Exit(1)


def elsewhere(engine: str) -> Any:
    """What makes the application of replicas."""
    one_of("--engine", engine, ("local", "ray"))
    from diffgr2.cli.replicas import app_on_ray

    return app_on_ray


def settings_of(
    bounds: dict[str, Any], shown: dict[str, Any], log: tuple[Path | None, int, int]
) -> dict[str, Any]:
    """Bounds, what is shown and where logs go, as `make_app` takes them."""
    from diffgr2.serve.app import LogTo, Shown
    from diffgr2.serve.limits import Limits

    directory, megabytes, keep = log
    most = max(300.0, bounds["timeout_s"])
    return {
        "limits": Limits(**bounds, max_timeout_s=most, lanes=0),
        "shown": Shown(**shown),
        "log_to": LogTo(directory, megabytes * 1_000_000, keep) if directory else None,
    }


def app_here(
    bundles: list[tuple[str, Path]], names: tuple[str, ...], given: dict[str, Any], how: How
) -> Any:
    """The application with its models in this process."""
    from diffgr2.model import backends
    from diffgr2.serve.app import make_app

    backends.use(how.backend, how.threads)
    return make_app(opened(bundles, names, how), names=names, **given)


def keys_of(path: Path | None, host: str, *, insecure: bool) -> Any:
    """The keys; an address that others reach needs some, or the word that it is meant."""
    from diffgr2.serve.keys import read_keys

    keys = read_keys(path)
    if not keys and host not in LOOPBACK and not insecure:
        raise ConfigError(f"--host {host}: needs --keys (or --no-keys if you mean it)")
    return keys


def run(app: Any, limits: Any, *, host: str, port: int, log: bool) -> bool:
    """Log through a queue and serve until a signal; False if the drain was cut short."""
    from diffgr2.serve.logs import QueuedLines
    from diffgr2.serve.telemetry import JsonLines
    from diffgr2.serve.wire import serve as run_server

    state = app.state.shared
    lines = QueuedLines(sys.stderr, state.metrics.log_dropped.inc)
    if log:
        lines.setFormatter(JsonLines())
    logging.getLogger().addHandler(lines)
    logging.getLogger("diffgr2.serve").setLevel(logging.INFO if log else logging.WARNING)
    try:
        return run_server(app, limits, host=host, port=port)
    finally:
        if state.traces is not None:
            state.traces.close()
        logging.getLogger().removeHandler(lines)
        lines.close()


def tracing_of(url: str | None) -> Any:
    """Traces to the collector that the option or OpenTelemetry's own variables name, or None."""
    from diffgr2.serve import tracing

    if url is None and not tracing.wanted(os.environ):
        return None
    try:
        return tracing.start(url)
    except ImportError as error:
        told = f"traces need OpenTelemetry ({error.name}): pip install 'diffgr2[otel]'"
        if url is not None:
            raise MissingExtraError(told) from None
        # The variables may be there for every program of a machine: no reason not to serve.
        print(f"warning: {told}; serving without traces", file=sys.stderr)
        return None


def answered(host: str, allowed: tuple[str, ...], *, keyed: bool) -> tuple[str, ...]:
    """Names in Host that are answered; () = all. Keys guard against foreign pages by themselves.

    Who listens beyond this machine is asked by its addresses too (probes do) and by its name.
    """
    from diffgr2.serve.limits import ANY_ADDRESS

    if "*" in allowed or (keyed and not allowed):
        return ()
    own = (ANY_ADDRESS, gethostname().lower()) if host in ("0.0.0.0", "::") else (host.lower(),)
    return (*LOOPBACK, *own, *(name.lower() for name in allowed))
