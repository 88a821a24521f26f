"""Worked examples in English: what the model read, what it thought, what it answered.

Contract: `worked_examples(runner, count)` decodes test lists drawn by the recipe's seed (not picked
by result) with the last model that stands, and writes history, candidates, reasoning and ranking as
Markdown; where the target was is said at the end of each. Not here: requests from outside
(`diffgr2 rerank`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffgr2.data.store import Dataset
from diffgr2.decode.batch import decode
from diffgr2.errors import ArtifactError
from diffgr2.model.contract import contract_of
from diffgr2.model.forward import LeanQwen3
from diffgr2.model.load import open_model
from diffgr2.pipeline import Runner
from diffgr2.prompts.answers import POLICIES
from diffgr2.prompts.request import item_text
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.plan import CORPUS
from diffgr2.stages.report import collect
from diffgr2.stages.score import requests_for
from diffgr2.streams import generator
from diffgr2.types import Trajectory

MODELS = ("block_rl", "opd", "cft", "rl", "sft")
"""The last one that stands writes the examples; AR models are decoded token by token."""

AR = ("rl", "sft")
SHOWN = 6  # history items printed


@dataclass(frozen=True)
class Pick:
    """One test list and what was decoded for it."""

    row: int
    trajectory: Trajectory


def group_names(corpus: Corpus) -> list[str]:
    """What most items with each first code have in common: their last category."""
    seen: dict[int, Counter[str]] = {}
    categories = corpus.dataset.catalogue.categories
    for item, code in enumerate(corpus.sids.codes_IL[:, 0]):
        if categories[item]:
            seen.setdefault(int(code), Counter())[categories[item][-1]] += 1
    return [
        seen[code].most_common(1)[0][0] if code in seen else f"group {code}"
        for code in range(corpus.recipe.items.codes)
    ]


def title(dataset: Dataset, item: int) -> str:
    """An item's short name."""
    return dataset.catalogue.titles[item] or f"item {dataset.catalogue.raw_ids[item]}"


def described(corpus: Corpus, number: int, pick: Pick) -> list[str]:
    """One example as lines."""
    dataset, lists = corpus.dataset, corpus.lists["test"]
    request = corpus.request("test", pick.row)
    tokens = pick.trajectory.tokens_T.tolist()
    answer = corpus.template.parse(tokens, request)
    order = POLICIES[corpus.recipe.decode.repair](answer.order, request.k)
    names = [title(dataset, int(item)) for item in lists.items_LK[pick.row]]
    user, end = int(lists.user_L[pick.row]), int(lists.end_L[pick.row])
    history = dataset.histories.of(user, end)[-SHOWN:]
    lines = [f"## Example {number}: shopper {dataset.raw_users[user]}", "", "History:", ""]
    lines += [f"- {item_text(dataset.catalogue, int(item))}" for item in history]
    lines += ["", "Candidates, as they came:", ""]
    lines += [
        f"{place}. {item_text(dataset.catalogue, int(item))}"
        for place, item in enumerate(lists.items_LK[pick.row], 1)
    ]
    reasoning = corpus.template.english(tokens, request, names, group_names(corpus))
    lines += ["", "Reasoning:", "", *(f"> {line}" for line in reasoning.splitlines())]
    state = "" if answer.valid else f" (repaired: {', '.join(answer.failures)})"
    lines += ["", f"Ranking{state}:", ""]
    lines += [f"{place}. {names[at]} (came {at + 1}.)" for place, at in enumerate(order, 1)]
    hit = int(lists.hit_L[pick.row])
    after = list(order).index(hit) + 1
    lines += [
        "",
        f"Bought next: {names[hit]}, place {hit + 1} before, {after} after. "
        f"{len(tokens)} tokens in {pick.trajectory.nfe} forwards.",
        "",
    ]
    return lines


def worked_examples(runner: Runner, count: int) -> str:
    """Markdown of `count` examples."""
    found = collect(runner)
    stage = next((name for name in MODELS if name in found.standing), None)
    if stage is None:
        raise ArtifactError(f"{runner.root}: no model stands yet (run: diffgr2 sft RECIPE)")
    directories: dict[str, Path] = {name: runner.directory(name) for name in CORPUS}
    corpus = open_corpus(directories, runner.recipe)
    hits = np.flatnonzero(corpus.lists["test"].hit_L >= 0)
    rng = generator(runner.recipe.seed, "examples")
    rows = np.sort(rng.choice(hits, min(count, len(hits)), replace=False))
    requests, _ = requests_for(corpus, rows, reasoning=True)
    how = "ar" if stage in AR else "recommended"
    settings = corpus.settings(contract_of(runner.directory(stage)), how)
    lean = LeanQwen3(open_model(runner.directory(stage)))
    trajectories = decode(lean, requests, settings, batch=1)
    lines = [f"# Worked examples of {runner.recipe.name}, model `{stage}`, decoder `{how}`", ""]
    for number, (row, trajectory) in enumerate(zip(rows, trajectories, strict=True), 1):
        lines += described(corpus, number, Pick(int(row), trajectory))
    return "\n".join(lines)
