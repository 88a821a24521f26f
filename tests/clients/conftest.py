"""A server in the main environment, called from the clients' environment (`make test-clients`).

`DIFFGR2_CLIENTS_URL` names a running server; without it these tests skip. `serve.py` starts one.
"""

from __future__ import annotations

import json
import os
import urllib.request
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Service:
    """Where the server is and what can be asked of it."""

    url: str
    model: str
    documents: list[str]
    history: list[str]

    def ask(self, body: dict) -> dict:
        """A plain request, the truth that clients are compared with."""
        request = urllib.request.Request(
            self.url + "/v1/rerank",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    @property
    def query(self) -> str:
        return json.dumps({"history": self.history})

    def order(self) -> list[int]:
        body = {"history": self.history, "documents": self.documents}
        return [entry["index"] for entry in self.ask(body)["results"]]


@pytest.fixture(scope="session")
def service() -> Service:
    url = os.environ.get("DIFFGR2_CLIENTS_URL")
    if not url:
        pytest.skip("DIFFGR2_CLIENTS_URL names no server (make test-clients starts one)")
    with urllib.request.urlopen(url + "/openapi.json", timeout=60) as answer:
        spec = json.load(answer)
    content = spec["paths"]["/v1/rerank"]["post"]["requestBody"]["content"]["application/json"]
    example = content["examples"]["ids"]["value"]
    with urllib.request.urlopen(url + "/v1/models", timeout=60) as answer:
        model = json.load(answer)["data"][0]["id"]
    return Service(url, model, example["documents"], example["history"])
