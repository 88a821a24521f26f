"""The adapters that need no other library, and one line where one is missing."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from diffgr2.errors import MissingExtraError
from diffgr2.integrations.cross_encoder import CrossEncoder
from diffgr2.rerank.reranker import Reranker


def test_the_cross_encoder_ranks_like_the_reranker(reranker: Reranker) -> None:
    raw = reranker.catalogue.raw_ids
    encoder = CrossEncoder(reranker)
    documents = raw[40:44]
    for query, call in (
        (json.dumps(raw[:2]), {"history": raw[:2]}),
        (json.dumps({"history": raw[:2]}), {"history": raw[:2]}),
        (f"user:{reranker.raw_users[3]}", {"history": None, "user": reranker.raw_users[3]}),
        (reranker.catalogue.titles[7], {"history": [raw[7]]}),
        ("zqxwv", {"history": []}),
        ("[not json", {"history": []}),
    ):
        wanted = reranker.rank(**call, candidates=documents)
        ranked = encoder.rank(query, documents, return_documents=True)
        assert [entry["corpus_id"] for entry in ranked] == list(wanted.order), query
        assert [entry["text"] for entry in ranked] == list(wanted.items)
    assert len(encoder.rank("zqxwv", documents, top_k=2)) == 2
    assert "text" not in encoder.rank("zqxwv", documents)[0]
    assert encoder.rank("zqxwv", []) == []


@pytest.mark.parametrize(
    ("name", "library", "package"),
    [
        ("langchain", "langchain_core", "langchain-core"),
        ("llamaindex", "llama_index", "llama-index-core"),
        ("haystack", "haystack", "haystack-ai"),
    ],
)
def test_a_missing_library_is_one_line(monkeypatch, name, library, package) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"diffgr2.integrations.{name}", raising=False)
    with pytest.raises(MissingExtraError) as caught:
        importlib.import_module(f"diffgr2.integrations.{name}")
    assert str(caught.value) == f"{package} is not installed: pip install {package}"
