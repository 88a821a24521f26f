"""Requests that say little: what nothing is known of is not told as "never", and not guessed at."""

from __future__ import annotations

import numpy as np
import pytest

from diffgr2 import Reranker
from diffgr2.candidates.fields import COUNTED, OF_NEWEST, PAIRED, SOLD, names_of
from diffgr2.prompts.request import MISSING
from diffgr2.rerank.gaps import unknown

NAMES = names_of(COUNTED)
COUNTS = {*PAIRED, *SOLD}


@pytest.fixture(scope="module")
def reranker(run_dir) -> Reranker:
    return Reranker.from_pretrained(run_dir / "bundle")


@pytest.mark.parametrize("decoder", ["ar", "block", "verify"])
@pytest.mark.parametrize("views", [1, 3])
def test_without_history_the_list_stays_as_it_came(reranker, decoder, views) -> None:
    raw = reranker.catalogue.raw_ids[4:11]
    given = {"decoder": decoder, "views": views}
    result = reranker.rank([], raw, decode=given, return_reasoning=True)
    assert result.items == tuple(raw)
    assert result.sure is None
    assert result.trajectories == ()
    assert result.reasoning == "No earlier purchases to go by. The list stays in the shop's order."
    assert list(result.scores) == sorted(result.scores, reverse=True)
    assert len(set(result.scores)) == len(raw)


def test_a_stranger_is_not_told_to_be_unloved(reranker) -> None:
    raw = reranker.catalogue.raw_ids
    stranger = {"title": f"{reranker.catalogue.titles[3]} and more"}
    task = reranker.prepare(raw[:2], [raw[5], stranger])
    known_F, strange_F = task.whole.buckets_KF
    assert (known_F != MISSING).all()
    names = names_of(reranker.fields)
    lost = {names[f] for f in np.flatnonzero(strange_F == MISSING)}
    assert lost == ({*COUNTS, "brand", "category", "range"} & {*names})


def test_words_alone_are_no_purchases(reranker) -> None:
    raw, words = reranker.catalogue.raw_ids, reranker.catalogue.titles[3] + " or so"
    task = reranker.prepare([words], raw[5:8])
    names = names_of(reranker.fields)
    lost = {names[f] for f in np.flatnonzero((task.whole.buckets_KF == MISSING).all(0))}
    assert lost == ({*COUNTS, "brand", "category"} & {*names}) - {"buyers"}


def test_what_the_newest_purchase_would_tell_is_lost_with_it(reranker) -> None:
    raw = reranker.catalogue.raw_ids
    past = reranker.names.resolve([raw[0], {"title": "rose water", "brand": "x"}], "history")
    shown = reranker.names.resolve(raw[5:7], "candidates")
    lost_KF = unknown(past, shown, NAMES)
    assert {NAMES[f] for f in np.flatnonzero(lost_KF.all(0))} == {
        *OF_NEWEST,
        *("fresh", "trend"),
    }
    assert not unknown(past[:1], shown, NAMES).any()
