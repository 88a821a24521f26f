"""Our adapters inside the libraries they are for, over a bundle on disk."""

from __future__ import annotations

import os

import pytest

BUNDLE = os.environ.get("DIFFGR2_CLIENTS_BUNDLE")
pytestmark = pytest.mark.skipif(not BUNDLE, reason="DIFFGR2_CLIENTS_BUNDLE names no bundle")


@pytest.fixture(scope="module")
def reranker():
    module = pytest.importorskip("diffgr2.rerank.reranker")
    return module.Reranker.from_pretrained(BUNDLE)


def wanted(reranker, service) -> list[str]:
    return list(reranker.rank(service.history, service.documents).items)


def test_langchain_compressor(reranker, service) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document

    from diffgr2.integrations.langchain import DiffusionRerank

    compressor = DiffusionRerank(reranker=reranker, top_n=3)
    titles = [f"words about {item}" for item in service.documents]
    documents = [
        Document(page_content=title, metadata={"item_id": item})
        for title, item in zip(titles, service.documents, strict=True)
    ]
    ranked = compressor.compress_documents(documents, service.query)
    assert [d.metadata["item_id"] for d in ranked] == wanted(reranker, service)[:3]
    scores = [document.metadata["relevance_score"] for document in ranked]
    assert 1.0 >= scores[0] > scores[1] > scores[2] >= 0.0
    assert compressor.compress_documents([], service.query) == []


def test_llama_index_postprocessor(reranker, service) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import NodeWithScore, TextNode

    from diffgr2.integrations.llamaindex import DiffusionRerank

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.1) for text in service.documents]
    rank = DiffusionRerank(reranker, top_n=2)
    ranked = rank.postprocess_nodes(nodes, query_str=service.query)
    assert [n.node.text for n in ranked] == wanted(reranker, service)[:2]
    assert 1.0 >= ranked[0].score > ranked[1].score >= 0.0


def test_haystack_component(reranker, service) -> None:
    pytest.importorskip("haystack")
    from haystack import Document, Pipeline

    from diffgr2.integrations.haystack import DiffusionRanker

    pipeline = Pipeline()
    pipeline.add_component("rank", DiffusionRanker(BUNDLE))
    documents = [Document(content=text) for text in service.documents]
    result = pipeline.run({"rank": {"query": service.query, "documents": documents}})
    ranked = [document.content for document in result["rank"]["documents"]]
    assert ranked == wanted(reranker, service)
    again = DiffusionRanker.from_dict(DiffusionRanker(BUNDLE, top_k=2).to_dict())
    assert again.top_k == 2
