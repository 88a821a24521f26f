"""Distillation: what is asked of the teacher, what is kept, and that it is read back the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from diffgr2.artifacts import save_arrays
from diffgr2.config import DistillConfig
from diffgr2.decode.batch import decode
from diffgr2.prompts.request import Request
from diffgr2.stages.corpus import KNOWN
from diffgr2.stages.distill import FILE, Asked, Outputs, asked, packed
from diffgr2.types import Trajectory
from support import tiny_stages
from support.tiny_corpus import K_MAX


def same(one: Request, other: Request) -> bool:
    return all(np.array_equal(part, vars(other)[name]) for name, part in vars(one).items())


def test_outputs_reload_to_the_same_requests_prompts_and_texts(tmp_path):
    shop, lessons = tiny_stages.corpus(), tiny_stages.lessons() + tiny_stages.lessons(direct=True)
    save_arrays(tmp_path / FILE, **vars(packed(lessons, K_MAX)))
    again = Outputs.load(tmp_path)
    assert len(again) == len(lessons)
    for n, (one, text) in enumerate(lessons):
        assert same(again.request(shop, n), one.shown.request)
        assert again.prompt(shop, n) == one.request(shop).prompt
        assert (again.answer(n), bool(again.direct_N[n])) == (one.answer, one.direct)
        assert again.response(n).tolist() == text.tokens_T.tolist()
        np.testing.assert_array_equal(again.levels(n), text.level_T)
    lengths = {int((places >= 0).sum()) for places in again.places_NK}
    assert len(lengths) > 2, "lists of several lengths"
    assert any(one.shown.hidden.any() for one, _ in lessons), "and some with evidence missing"


def test_lists_are_asked_about_as_the_recipe_says_and_never_those_of_selection_users():
    shop, config = tiny_stages.corpus(), tiny_stages.shown_config(direct=0.5)
    lists = asked(shop, config, 3)
    held = {
        (s, int(row))
        for s, split in enumerate(KNOWN)
        for row in np.flatnonzero(shop.selected(split))
    }
    assert held
    known = {(one.split, one.row) for one in lists}
    assert len(known) == len(lists) == sum(map(len, shop.lists.values())) - len(held)
    assert not known & held
    again, other = asked(shop, config, 3), asked(shop, config, 4)
    assert [a.request(shop).prompt for a in again] == [a.request(shop).prompt for a in lists]
    assert [a.request(shop).prompt for a in other] != [a.request(shop).prompt for a in lists]
    direct = [one for one in lists if one.direct]
    assert 0.2 < len(direct) / len(lists) < 0.8
    # Behind reasoning stands all that is trained; a direct answer is one or the other.
    assert {one.answer for one in lists if not one.direct} == {"written"}
    assert {one.answer for one in direct} == {"said", "written"}
    assert len(asked(shop, DistillConfig(lists=5), 3)) == 5
    prompt = shop.recipe.prompt.model_copy(update={"answer": "said"})
    said = replace(shop, recipe=shop.recipe.model_copy(update={"prompt": prompt}))
    assert {one.answer for one in asked(said, config, 3)} == {"said"}


def test_what_the_teacher_writes_is_valid_and_keeps_the_levels_it_expected():
    """The strength that stands is the level next to the expectation, which is what is learned."""
    shop = tiny_stages.corpus()
    lists = asked(shop, tiny_stages.shown_config(direct=0.4), 1)[:24]
    settings = shop.settings(None, "ar", temperature=0.0, max_tokens=0)
    requests = [one.request(shop) for one in lists]
    texts = decode(tiny_stages.lean(tiny_stages.model("ar")), requests, settings)
    assert all(one.valid(shop, text) for one, text in zip(lists, texts, strict=True))
    kept = packed(list(zip(lists, texts, strict=True)), K_MAX)
    between = 0
    for n in range(len(kept)):
        written = [shop.vocab.strength_of(int(token)) for token in kept.response(n)]
        for level, expected in zip(written, kept.levels(n).tolist(), strict=True):
            assert (level is None) == np.isnan(expected)
            if level is not None:
                assert level == np.floor(expected + 0.5)
                between += abs(expected - level) > 1e-3
    assert between > 10


@pytest.mark.parametrize("answer", ["said", "written"])
def test_a_text_that_does_not_answer_what_was_asked_is_not_valid(answer):
    shop = tiny_stages.corpus()
    whole = [(one, text) for one, text in tiny_stages.lessons(direct=True) if one.answer == answer]
    one, text = whole[0]

    def valid(asked_: Asked, tokens_T: np.ndarray) -> bool:
        nothing_T = np.zeros(len(tokens_T), dtype=np.float32)
        steps_T = nothing_T.astype(np.int32)
        return asked_.valid(shop, Trajectory(tokens_T, steps_T, nothing_T, 1, True))

    assert valid(one, text.tokens_T)
    assert not valid(one, text.tokens_T[:-1])
    assert not valid(one, text.tokens_T[:0])
    other = "written" if answer == "said" else "said"
    assert not valid(replace(one, answer=other), text.tokens_T)
