"""A LangChain document compressor over a bundle (needs langchain-core).

compressor = DiffusionRerank(reranker=Reranker.from_pretrained(directory), top_n=5)
compressor.compress_documents(documents, "user:S0000012")
"""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffgr2.integrations.asking import entry, missing, rank
from diffgr2.rerank.reranker import Reranker

try:
    from langchain_core.documents import BaseDocumentCompressor, Document
    from pydantic import ConfigDict
except ImportError:
    raise missing("langchain-core") from None


class DiffusionRerank(BaseDocumentCompressor):
    """Documents in the model's order, with `relevance_score` in their metadata."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    reranker: Reranker  # an opened bundle
    top_n: int | None = None  # how many to return; None = all

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> Sequence[Document]:
        """Rank documents for a query: `user:<id>`, a history as JSON, or words."""
        entries = [entry(document.page_content, document.metadata) for document in documents]
        result = rank(self.reranker, query, entries, self.top_n)
        if result is None:
            return []
        ranked = []
        for index, score in zip(result.order, result.scores, strict=True):
            document = documents[index]
            metadata = {**document.metadata, "relevance_score": score}
            ranked.append(document.model_copy(update={"metadata": metadata}))
        return ranked
