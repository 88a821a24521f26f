"""The verb `serve`: options, environment and settings file into a running server.

Contract: every option may stand on the command line, in the environment (`DIFFGR2_PORT`, …) or in
the YAML file of `--config`, in this order of precedence. What cannot work is one line before
anything heavy is imported: a missing bundle, a broken keys file, an address that would be open to
others without keys. Not here: HTTP (`serve`).
"""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from diffgr2.errors import ArtifactError, ConfigError, MissingExtraError
from diffgr2.recipe import parse_yaml

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def option(*names: str, help: str, **more: Any) -> Any:
    """An option that the environment may set too."""
    word = names[0].lstrip("-").replace("-", "_").upper()
    return typer.Option(*names, help=help, envvar=f"DIFFGR2_{word}", show_envvar=False, **more)


def from_file(ctx: typer.Context, path: Path | None) -> Path | None:
    """The file's values become the options' defaults."""
    if path is None:
        return None
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    known = {name.lstrip("-"): p.name for p in ctx.command.params for name in p.opts}
    for name in values:
        if name.replace("_", "-") not in known or name == "config":
            raise ConfigError(f"{path}: {name}: no such option of serve")
    ctx.default_map = {known[name.replace("_", "-")]: value for name, value in values.items()}
    return path


def bundles_of(models: list[str]) -> dict[str, Path]:
    """`[NAME=]DIR` -> directory by name; the first is the one that answers by default."""
    found: dict[str, Path] = {}
    for text in models:
        name, equals, path = text.rpartition("=")
        directory = Path(path if equals else text)
        if not (directory / "diffgr2.json").is_file():
            raise ArtifactError(f"{directory}: no bundle stands there (diffgr2.json is missing)")
        if (name or str(directory)) in found:
            raise ConfigError(f"--model {text}: stands twice")
        found[name or str(directory)] = directory
    return found


def serve(
    models: Annotated[
        list[str],
        option("--model", "-m", metavar="[NAME=]DIR", help="A bundle; repeat for more, by name."),
    ],
    config: Annotated[
        Path | None,
        typer.Option("--config", is_eager=True, callback=from_file, help="Options as YAML."),
    ] = None,
    host: Annotated[str, option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, option("--port", min=0, max=65535, help="0 = any free port.")] = 8000,
    keys_file: Annotated[
        Path | None, option("--keys", help="File of API keys (or DIFFGR2_API_KEYS).")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--no-keys", help="Serve beyond this machine without keys.")
    ] = False,
    names: Annotated[
        list[str] | None, option("--name", help="Further name of the first model; repeat.")
    ] = None,
    hosts: Annotated[
        list[str] | None,
        option("--allow-host", help="Host that is answered, besides this machine; repeat; * = all"),
    ] = None,
    cors: Annotated[
        list[str] | None, option("--cors", help="Origin whose pages may ask; repeat.")
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The page at /.")] = True,
    docs: Annotated[bool, typer.Option("--docs/--no-docs", help="/docs, /openapi.json.")] = True,
    waiting: Annotated[int, option("--waiting", min=0, help="Requests that may wait.")] = 128,
    running: Annotated[int, option("--running", min=1, help="Lists decoded at once.")] = 32,
    tokens: Annotated[int, option("--tokens", min=1, help="Cache slots of all lists.")] = 32_768,
    timeout: Annotated[
        float, option("--timeout", min=0.001, help="Default deadline, seconds.")
    ] = 30.0,
    drain: Annotated[
        float, option("--drain", min=0.0, help="Seconds to finish on SIGTERM.")
    ] = 30.0,
    threads: Annotated[
        int, option("--threads", min=0, help="Torch threads; 0 = torch's choice.")
    ] = 0,
    log: Annotated[bool, option("--log", help="One JSON line per request on stderr.")] = False,
) -> None:
    """Serve models over HTTP: Cohere, Jina, vLLM and TEI shapes, and a page to try it."""
    directories = bundles_of(models)
    try:
        from diffgr2.serve.app import Shown, make_app
        from diffgr2.serve.keys import read_keys
        from diffgr2.serve.limits import Limits
        from diffgr2.serve.logs import QueuedLines
        from diffgr2.serve.wire import serve as run_server
    except ImportError as error:
        raise MissingExtraError(f"{error.name} is missing: pip install 'diffgr2[serve]'") from None
    from diffgr2.rerank.reranker import Reranker

    keys = read_keys(keys_file)
    if not keys and host not in LOOPBACK and not insecure:
        raise ConfigError(f"--host {host}: needs --keys (or --no-keys if you mean it)")
    if threads:
        import torch

        torch.set_num_threads(threads)
    limits = Limits(
        waiting=waiting,
        running=running,
        tokens=tokens,
        timeout_s=timeout,
        max_timeout_s=max(300.0, timeout),
        drain_s=drain,
        hosts=answered(host, tuple(hosts or ()), keyed=bool(keys)),
    )
    rerankers = {name: Reranker.from_pretrained(path) for name, path in directories.items()}
    if len(rerankers) == 1 and "=" not in models[0]:
        only = next(iter(rerankers.values()))
        rerankers = {names[0] if names else only.name: only}
    shown = Shown(page=page, docs=docs, cors=tuple(cors or ()))
    app = make_app(rerankers, limits=limits, keys=keys, names=tuple(names or ()), shown=shown)
    lines = QueuedLines(sys.stderr, app.state.shared.metrics.log_dropped.inc)
    logging.getLogger().addHandler(lines)
    logging.getLogger("diffgr2.serve").setLevel(logging.INFO if log else logging.WARNING)
    try:
        if not run_server(app, limits, host=host, port=port):
            raise typer.Exit(1)
    finally:
        lines.close()


def answered(host: str, allowed: tuple[str, ...], *, keyed: bool) -> tuple[str, ...]:
    """Names in Host that are answered; () = all. Keys guard against foreign pages by themselves."""
    if "*" in allowed or (keyed and not allowed):
        return ()
    own = () if host in ("0.0.0.0", "::") else (host.lower(),)
    return (*LOOPBACK, *own, *(name.lower() for name in allowed))
