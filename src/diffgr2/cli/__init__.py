"""The command line: one verb per stage, and the verbs around them (`diffgr2 --help`).

Contract: `main` prints one line `error: …` for whatever a user can cause and exits with the error's
code (2 wrong input, 3 broken artifacts, 4 numbers, 5 a remote end, 130 interrupted); `--debug`
shows the traceback instead. torch is imported by the verbs that need it, so `--help` is quick.
Not here: any work.
"""

import os
import re
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from diffgr2 import __version__
from diffgr2.cli import (
    about,
    bases,
    compare,
    datasets,
    export,
    init,
    planning,
    pooling,
    reports,
    rerank,
    upkeep,
    verbs,
)
from diffgr2.errors import Diffgr2Error, missing_extra
from diffgr2.stages.plan import STAGES

INTERRUPTED = 130


PAIRS = ("--set", "--column", "--item-column", "--list-column", "--gain", "--map")
"""Options whose value is `key=value`; several may stand behind one of them."""

_PAIR = re.compile(r"[A-Za-z_][\w.-]*=.*", re.DOTALL)


def spread(arguments: list[str]) -> list[str]:
    """`--set a=1 b=2` as `--set a=1 --set b=2`."""
    result: list[str] = []
    for text in arguments:
        behind = result[-2:-1] and result[-2] in PAIRS and _PAIR.fullmatch(result[-1])
        result += [result[-2], text] if behind and _PAIR.fullmatch(text) else [text]
    return result


class InOrder(TyperGroup):
    """Stages in the pipeline's order, whether a command or a group."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))

    def list_commands(self, ctx: Any) -> list[str]:
        order = [name.replace("_", "-") for name in STAGES]
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


app = typer.Typer(
    cls=InOrder,
    name="diffgr2",
    help="Generative reasoning re-ranking: train, convert to block diffusion, measure, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"diffgr2 {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks (anywhere in the line)."),
) -> None:
    """Runs stand in `runs/<recipe name>`; what stands already is not run again."""


for module in (
    init,
    datasets,
    bases,
    verbs,
    reports,
    planning,
    pooling,
    compare,
    about,
    rerank,
    upkeep,
    export,
):
    module.register(app)


def main() -> None:
    """Run the command line and exit."""
    given = sys.argv[1:]
    debug = "--debug" in given
    code = run([text for text in given if text != "--debug"], debug=debug)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from diffgr2.train import dist

        dist.leave(code)
    sys.exit(code)


def run(arguments: list[str], *, debug: bool = False) -> int:
    """Run a command line; the exit code."""
    try:
        code = app(arguments, prog_name="diffgr2", standalone_mode=False)
        if code == INTERRUPTED:  # typer's own word for Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        print("\ninterrupted: the same command goes on where this one stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output left: `diffgr2 ... | head`
        sys.stderr.close()
        return 141
    except Exception as error:
        if debug:
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    """One line about what the user can mend; anything else is a bug and shows its traceback."""
    if isinstance(error, ModuleNotFoundError):
        error = missing_extra(error) or error
    if isinstance(error, Diffgr2Error):
        message, code = str(error), error.exit_code
    elif hasattr(error, "format_message"):  # a usage error of the command line itself
        message, code = error.format_message(), getattr(error, "exit_code", 2)  # type: ignore
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        message, code = f"{where}{error.strerror}", 1
    else:
        raise error
    if message:  # an empty one: the help was shown instead
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
