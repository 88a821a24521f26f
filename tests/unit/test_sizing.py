"""`diffgr2 plan`: every shipped recipe without its data, advice that holds, and its errors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffgr2.capacity.sheet import clock
from diffgr2.cli import app
from diffgr2.cli.planning import bytes_of
from diffgr2.errors import CheckpointError, ConfigError, Diffgr2Error
from diffgr2.recipe import RECIPES, load_recipe
from diffgr2.stages.sizing import KNOWN, ORDER, Machine, base_sizes, needs
from diffgr2.train.memory import parameters

SHIPPED = [path.stem for path in sorted(RECIPES.glob("*.yaml"))]
BASED = [name for name in SHIPPED if load_recipe(name).model.base]


def planned(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["plan", *words])
    if isinstance(done.exception, Diffgr2Error):
        raise done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_is_planned_without_data_or_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # nothing that the recipe names is here
    recipe = load_recipe(name)
    known = ("--base-config", "qwen3-0.6b") if recipe.model.base else ()
    code, said = planned(name, "--gpus", "2", *known)
    rows = [line.split()[0] for line in said.splitlines() if line.split()[0] in ORDER]
    wanted = [stage for stage in ORDER if getattr(recipe, stage).steps != 0]
    assert rows == wanted
    assert code == 0
    assert "assumed, not measured: 40% of 989 TFLOP/s" in said
    assert said.splitlines()[-1] == "all stages fit"


@pytest.mark.parametrize("name", ["text_smol", "text_gpu", "paper"])
def test_a_recipe_with_a_base_names_one_whose_size_is_known(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "stages fit" in planned(name, "--gpus", "8")[1]


def test_gpus_that_would_have_nothing_to_do_are_told() -> None:
    words = ("text_gpu", "--base-config", "qwen3-0.6b", "--gpus")
    assert "sft: 2 forwards a step for 8 GPUs" in planned(*words, "8")[1]
    assert "forwards a step for" not in planned(*words, "2")[1]


def test_known_bases_are_as_large_as_their_names_say() -> None:
    for name in KNOWN:
        sizes, source = base_sizes(load_recipe("text_gpu"), Path(name))
        assert source == name
        unit = {"b": 1e3, "m": 1}[name[-1]]
        millions = float(name.rpartition("-")[2][:-1]) * unit
        assert parameters(sizes) / 1e6 == pytest.approx(millions, rel=0.05)


def test_the_papers_recipe_fits_its_eight_gpus() -> None:
    code, said = planned("paper", "--gpus", "8", "--base-config", "qwen3-8b")
    assert (code, said.rstrip().splitlines()[-1]) == (0, "all stages fit")


def test_a_stage_that_does_not_fit_is_told_with_keys_that_make_it_fit() -> None:
    asked = ["paper", "--gpus", "8", "--base-config", "qwen3-8b"]
    for change in ("rl.weights=fp32", "cft.checkpoint_activations=false", "block_rl.weights=fp32"):
        asked += ["--set", change]
    code, said = planned(*asked)
    assert code == 1
    told = re.findall(r"^(\w+): [\d.]+ GB do not fit; --set (.+) fits$", said, re.MULTILINE)
    assert told
    for stage, keys in told:
        changes = keys.split()
        _, again = planned(*asked, *(word for c in changes for word in ("--set", c)))
        assert f"\n{stage}: " not in again
        assert all(change.startswith(f"{stage}.") for change in changes)
        for left in changes:  # none of them is needless
            fewer = [word for c in changes if c != left for word in ("--set", c)]
            _, still = planned(*asked, *fewer)
            assert f"\n{stage}: " in still, left


def test_more_gpus_or_a_smaller_base_is_the_last_advice() -> None:
    recipe = load_recipe("paper")
    sizes, _ = base_sizes(recipe, Path("qwen3-8b"))
    alone = {need.stage: need for need in needs(recipe, sizes, Machine(gpus=1))}
    assert re.fullmatch(r"--gpus \d+ fits(, with --set .*)?", alone["sft"].advice())
    tiny = Machine(gpus=1, memory=1e9)
    assert needs(recipe, sizes, tiny)[0].advice().startswith("no key of the stage makes it fit")


def test_recomputing_and_more_gpus_take_less_memory() -> None:
    recipe = load_recipe("text_gpu")
    sizes, _ = base_sizes(recipe, Path("qwen3-1.7b"))
    for need in needs(recipe, sizes, Machine(gpus=2)):
        assert need.recomputed.peak < need.stored.peak
        more = replace(need, machine=Machine(gpus=8))
        assert more.memory.standing < need.memory.standing
        assert more.seconds[0] <= need.seconds[0]
        fine = more.changed(micro_rows=1)
        assert fine.forwards >= 8
        assert fine.seconds[0] < need.seconds[0]
        dense = need.changed(attention="dense")
        assert dense.memory.activations >= need.memory.activations


def test_a_config_is_read_where_there_is_one(tmp_path: Path) -> None:
    values = {**KNOWN["qwen3-0.6b"], "num_hidden_layers": 7}
    (tmp_path / "config.json").write_text(json.dumps(values))
    recipe = load_recipe("text_gpu", [f"model.base={tmp_path}"])
    for given in (None, tmp_path, tmp_path / "config.json"):
        assert base_sizes(recipe, given)[0].layers == 7


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: config.json is not there"):
        planned("text_gpu", "--set", "model.base=nowhere")
    with pytest.raises(ConfigError, match=r"--base-config other: neither a directory"):
        planned("text_gpu", "--base-config", "other")
    for text in ("", "GB", "-1GB", "80TB", "nan", "inf"):
        with pytest.raises(ConfigError, match=r"--gpu-memory"):
            bytes_of(text)


def test_sizes_and_times_in_words() -> None:
    assert bytes_of("80GB") == bytes_of("80") == 80e9
    assert bytes_of("1.5 GiB") == 1.5 * 2**30
    assert [clock(s) for s in (0.02, 40, 720, 12_600)] == ["< 1 s", "40 s", "12 min", "3.5 h"]
