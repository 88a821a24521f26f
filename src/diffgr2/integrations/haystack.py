"""A Haystack component over a bundle (needs haystack-ai).

ranker = DiffusionRanker(directory, top_k=5)
ranker.warm_up()
ranker.run(query="user:S0000012", documents=documents)["documents"]
"""

# pyright: reportMissingImports=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportInvalidTypeForm=false, reportArgumentType=false
# (without the library its name is found here: this very file)

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffgr2.integrations.asking import entry, missing, rank
from diffgr2.rerank.reranker import Reranker

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError:
    raise missing("haystack-ai") from None


@component
class DiffusionRanker:
    """Documents in the model's order; the bundle is opened by `warm_up`."""

    def __init__(self, model: str, top_k: int | None = None) -> None:
        self.model, self.top_k = model, top_k
        self._reranker: Reranker | None = None

    def warm_up(self) -> None:
        """Open the bundle, once."""
        if self._reranker is None:
            self._reranker = Reranker.from_pretrained(self.model)

    def to_dict(self) -> dict[str, Any]:
        """As a pipeline stores it."""
        return default_to_dict(self, model=self.model, top_k=self.top_k)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DiffusionRanker:
        """From what `to_dict` made."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Rank documents for a query: `user:<id>`, a history as JSON, or words."""
        self.warm_up()
        assert self._reranker is not None
        entries = [entry(document.content or "", document.meta) for document in documents]
        result = rank(self._reranker, query, entries, top_k or self.top_k)
        if result is None:
            return {"documents": []}
        pairs = zip(result.order, result.scores, strict=True)
        return {"documents": [replace(documents[index], score=score) for index, score in pairs]}
