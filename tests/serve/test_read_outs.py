"""Said and written answers: any length, views, decisions, and texts that follow from them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from diffgr2.errors import ConfigError
from diffgr2.evaluate.coherence import Shown, contradictions
from diffgr2.rerank.readout import ReadOut, dealt
from diffgr2.rerank.reranker import Reranker
from diffgr2.rerank.result import RankResult
from diffgr2.rerank.task import RankTask
from support import bundles

DECODERS = ("ar", "block", "verify")


def ranked(reranker: Reranker, n: int, first: int = 30, **options) -> RankResult:
    raw = reranker.catalogue.raw_ids
    return reranker.rank(raw[:3], raw[first : first + n], **options)


def taken(reranker: Reranker, n: int, decode: dict) -> RankTask:
    raw = reranker.catalogue.raw_ids
    task = reranker.prepare(raw[:3], raw[30 : 30 + n], decode=decode)
    reranker.run([task])
    return task


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 12, 25])
def test_every_length_is_ranked_by_the_model(reranker: Reranker, decoder: str, n: int) -> None:
    result = ranked(reranker, n, decode={"decoder": decoder}, return_reasoning=True)
    assert sorted(result.order) == list(range(n))
    assert result.valid
    assert (result.repaired, result.fallback) == (False, False)
    assert result.failures == ()
    assert all(a > b for a, b in itertools.pairwise(result.scores))
    assert sum(result.scores) == pytest.approx(1.0)
    assert result.decode["windows"] == (0 if n == 1 else -(-n // reranker.k_max))
    if n == 1:
        assert (result.scores, result.sure, result.levels) == ((1.0,), 1.0, (None,))
        assert result.decode["forwards"] == 0
    else:
        assert list(result.levels) == sorted(result.levels, reverse=True)  # type: ignore[type-var]


def test_windows_compare_because_evidence_is_of_the_whole_list(reranker: Reranker) -> None:
    task = taken(reranker, 13, {})
    whole = task.whole.buckets_KF
    assert len(task.parts) == 3
    for part, places in zip(task.parts, dealt(np.arange(13), reranker.k_max), strict=True):
        np.testing.assert_array_equal(part.places, places)
        np.testing.assert_array_equal(part.request.buckets_KF, whole[places])


def test_windows_may_come_back_in_any_order(reranker: Reranker) -> None:
    raw = reranker.catalogue.raw_ids
    wanted = taken(reranker, 13, {"views": 2})
    task = reranker.prepare(raw[:3], raw[30:43], decode={"views": 2})
    numbers = [number for number, _ in task.pending()]
    assert numbers == list(range(6))
    assert task.pending() == []
    for number in reversed(numbers):
        assert not task.complete
        trajectory = wanted.parts[number].trajectory
        assert trajectory is not None
        task.take(number, trajectory)
    assert task.complete
    assert task.result().order == wanted.result().order


def test_written_windows_come_one_by_one(reranker: Reranker) -> None:
    raw = reranker.catalogue.raw_ids
    task = reranker.prepare(raw[:3], raw[30:43], decode={"answer": "written"})
    ((first, _),) = task.pending()
    assert first == 0
    assert task.pending() == []
    reranker_runs = taken(reranker, 13, {"answer": "written"})
    trajectory = reranker_runs.parts[0].trajectory
    assert trajectory is not None
    task.take(0, trajectory)
    assert [number for number, _ in task.pending()] == [1]


def test_one_view_is_the_list_as_it_came_and_more_are_averaged(reranker: Reranker) -> None:
    one, two = taken(reranker, 5, {}), taken(reranker, 5, {"views": 3})
    np.testing.assert_array_equal(one.parts[0].places, two.parts[0].places)
    assert {tuple(sorted(part.places.tolist())) for part in two.parts} == {tuple(range(5))}
    assert len({tuple(part.places.tolist()) for part in two.parts}) > 1
    levels_VK = []
    for part in two.parts:
        assert part.trajectory is not None
        tokens = part.trajectory.tokens_T.tolist()
        reading = reranker.template.read(tokens, part.request, part.trajectory.level_T)
        levels_VK.append(reading.restored(part.places).levels_K)
    np.testing.assert_allclose(two.reading.levels_K, np.mean(levels_VK, axis=0), rtol=1e-6)
    assert two.reading.cites == one.reading.cites


def test_the_written_order_is_repaired_and_its_scores_are_ranks(reranker: Reranker) -> None:
    result = ranked(reranker, 4, decode={"answer": "written", "decoder": "ar"})
    assert result.scores == (1.0, 0.75, 0.5, 0.25)
    assert result.sure is None
    assert result.ranking()["sure"] is None
    with pytest.raises(ConfigError, match=r"decode\.views: a written answer has one view"):
        ranked(reranker, 4, decode={"answer": "written", "views": 2})


def test_a_written_answer_needs_no_scale(reranker: Reranker, monkeypatch) -> None:
    """Bundles whose model states no strengths have none."""
    monkeypatch.setattr(reranker, "scales", {})
    result = ranked(reranker, 4, decode={"answer": "written"})
    assert (result.scores, result.sure) == ((1.0, 0.75, 0.5, 0.25), None)


def test_a_model_without_permutations_says_so(run_dir: Path, tmp_path: Path) -> None:
    bundle = bundles.copy_of(run_dir / "bundle", tmp_path / "bundle")

    def change(note: dict) -> None:
        note["recipe"]["prompt"]["answer"] = "said"

    bundles.edit_json(bundle / "diffgr2.json", change)
    said = Reranker.from_pretrained(bundles.seal(bundle))
    assert said.answers == ("said",)
    assert said.ways().read_out == ReadOut("said", 1)
    with pytest.raises(ConfigError, match=r"decode\.answer: this model was not trained"):
        ranked(said, 4, decode={"answer": "written"})


def test_what_is_cut_comes_last_in_the_order_it_came(reranker: Reranker) -> None:
    width = 2 + reranker.recipe.prompt.cites
    cut = {"decoder": "ar", "max_tokens": 2 * width}
    result = ranked(reranker, 5, decode=cut, return_reasoning=True)
    assert (result.valid, result.repaired, result.fallback) == (False, True, False)
    assert result.failures == ("overlong",)
    assert sorted(result.order[:2]) == [0, 1]
    assert result.order[2:] == (2, 3, 4)
    assert result.levels[2:] == (None, None, None)
    nothing = ranked(reranker, 5, decode={"decoder": "ar", "max_tokens": 1})
    assert (nothing.fallback, nothing.order) == (True, (0, 1, 2, 3, 4))


def test_decisions_have_probabilities(reranker: Reranker) -> None:
    spec = reranker.vocab.spec
    result = ranked(reranker, 4, decode={"details": True, "decoder": "ar"})
    assert ranked(reranker, 4).decisions is None
    assert result.decisions is not None
    for level, decision in zip(result.levels, result.decisions, strict=True):
        assert len(decision.strengths) == spec.strengths
        assert sum(decision.strengths) == pytest.approx(1.0, abs=1e-4)
        assert np.dot(decision.strengths, np.arange(spec.strengths)) == pytest.approx(
            level, abs=1e-3
        )
        assert len(decision.evidence) == reranker.recipe.prompt.cites
        for place in decision.evidence:
            assert sum(piece.probability for piece in place) == pytest.approx(1.0, abs=1e-4)
            for piece in place:
                assert (piece.field is None) or (piece.field in spec.fields and piece.side)


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("n", [2, 5, 14])
def test_no_text_contradicts_the_ranking(reranker: Reranker, n: int, views: int) -> None:
    for first in (30, 60, 90):
        raw = reranker.catalogue.raw_ids
        task = reranker.prepare(raw[:3], raw[first : first + n], decode={"views": views})
        reranker.run([task])
        text, items = task.english(), task.query.candidates
        shown = task.query.history[-reranker.recipe.prompt.history :]
        told = Shown(
            task.whole,
            task.reading,
            task.order.tolist(),
            text,
            [],
            [reranker.names.title(item) for item in items],
            [reranker.kind(item) for item in shown],
            [reranker.names.title(item) for item in shown],
        )
        assert contradictions(reranker.template, told) == ()


def test_reasoning_names_first_and_second(reranker: Reranker) -> None:
    titles = reranker.catalogue.titles
    for first in range(40, 48):
        result = ranked(reranker, 4, first, return_reasoning=True)
        verdict = (result.reasoning or "").splitlines()[1]
        best, second = (titles[first + place] for place in result.order[:2])
        assert verdict.index(best) < verdict.rindex(second)
        assert "<" not in (result.reasoning or "")
        marked = ranked(reranker, 4, first, return_reasoning="markdown").reasoning or ""
        assert marked.count("**") >= 4
        assert marked.replace("**", "") != marked
    assert ranked(reranker, 4).reasoning is None
