"""A LlamaIndex node postprocessor over a bundle (needs llama-index-core).

DiffusionRerank(Reranker.from_pretrained(directory), top_n=5).postprocess_nodes(
    nodes, query_str="user:S0000012")
"""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportUntypedBaseClass=false

from __future__ import annotations

from typing import Any

from diffgr2.integrations.asking import entry, missing, rank
from diffgr2.rerank.reranker import Reranker

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ImportError:
    raise missing("llama-index-core") from None


class DiffusionRerank(BaseNodePostprocessor):
    """Nodes in the model's order; their scores are made of the rank alone."""

    top_n: int | None = None  # how many to return; None = all
    _reranker: Reranker = PrivateAttr()

    def __init__(self, reranker: Reranker, top_n: int | None = None, **options: Any) -> None:
        super().__init__(top_n=top_n, **options)  # type: ignore[call-arg]
        self._reranker = reranker

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls it."""
        return "DiffusionRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        entries = [
            entry(node.node.get_content(MetadataMode.NONE), node.node.metadata) for node in nodes
        ]
        query = query_bundle.query_str if query_bundle is not None else "[]"
        result = rank(self._reranker, query, entries, self.top_n)
        if result is None:
            return []
        pairs = zip(result.order, result.scores, strict=True)
        return [NodeWithScore(node=nodes[index].node, score=score) for index, score in pairs]
