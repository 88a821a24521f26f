"""The bundle that ships with the package, by its name.

Contract: `bundle_of(None)` and `bundle_of("demo")` are the shipped bundle's directory (a directory
`demo` that stands here goes before it); any other path is itself, and `nowhere` says of one that is
not there what could be meant. The shipped one is opened as all
are and only read, so it may lie where nobody can write: `refuse_packed` says what it is no input
of. Not here: making it (`tools/demo_bundle.py`), saying that it is used (`cli.unnamed`).
"""

from pathlib import Path

from diffgr2.errors import ArtifactError, ConfigError, nearest

NAME = "demo"
SHIPPED = Path(__file__).parents[1] / NAME
PACKED = "packed"
"""What a shrunk bundle's manifest says of itself."""


def bundle_of(named: str | Path | None = None) -> Path:
    """The directory that is meant."""
    if named is not None and (str(named) != NAME or Path(named).exists()):
        return Path(named)
    if not (SHIPPED / "diffgr2.json").is_file():
        raise ArtifactError(f"{NAME}: this copy ships no bundle (name one, or `make demo-bundle`)")
    return SHIPPED


def nowhere(directory: Path) -> str:
    """The line about a bundle's directory that is not there."""
    told = f"{directory}: no such directory (a bundle is one: runs/NAME/bundle, or `{NAME}`)"
    return told + nearest(str(directory), [NAME])


def refuse_packed(bundle: Path) -> None:
    """A ConfigError where a bundle was shrunk to rank, and can be no start of a training."""
    from diffgr2.artifacts import read_manifest

    if PACKED in read_manifest(bundle):
        told = (
            "packed for ranking alone (rounded weights, few positions): start from a run's bundle"
        )
        raise ConfigError(f"{bundle}: {told}")


def refuse_replacing(bundle: Path, *, elsewhere: bool) -> None:
    """A ConfigError where the shipped bundle's place would be written to."""
    if not elsewhere and bundle.resolve() == SHIPPED.resolve():
        raise ConfigError(f"{bundle}: ships with the package and stays as it is (give --out DIR)")
