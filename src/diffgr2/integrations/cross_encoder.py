"""`rank()` in the shape of sentence-transformers' CrossEncoder, without that library.

encoder = CrossEncoder.from_pretrained("runs/demo/bundle")
encoder.rank("user:S0001698", ["P0001373", "P0000485"], top_k=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffgr2.integrations.asking import rank
from diffgr2.rerank.reranker import Reranker


@dataclass(frozen=True)
class CrossEncoder:
    """A bundle that ranks like a cross-encoder; scores are probabilities within the list."""

    reranker: Reranker  # an opened bundle

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> CrossEncoder:
        """Open a bundle."""
        return cls(Reranker.from_pretrained(directory))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """`[{"corpus_id", "score", "text"?}]`, best first."""
        del batch_size, show_progress_bar  # one list is one decode
        result = rank(self.reranker, query, list(documents), top_k, **options)
        if result is None:
            return []
        pairs = zip(result.order, result.scores, strict=True)
        return [
            {
                "corpus_id": index,
                "score": score,
                **({"text": documents[index]} if return_documents else {}),
            }
            for index, score in pairs
        ]
