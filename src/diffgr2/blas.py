"""How many threads the linear algebra of numpy and scipy takes.

Contract: `keep(n)` holds it to so many from now on, libraries that are loaded later and child
processes included, unless the environment says a number of its own; inside `single()` it takes one,
as far as its libraries were loaded when that was first asked. A product of a few hundred numbers is
done before a second thread has begun, and where another process has that thread's core, waiting for
it takes a hundred times as long as the product. Not here: torch's threads (`cli.runs`), ONNX
Runtime's (`model.ort`).
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController, threadpool_limits

VARIABLE = "OPENBLAS_NUM_THREADS"
SAID = any(name in os.environ for name in (VARIABLE, "OMP_NUM_THREADS", "MKL_NUM_THREADS"))
"""By whoever started this process, which may be a run of ours."""


def keep(threads: int) -> None:
    """See the module's docstring."""
    if not SAID:
        os.environ[VARIABLE] = str(threads)
        threadpool_limits(threads, "blas")


@cache
def _libraries() -> ThreadpoolController:
    """Those that are loaded when first asked, scipy's among them."""
    import scipy.linalg  # noqa: F401

    return ThreadpoolController()


def single() -> AbstractContextManager[object]:
    """See the module's docstring."""
    return _libraries().limit(limits=1, user_api="blas")
