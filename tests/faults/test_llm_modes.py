"""Plain, targeted and rejection: which of an endpoint's answers teach, and what they cost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from diffgr2.traces.llm import TracePrompt
from support.endpoint import (
    Endpoint,
    K,
    chat_body,
    figures,
    http,
    ordered,
    parse,
    prompt,
    run,
    samples,
)

pytest.importorskip("openai")


def test_rejection_keeps_the_first_sample_that_ranks_the_target_first_and_pays_no_more(tmp_path):
    answers = samples(ordered(1), "nonsense", "order: 2 2 0 1", ordered(2), ordered(3))
    with Endpoint(answers) as endpoint:
        prompts = [prompt(i, target) for i, target in enumerate([1, 2, 3, 0])]
        report = run(endpoint, tmp_path, prompts, n=4, price_in=2.0, price_out=10.0)
    assert [(t.id, t.sample, t.answer.order[0]) for t in report.accepted] == [
        ("p0", 0, 1),
        ("p1", 3, 2),
    ]
    assert endpoint.tries == {f"question {i}": n for i, n in enumerate([1, 4, 4, 4])}
    assert figures(report, "samples", "calls") == (13, 13)
    assert report.rejected == {"not_accepted": 3 + 2, "unparseable": 3, "missing": 3}
    assert report.metrics["cost"] == pytest.approx((13 * 10 * 2.0 + 13 * 3 * 10.0) / 1e6)
    assert figures(report, "rejected/missing", "accepted", "acceptance_rate") == (3, 2, 0.5)
    json.dumps(report.metrics, allow_nan=False)


@pytest.mark.parametrize("honours_n", [True, False])
@pytest.mark.parametrize("wave", [1, 2, 3, 5])
def test_the_accepted_sample_does_not_depend_on_waves_or_on_servers_that_ignore_n(
    tmp_path, wave, honours_n
):
    texts = [ordered(i) for i in (1, 2, 3, 0, 1)]
    given = Counter()

    def answer(question: str, request: dict[str, Any], tries: int) -> bytes:
        n = request["n"] if honours_n else 1
        given[question] += n
        return http(200, chat_body(texts[given[question] - n : given[question]]))

    with Endpoint(answer) as endpoint:
        prompts = [prompt(i, i) for i in range(K)]
        report = run(endpoint, tmp_path, prompts, n=5, wave=wave)
    assert [t.sample for t in report.accepted] == [3, 0, 1, 2]
    step = wave if honours_n else 1
    assert given == {
        f"question {i}": min(-(-need // step) * step, 5) for i, need in enumerate([4, 1, 2, 3])
    }
    assert report.metrics["samples"] == given.total()
    assert report.metrics["completion_tokens"] == 3 * given.total()
    assert report.metrics["prompt_tokens"] == 10 * len(endpoint.requests)


def test_without_a_target_any_permutation_will_do_and_with_one_only_its_own(tmp_path):
    with Endpoint(samples("nonsense", ordered(1))) as endpoint:
        plain = run(endpoint, tmp_path, [prompt(0)], n=2)
        targeted = run(endpoint, tmp_path, [prompt(0, 2)], n=2)
        assert len(endpoint.requests) == 2  # the same question: nothing is asked again
    assert [t.sample for t in plain.accepted] == [1]
    assert targeted.accepted == []
    assert targeted.rejected == {"unparseable": 1, "not_accepted": 1}


def test_equal_questions_share_their_answers(tmp_path):
    with Endpoint(samples(ordered(1), ordered(2))) as endpoint:
        twins = [
            TracePrompt(f"twin{i}", prompt(0).messages, parse, target)
            for i, target in enumerate([1, 2, 1, 2])
        ]
        report = run(endpoint, tmp_path, twins, concurrency=4)
    assert [(t.id, t.sample) for t in report.accepted] == [
        ("twin0", 0),
        ("twin1", 1),
        ("twin2", 0),
        ("twin3", 1),
    ]
    assert len(endpoint.requests) == report.metrics["samples"] == 2


def test_a_larger_n_continues_where_the_smaller_one_ended(tmp_path):
    with Endpoint(samples(ordered(1), ordered(2), ordered(3))) as endpoint:
        assert run(endpoint, tmp_path, [prompt(0, 3)], n=2).accepted == []
        report = run(endpoint, tmp_path, [prompt(0, 3)], n=3)
        assert len(endpoint.requests) == 3
    assert [t.sample for t in report.accepted] == [2]


def test_without_temperature_a_prompt_is_asked_once(tmp_path):
    with Endpoint(samples("nonsense")) as endpoint:
        report = run(endpoint, tmp_path, [prompt(0)], temperature=0.0)
        assert len(endpoint.requests) == 1
    assert report.rejected == {"unparseable": 1}


def test_cut_off_answers_are_paid_but_never_accepted(tmp_path):
    def answer(question: str, request: dict[str, Any], tries: int) -> bytes:
        return http(200, chat_body([ordered(0)], "length" if tries == 1 else "stop", usage=False))

    with Endpoint(answer) as endpoint:
        report = run(endpoint, tmp_path, [prompt(0)])
    assert [t.sample for t in report.accepted] == [1]
    assert report.rejected == {"finish_length": 1}
    assert figures(report, "unmetered", "prompt_tokens", "calls") == (2, 0, 2)


def test_a_null_text_is_a_sample_that_does_not_parse(tmp_path):
    body = json.loads(chat_body([""]))
    body["choices"][0]["message"]["content"] = None
    with Endpoint(lambda *_: http(200, json.dumps(body).encode())) as endpoint:
        report = run(endpoint, tmp_path, [prompt(0)], n=2)
    assert (report.metrics["samples"], report.rejected) == (2, {"unparseable": 2})


def test_an_answer_without_reasoning_teaches_nothing(tmp_path):
    silent = replace(prompt(0), parse=lambda text: replace(parse(text), reasoning=""))
    with Endpoint(samples(ordered(0))) as endpoint:
        report = run(endpoint, tmp_path, [silent], n=2)
    assert (report.accepted, report.rejected) == ([], {"not_accepted": 2})
