"""`serve --engine ray`: the door here, the models in replicas on Ray Serve.

Contract: bundles are checked, named and judged here as for one server, then deployed; the
application that comes back is the door before them (`serve.relay`), which is served like any other.
Ray runs on this machine and ends with the server, unless RAY_ADDRESS names a cluster, where the
replicas stay, for other doors and the next start. Not here: what a replica is (`serve.on_serve`).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from diffgr2.cli.serve import How, judged, named
from diffgr2.errors import ConfigError

RANGE = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?")


def bounds_of(text: str) -> tuple[int, int]:
    """`4` or `2-8` as the fewest and the most replicas."""
    found = RANGE.fullmatch(text.strip())
    least = int(found[1]) if found else 0
    most = int(found[2] or found[1]) if found else -1
    if not 0 < least <= most:
        raise ConfigError(f"--replicas {text}: expected a number, or a range such as 2-8")
    return least, most


def app_on_ray(
    bundles: list[tuple[str, Path]], names: tuple[str, ...], given: dict[str, Any], how: How
) -> Any:
    """See the module's docstring."""
    from diffgr2.rerank.bundle import check, read_note
    from diffgr2.serve.on_serve import Crew, RayFleet
    from diffgr2.serve.relay import make_relay

    least, most = bounds_of(how.replicas)
    places: dict[str, str] = {}
    for own, directory in bundles:
        check(directory)
        recipe = read_note(directory).recipe
        places[named(own, recipe.name, directory, names, places)] = str(directory.absolute())
    for line in judged([directory for _, directory in bundles], force=how.force):
        print(line, file=sys.stderr)
    crew = Crew(
        bundles=tuple(places.items()),
        limits=given["limits"],
        names=names,
        shown=given["shown"],
        any_worth=how.force,
        mapped=how.mapped,
        keeps=given["log_to"] is not None,
        backend=how.backend,
        threads=how.threads,
        least=least,
        most=most,
        load=how.replica_load,
        cpus=how.replica_cpus,
        gpus=how.replica_gpus,
    )
    fleet = RayFleet(crew)
    fleet.deploy()
    return make_relay(fleet, **given)
