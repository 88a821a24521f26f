"""A run that starts from a bundle keeps its vocabulary, its semantic IDs and its weights."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from diffgr2 import Reranker, cli
from diffgr2.artifacts import read_json
from diffgr2.choices import SHOWN
from diffgr2.config import Recipe
from diffgr2.data.store import read_dataset
from diffgr2.errors import Diffgr2Error
from diffgr2.items.sids import SemanticIds
from diffgr2.pipeline import Runner
from diffgr2.progress import Progress
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.recipe import load_recipe, validate
from diffgr2.stages import warm
from diffgr2.stages.plan import STAGES
from diffgr2.stages.reasons import reasons
from support import micro_shop
from support.bundles import copy_of, edit_json, seal

MORE = {"n_items": 230, "n_users": 120}


def recipe_of(start: Path | str | None, **changes: object) -> Recipe:
    values = micro_shop.recipe().model_dump(mode="json")
    values |= {"start": None if start is None else str(start), "data": {"shop": MORE}}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values[section], name: value}
    return validate(values, "more")


def runner(recipe: Recipe, root: Path) -> Runner:
    return Runner(recipe, root, STAGES, Progress(io.StringIO()))


@pytest.fixture(scope="module")
def begun(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the bundle it started from, the run's directory) after `midtrain` of no steps."""
    folder = tmp_path_factory.mktemp("warm")
    start = copy_of(run_dir / "bundle", folder / "start")
    runner(recipe_of(start), folder / "run").run(["midtrain"])
    return start, folder / "run"


def test_the_vocabulary_is_the_same_token_for_token(begun: tuple[Path, Path]) -> None:
    start, run = begun
    one, two = Vocabulary.load(start), Vocabulary.load(run / "vocabulary")
    assert one.spec == two.spec
    assert one.names == two.names
    assert one.text_ids("Shampoo, 250 ml") == two.text_ids("Shampoo, 250 ml")


def test_known_items_keep_their_ids_and_new_ones_take_free_ones(begun: tuple[Path, Path]) -> None:
    start, run = begun
    bundle = Reranker.from_pretrained(start)
    of = dict(zip(bundle.catalogue.raw_ids, bundle.sids.codes_IL.tolist(), strict=True))
    catalogue, sids = read_dataset(run / "data").catalogue, SemanticIds.load(run / "items")
    known = [item for item, raw in enumerate(catalogue.raw_ids) if raw in of]
    assert 100 < len(known) < len(catalogue)
    for item in known:
        assert sids.codes_IL[item].tolist() == of[catalogue.raw_ids[item]]
    theirs = {tuple(codes) for codes in of.values()}
    for item in {*range(len(catalogue))} - {*known}:
        assert tuple(sids.codes_IL[item].tolist()) not in theirs, "not one of an item that left"
    report = read_json(run / "items" / "report.json")
    assert report["items"] == len(catalogue)


def test_training_begins_with_the_weights_of_the_bundle(begun: tuple[Path, Path]) -> None:
    start, run = begun
    one, two = load_file(start / "model.safetensors"), load_file(run / "midtrain/model.safetensors")
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert "block_diffusion" not in read_json(run / "midtrain" / "config.json")


def test_another_bundle_outdates_what_read_it_and_only_that(
    begun: tuple[Path, Path], tmp_path: Path
) -> None:
    start, run = begun
    states = runner(recipe_of(start), run).survey(["midtrain"])
    assert set(states.values()) == {"stands"}
    other = copy_of(start, tmp_path / "other")
    one = runner(recipe_of(other), run)
    states = one.survey(["midtrain"])
    assert [name for name, state in states.items() if state == "stands"] == [
        *("data", "retriever", "candidates")
    ]
    assert reasons(one, states)["items"].own == (
        f"{start / 'manifest.json'}: is no longer read",
        f"{other / 'manifest.json'}: is read now",
    )
    alone = runner(recipe_of(None), run)
    assert alone.survey(["items"]) == {"data": "stands", "items": "outdated"}


GAPS = {
    "model__dim": (96, "model.dim is 48 there, 96 here"),
    "model__layers": (3, "model.layers is 2 there, 3 here"),
    "items__levels": (3, "items.levels is 2 there, 3 here"),
    "items__codes": (32, "items.codes is 24 there, 32 here"),
    "candidates__k_max": (8, "candidates.k_max is 6 there, 8 here"),
    "evidence__buckets": (5, "evidence.buckets is 4 there, 5 here"),
    "prompt__strengths": (16, "prompt.strengths is 8 there, 16 here"),
    "prompt__template": ("gr2", "prompt.template is compact there, gr2 here"),
}


@pytest.mark.parametrize("key", GAPS)
def test_shapes_that_do_not_fit_are_one_line_before_anything_runs(
    key: str, run_dir: Path, tmp_path: Path
) -> None:
    value, told = GAPS[key]
    recipe = recipe_of(run_dir / "bundle", **{key: value})
    with pytest.raises(Diffgr2Error) as caught:
        warm.check(recipe, tmp_path / "run")
    line = f"start: {run_dir / 'bundle'} does not fit the recipe: {told}"
    assert str(caught.value) == line


def test_evidence_that_the_recipe_does_not_ask_for_is_one_line_before_anything_runs(
    run_dir: Path, own_dir: Path, tmp_path: Path
) -> None:
    fewer = [name for name in SHOWN if name not in ("last", "next")]
    recipe = recipe_of(run_dir / "bundle", evidence__fields=fewer)
    with pytest.raises(Diffgr2Error, match=r"evidence: last, next is known there, not here$"):
        warm.check(recipe, tmp_path / "run")
    features = {name: {} for name in ("price", "ctr", "badge", "in_stock")}
    lists = {"lists__file": "lists.csv", "candidates__k_max": 6}
    whole = recipe_of(own_dir / "bundle", lists__features=features, **lists)
    assert warm.unfit(whole, own_dir / "bundle") == []
    del features["price"]
    part = recipe_of(own_dir / "bundle", lists__features=features, **lists)
    told = "evidence: price is known there, not here (name price in lists.features)"
    assert warm.unfit(part, own_dir / "bundle") == [told]


def test_what_cannot_be_started_from_is_one_line(run_dir: Path, tmp_path: Path) -> None:
    for start, root, told in (
        (tmp_path / "gone", tmp_path / "run", "no such directory"),
        (run_dir / "sft", tmp_path / "run", "is not listed"),
        (run_dir / "bundle", run_dir, "belongs to this run, which would replace it"),
    ):
        if start.is_dir() and start.name == "sft":
            start = shutil.copytree(start, tmp_path / "sft")
        with pytest.raises(Diffgr2Error, match=told) as caught:
            warm.check(recipe_of(start), root)
        assert "\n" not in str(caught.value)
    warm.check(recipe_of(None), run_dir)
    warm.check(recipe_of(run_dir / "bundle"), tmp_path / "run")


def test_other_evidence_is_refused(run_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_of(run_dir / "bundle")
    with pytest.raises(
        Diffgr2Error, match=r"^start: .* knows evidence that this data lacks: copurchase, .*"
    ):
        warm.vocabulary(recipe, ("rank", "gap"))
    fields = Vocabulary.load(run_dir / "bundle").spec.fields
    without_scores = tuple(name for name in fields if name != "gap")
    with pytest.raises(
        Diffgr2Error,
        match=r"this data lacks: gap \(`gap` wants scores with the lists\); "
        r"it does not know the evidence price$",
    ):
        warm.vocabulary(recipe, (*without_scores, "price"))
    broken = copy_of(run_dir / "bundle", tmp_path / "broken")
    edit_json(broken / "config.json", lambda config: config.update(hidden_size=47) or config)
    seal(broken)
    with pytest.raises(Diffgr2Error, match=r"model\.dim is 47 there, 48 here"):
        warm.check(recipe_of(broken), tmp_path / "run")


def test_from_is_the_key_start_and_paths_in_a_recipe_begin_with_its_folder(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("start: ../bundles/one\n")
    assert load_recipe(str(recipe)).start == str(tmp_path.parent / "bundles" / "one")
    runs = ["--runs", str(tmp_path / "run")]
    assert cli.run(["run", "micro", "--from", str(run_dir / "bundle"), *runs]) == 2
    told = capsys.readouterr().err
    start = (run_dir / "bundle").resolve()
    assert told.startswith(f"error: start: {start} does not fit the recipe: ")
    assert not (tmp_path / "run").exists()
    assert cli.run(["run", "micro", "--from", str(tmp_path / "gone"), *runs]) == 3
    assert "gone: no such directory" in capsys.readouterr().err
