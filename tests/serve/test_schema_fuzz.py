"""Schemathesis against the server's own description: positive and negative data, no 5xx ever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from support.live import Live, idle

schemathesis = pytest.importorskip("schemathesis", reason="needs the package schemathesis")

SHAPED = {"message", "id", "error"}


def fuzz(live: Live, cases: int) -> None:
    """`cases` requests over all operations, in both modes."""
    from schemathesis import GenerationMode

    with live.client() as client:
        spec = client.get("/openapi.json").json()
        schema = schemathesis.openapi.from_dict(spec)
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) >= 8
        ranking = [o for o in operations if o.path.endswith("rerank")]
        share = -(-cases // (2 * len(ranking)))
        seen: Counter = Counter()
        for operation in operations:
            count = share if operation in ranking else 3
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                except Exception:  # nothing about this operation can be wrong
                    assert operation not in ranking
                    continue

                @settings(
                    max_examples=count,
                    deadline=None,
                    database=None,
                    derandomize=True,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=strategy)
                def one(case) -> None:
                    answer = case.call(base_url=live.url, timeout=60)
                    seen[answer.status_code] += 1
                    assert answer.status_code < 500, (case.body, answer.text)
                    if answer.status_code >= 400:
                        assert answer.json().keys() >= SHAPED, answer.text

                try:
                    one()
                except (schemathesis.errors.SchemathesisError, Unsatisfiable):
                    assert operation not in ranking  # it takes nothing that could be wrong
        print(f"\nschema cases: {sum(seen.values())} {dict(sorted(seen.items()))}")
        assert sum(seen.values()) >= cases
        assert client.get("/health/ready").status_code == 200
    assert idle(live.state)


def test_generated_requests_never_end_in_a_5xx(live: Live) -> None:
    fuzz(live, 60)


@pytest.mark.slow
def test_2000_generated_requests(live: Live) -> None:
    fuzz(live, 2100)
