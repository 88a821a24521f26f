"""Unmodified public clients against the running server: each sees the server's own order."""

from __future__ import annotations

import pytest


def test_cohere_v2(service) -> None:
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key="any", base_url=service.url)
    answer = client.rerank(model=service.model, query=service.query, documents=service.documents)
    assert [entry.index for entry in answer.results] == service.order()
    scores = [entry.relevance_score for entry in answer.results]
    assert scores == sorted(scores, reverse=True)
    assert answer.ranking["valid"] in (True, False)
    top = client.rerank(
        model=service.model,
        query=service.query,
        documents=service.documents,
        top_n=2,
        request_options={"additional_body_parameters": {"return_reasoning": True}},
    )
    assert len(top.results) == 2
    assert "ahead of" in top.reasoning
    assert answer.ranking["sure"] == scores[0]


def test_cohere_v1(service) -> None:
    cohere = pytest.importorskip("cohere")
    client = cohere.Client(api_key="any", base_url=service.url)
    answer = client.rerank(
        model=service.model,
        query=service.query,
        documents=[{"text": text} for text in service.documents],
        return_documents=True,
    )
    assert [entry.index for entry in answer.results] == service.order()
    assert [e.document.text for e in answer.results] == [
        service.documents[index] for index in service.order()
    ]


def test_cohere_errors_are_its_own_kinds(service) -> None:
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key="any", base_url=service.url)
    strict = {"additional_body_parameters": {"strict": True}}
    with pytest.raises(cohere.errors.UnprocessableEntityError) as caught:
        client.rerank(
            model=service.model, query=service.query, documents=["zqxwv"], request_options=strict
        )
    assert "documents[0]" in str(caught.value.body)
    with pytest.raises(cohere.errors.NotFoundError):
        client.rerank(model="other", query=service.query, documents=service.documents)


def test_langchain_cohere(service) -> None:
    module = pytest.importorskip("langchain_cohere")
    documents = pytest.importorskip("langchain_core.documents")
    reranker = module.CohereRerank(
        cohere_api_key="any", base_url=service.url, model=service.model, top_n=3
    )
    given = [documents.Document(page_content=text) for text in service.documents]
    ranked = reranker.compress_documents(given, service.query)
    wanted = [service.documents[index] for index in service.order()[:3]]
    assert [document.page_content for document in ranked] == wanted


def nodes_of(texts):
    schema = pytest.importorskip("llama_index.core.schema")
    return [
        schema.NodeWithScore(node=schema.TextNode(text=text), score=0.5) for text in texts
    ], schema.QueryBundle


def test_llama_index_cohere(service) -> None:
    module = pytest.importorskip("llama_index.postprocessor.cohere_rerank")
    nodes, bundle = nodes_of(service.documents)
    rank = module.CohereRerank(
        api_key="any", base_url=service.url, model=service.model, top_n=len(nodes)
    )
    ranked = rank.postprocess_nodes(nodes, bundle(service.query))
    assert [n.node.text for n in ranked] == [service.documents[i] for i in service.order()]


def test_llama_index_jina(service) -> None:
    module = pytest.importorskip("llama_index.postprocessor.jinaai_rerank")
    nodes, bundle = nodes_of(service.documents)
    rank = module.JinaRerank(
        api_key="any", base_url=service.url + "/v1", model=service.model, top_n=len(nodes)
    )
    ranked = rank.postprocess_nodes(nodes, bundle(service.query))
    assert [n.node.text for n in ranked] == [service.documents[i] for i in service.order()]


@pytest.mark.parametrize(
    ("provider", "path"),
    [
        ("cohere", "/v1/rerank"),
        ("jina", "/v1/rerank"),
        ("text-embeddings-inference", "/rerank"),
    ],
)
def test_rerankers(service, provider: str, path: str) -> None:
    module = pytest.importorskip("rerankers")
    ranker = module.Reranker(
        service.model,
        model_type="APIRanker",
        api_provider=provider,
        api_key="any",
        url=service.url + path,
    )
    answer = ranker.rank(query=service.query, docs=service.documents)
    assert [result.document.text for result in answer.results] == [
        service.documents[index] for index in service.order()
    ]
    scores = [result.score for result in answer.results]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("provider", "base"),
    [
        ("cohere", ""),
        ("cohere", "/v1/rerank"),
        ("jina_ai", "/v1/rerank"),
        ("hosted_vllm", ""),
        ("huggingface", ""),
        ("infinity", ""),
    ],
)
def test_litellm(service, provider: str, base: str) -> None:
    litellm = pytest.importorskip("litellm")
    # Its reader for Infinity takes documents as bare texts, where Cohere, Jina and vLLM answer
    # with objects on the same path: there, it must not ask for documents.
    back = provider != "infinity"
    answer = litellm.rerank(
        model=f"{provider}/{service.model}",
        query=service.query,
        documents=service.documents,
        api_key="any",
        api_base=service.url + base,
        top_n=len(service.documents),
        **({} if back else {"return_documents": False}),  # its default asks for them
    )
    assert [entry["index"] for entry in answer.results] == service.order()
    if back:
        for entry in answer.results:
            if "document" in entry:
                assert entry["document"]["text"] == service.documents[entry["index"]]


def test_openai_lists_models_and_posts(service) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(api_key="any", base_url=service.url + "/v1")
    assert [model.id for model in client.models.list()] == [service.model]
    body = {"history": service.history, "documents": service.documents}
    answer = client.post("/rerank", body=body, cast_to=object)
    assert [entry["index"] for entry in answer["results"]] == service.order()
