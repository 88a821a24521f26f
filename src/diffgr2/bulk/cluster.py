"""Ray, as every part of this package that runs on it begins: started here, or joined.

Contract: `joined()` starts Ray on this machine, or joins the cluster that RAY_ADDRESS names, and
returns its module; without the extra, or where that fails, it is one line. `cause_of` is what was
wrong, out of Ray's many lines. Not here: what is run on it (`on_ray`, `serve.on_serve`).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from diffgr2.errors import ConfigError, MissingExtraError, first_line

ADDRESS = "RAY_ADDRESS"


def part(name: str) -> Any:
    """Ray, or one of its parts such as `ray.serve`; or the one line that says what brings it."""
    try:
        return import_module(name)
    except ImportError as error:
        told = f"{error.name} is missing: pip install 'diffgr2[ray]'"
        raise MissingExtraError(told) from None


def elsewhere() -> bool:
    """Whether Ray runs by itself, and goes on when this process has ended."""
    return bool(os.environ.get(ADDRESS))


def joined() -> Any:
    """See the module's docstring."""
    ray = part("ray")
    if not ray.is_initialized():
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if not elsewhere():
            # Its workers are no less than this process (Ray's own: 15 nicer, so behind all else
            # that runs here), and find the package where it does.
            os.environ.setdefault("RAY_worker_niceness", "0")
            paths = os.pathsep.join(path for path in sys.path if path)
            options |= {"include_dashboard": False}
            options |= {"runtime_env": {"env_vars": {"PYTHONPATH": paths}}}
        try:
            ray.init(**options)
        except Exception as error:  # Ray has no kind of its own for it
            raise ConfigError(f"Ray did not start or was not found: {cause_of(error)}") from None
    return ray


def cause_of(error: BaseException) -> str:
    """What was wrong, in one short line."""
    inner = getattr(error, "cause", None)
    return first_line(inner if isinstance(inner, BaseException) else error)
