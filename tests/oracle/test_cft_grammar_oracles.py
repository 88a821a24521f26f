"""Conversion fine-tuning under the grammar: rows are canvases that a decoder meets.

What is given is derived by hand from the template's text, or read from a real writer's first plan.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_cft_oracles import made, meant, task_of

from diffgr2.decode.batch import make_writer
from diffgr2.decode.block import BlockWriter
from diffgr2.decode.settings import DecodeRequest
from diffgr2.stages.cft import Taught
from diffgr2.stages.noisy import NoisyRow
from diffgr2.streams import generator
from support import tiny_stages


def texts_of(task: Any, draws: int = 4) -> list[tuple[int, NoisyRow, Taught]]:
    """Some rows of every output."""
    return [
        (n, *task.row(n, generator("text", n, draw))[::2])
        for n in range(len(task.outputs))
        for draw in range(draws)
    ]


def given_by_hand(task: Any, n: int, length: int) -> list[bool]:
    """Which tokens of output n the `compact` template leaves no choice about, one cite each."""
    request, tokens = task.outputs.request(task.corpus, n), task.outputs.response(n).tolist()
    vocab, marker = task.corpus.vocab, task.corpus.vocab.control["<answer>"]
    citable_KF, known, at, answered = task.corpus.template.citable(request), [], -1, False
    for token in tokens[:length]:
        place = vocab.index_of(token)
        answered |= token == marker
        at = at if place is None or answered else place
        if answered or place is not None:
            known.append(token in (marker, vocab.end_id) or not answered)
        elif vocab.strength_of(token) is not None:
            known.append(False)
        else:
            known.append(not citable_KF[at].any())
    return known


def test_given_tokens_are_never_masked_and_the_canvas_ends_with_the_response():
    task = task_of(free=0.0)
    task.outputs, vocab = tiny_stages.both(), tiny_stages.vocabulary()
    cut = whole = 0
    for n, row, text in texts_of(task):
        response = task.outputs.response(n).tolist()
        length = len(text.tokens_R)
        assert not text.free
        assert text.padding == 0
        assert row.response_R.tolist() == response[:length]
        assert text.known_R.tolist() == given_by_hand(task, n, length)
        assert not row.masked_CR[:, text.known_R].any()
        if length < len(response):  # ends with the last strength, as decoding of a said answer does
            assert not task.outputs.direct_N[n]
            assert response[length] == vocab.control["<answer>"]
            cut += 1
        else:
            whole += not task.outputs.direct_N[n]
    assert cut / (cut + whole) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("origin", ["document", "response"])
def test_a_fully_masked_row_is_the_canvas_that_the_decoder_asks_about_first(origin):
    contract = tiny_stages.contract_of(origin=origin)
    row_of_canvas = {"free": 0.0, "fully_masked": 1.0, "random_origin": False}
    task, _ = tiny_stages.cft_task(contract=contract, **row_of_canvas)
    task.outputs, corpus = tiny_stages.both(), task.corpus
    settings = corpus.settings(contract, decoder="block")
    for n, row, text in texts_of(task, 1):
        prompt, direct = task.outputs.prompt(corpus, n), bool(task.outputs.direct_N[n])
        cut = len(text.tokens_R) < task.outputs.length_N[n]
        answer = "said" if cut else task.outputs.answer(n)
        request = task.outputs.request(corpus, n)
        grammar = corpus.template.grammar(request, reasoning=not direct, answer=answer)
        writer = make_writer(0, DecodeRequest(prompt, grammar), settings)
        assert isinstance(writer, BlockWriter)
        canvas = writer.plan().ids[writer.start - writer._fed :]
        noisy = row.ids()[len(prompt) + len(row.response_R) :][: len(row.response_R)]
        assert noisy[writer.start : writer.end].tolist() == canvas
        assert (row.blocks[: writer.start] < row.blocks[writer.start]).all()


def test_strengths_are_taught_as_the_level_that_was_expected():
    """On average over the two levels beside it, whatever level was written."""
    task, vocab = task_of("causal", hesitate=0.0, displaced=0.0), tiny_stages.vocabulary()
    level_NT = task.outputs.level_NT
    jitter_NT = generator("jitter").uniform(-0.45, 0.45, level_NT.shape)
    soft_NT = np.clip(level_NT + jitter_NT, 0, vocab.spec.strengths - 1).astype(np.float32)
    task.outputs = replace(task.outputs, level_NT=soft_NT)
    numbers = list(range(12))
    rows, _, micro = made(task, 1, numbers)
    between = 0
    for (b, _, _, at), token, other, share in zip(
        meant(task, rows, micro),
        *(part.tolist() for part in (micro.target_N, micro.other_N, micro.share_N)),
        strict=True,
    ):
        low, high = vocab.strength_of(token), vocab.strength_of(other)
        if low is None:
            assert share == 0.0
            assert token == rows[b].response_R[at]
            continue
        assert high == low + 1
        assert 0 <= share <= 1
        mean = (1 - share) * low + share * high
        assert mean == pytest.approx(soft_NT[numbers[b], at], abs=1e-5)
        between += 0 < share < 1
    assert between > 40


def test_free_rows_are_what_the_plain_rule_meets():
    """Nothing given, the whole answer, its end, padding to the block's end, all supervised."""
    task, vocab = task_of("causal", free=1.0, displaced=0.0, settled=0.0), tiny_stages.vocabulary()
    task.outputs = tiny_stages.both()
    for n, row, text in texts_of(task):
        # A prompt has one ending; what was asked for another one is no row without a grammar.
        assert text.free == (task.outputs.answer(n) == "written")
        if not text.free:
            continue
        assert text.tokens_R[: text.length].tolist() == task.outputs.response(n).tolist()
        assert not text.known_R.any()
        assert text.tokens_R[text.length - 1] == vocab.end_id
        assert (text.tokens_R[text.length :] == vocab.pad_id).all()
        assert 0 <= text.padding < tiny_stages.BLOCK
        end = len(row.prompt) + len(row.response_R) + row.shift
        assert end % tiny_stages.BLOCK == 0
        assert (row.masked_CR[0] ^ row.masked_CR[1]).all()


def test_a_displaced_candidate_is_seen_by_all_and_no_target():
    """The others keep their order and are supervised once per pair, as is all else."""
    task, vocab = task_of("causal", free=1.0, displaced=1.0, settled=0.0), tiny_stages.vocabulary()
    task.outputs = tiny_stages.both()
    moved = 0
    for n, row, text in texts_of(task):
        response = task.outputs.response(n)
        if not text.free:
            assert text.wrong is None
            continue
        moved += 1
        at, marker = text.wrong, response.tolist().index(vocab.control["<answer>"])
        assert at is not None
        assert marker < at < len(response) - 1
        shown, order = text.tokens_R[: text.length], response[marker + 1 : -1].tolist()
        order.remove(shown[at])
        assert np.delete(shown, at)[marker + 1 : -1].tolist() == order
        assert shown[: marker + 1].tolist() == response[: marker + 1].tolist()
        assert shown[at] != response[at]
        assert not row.masked_CR[:, at].any()
        assert (np.delete(row.masked_CR[0] ^ row.masked_CR[1], at)).all()
        assert np.flatnonzero(text.weights(np.array([0.5, 3.0])) == 0).tolist() == [at]
    assert moved


def test_no_loss_comes_from_where_the_displaced_candidate_stands():
    task = task_of("causal", free=1.0, displaced=1.0, settled=0.0)
    task.outputs = tiny_stages.both()
    n = next(n for n in range(len(task.outputs)) if task.outputs.answer(n) == "written")
    micro = task._micro(1, [(0, n)])
    row, _, text = task.row(n, generator(task.seed, task.name, 1, 0))
    assert text.wrong is not None
    place = int(row.clean_places(np.array([text.wrong]))[0])
    silent_N = micro.weight_N == 0
    assert micro.index_N[silent_N].tolist() == [place]


def test_a_settled_row_shows_its_reasoning_and_then_the_reverse():
    task = task_of("causal", free=1.0, displaced=0.0, settled=1.0)
    task.outputs = tiny_stages.both()
    for _, row, text in texts_of(task):
        if not len(text.order_K):
            continue
        first = int(text.order_K[0])
        assert not row.masked_CR[0, :first].any()
        assert row.masked_CR[1, :first].all()
        assert (row.masked_CR[0] ^ row.masked_CR[1]).all()


def test_an_order_wavers_to_the_share_of_strengths_that_are_not_said_yet():
    """Between a candidate and who stands next to it; not with a displaced one, nor when direct."""
    vocab = tiny_stages.vocabulary()
    task = task_of("causal", free=1.0, displaced=0.5, hesitate=0.4)
    task.outputs = tiny_stages.both()
    seen = 0
    for _, row, text in texts_of(task):
        at_N, next_N, share_CN = text.hesitant(row.masked_CR, 0.4)
        levels = [vocab.strength_of(t) is not None for t in text.tokens_R.tolist()]
        order = [r for r in text.order_K.tolist() if r != text.wrong]
        if not text.free or not any(levels) or len(order) < 2:
            assert not len(at_N)
            continue
        seen += 1
        assert at_N.tolist() == order
        for place, (at, other) in enumerate(zip(at_N, next_N, strict=True)):
            beside = order[place + 1] if place + 1 < len(order) else order[place - 1]
            assert other == text.tokens_R[beside] != text.tokens_R[at]
        for masked_R, share_N in zip(row.masked_CR, share_CN, strict=True):
            hidden = sum(map(bool, masked_R[levels])) / sum(levels)
            assert share_N.tolist() == pytest.approx([0.4 * hidden] * len(order))
    assert seen
