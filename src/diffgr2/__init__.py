"""diffgr2: generative reasoning re-ranking, autoregressive and block-diffusion.

`Reranker` and `RankResult` are the Python API.
"""

from typing import TYPE_CHECKING, Any

__version__ = "1.0.0"
__all__ = ["RankResult", "Reranker"]

if TYPE_CHECKING:
    from diffgr2.rerank.reranker import Reranker
    from diffgr2.rerank.result import RankResult


def __getattr__(name: str) -> Any:
    """The API by name, imported on first use: the command line needs neither for `--help`."""
    if name not in __all__:
        raise AttributeError(f"module 'diffgr2' has no attribute {name!r}")
    from diffgr2.rerank import reranker, task

    return getattr(reranker if name == "Reranker" else task, name)
