"""`rerank --engine`: any source into a folder of part files, by many workers.

Contract: `Asked` is what the options say; `run` ranks and prints one line, what was set aside among
it. The exit code is 0 where every row was ranked, 6 where some were set aside, 2 where all were.
Not here: the work (`bulk`), and the file of lines that `rerank` writes without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from diffgr2.errors import ConfigError

SET_ASIDE = 6

Engine = Annotated[
    str | None,
    typer.Option(metavar="local|ray", help="Many workers, part files in a folder."),
]
Workers = Annotated[int, typer.Option(min=0, help="Of --engine; 0: one for each core or GPU.")]
Gpus = Annotated[float, typer.Option(min=0.0, help="GPU of each worker on Ray, as .5 or 1.")]
Form = Annotated[str | None, typer.Option("--format", help="Of part files: parquet or jsonl.")]
Reasons = Annotated[bool, typer.Option("--reasoning", help="Of --engine: reasons in part files.")]


@dataclass(frozen=True)
class Asked:
    """See the module's docstring."""

    model: Path
    source: str
    output: str | None
    engine: str | None = None
    workers: int = 0
    gpus: float = 0.0
    form: str | None = None

    @property
    def into(self) -> str:
        """The output, which an input needs."""
        if self.output is None:
            raise ConfigError("--output: needed with --input")
        return self.output

    @property
    def in_shares(self) -> bool:
        """Whether many workers are wanted: said, or by a source that is no file of lines."""
        lines = self.source.endswith(".jsonl") or Path(self.source).suffix == ""
        more = self.workers or self.gpus or self.form
        uri = "://" in self.source + self.into
        whole = not lines and Path(self.source).suffix in (".parquet", ".csv", ".gz")
        return bool(self.engine or more or uri or whole or Path(self.source).is_dir())

    def run(self, **options: Any) -> int:
        """Rank; the exit code."""
        from diffgr2.bulk.job import SET_ASIDE as NAMED
        from diffgr2.bulk.rank_all import rank_all

        many: dict[str, Any] = {"workers": self.workers, "gpus": self.gpus, "form": self.form}
        engine = self.engine or "local"
        got = rank_all(self.model, self.source, self.into, engine=engine, **many, **options)
        said = f"{self.output}: {got.ranked} rankings, {got.set_aside} rows set aside"
        if got.set_aside:
            said += f" (see {NAMED} there)"
        shares = sorted((n for _, n in got.by_worker.items()), reverse=True)
        if len(shares) > 1 and got.rows:
            said += "; by worker " + ", ".join(f"{n / got.rows:.0%}" for n in shares[:8])
        typer.echo(said)
        if not got.set_aside:
            return 0
        return 2 if got.ranked == 0 else SET_ASIDE
