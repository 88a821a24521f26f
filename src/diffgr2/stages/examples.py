"""Worked examples in English: what the model read, what it thought, what it answered.

Contract: `worked_examples(found, count)` decodes test lists drawn by the recipe's seed (not picked
by result) with the last model that stands, and gives history, candidates, reasoning and ranking as
Markdown; where the target was is said at the end of each. Not here: requests from outside
(`diffgr2 rerank`).
"""

import numpy as np

from diffgr2.errors import ArtifactError
from diffgr2.prompts.answers import POLICIES
from diffgr2.prompts.request import Request, item_text
from diffgr2.rerank.world import group_labels
from diffgr2.stages.corpus import Corpus
from diffgr2.stages.standing import Standing
from diffgr2.streams import generator
from diffgr2.types import Trajectory

BLOCK, AR = ("block_rl", "opd", "cft"), ("rl", "sft")
MODELS = dict.fromkeys(BLOCK, "recommended") | dict.fromkeys(AR, "ar")
"""The first one that stands writes the examples, decoded in this way."""

SHOWN = 6  # history items printed


def described(corpus: Corpus, row: int, request: Request, trajectory: Trajectory) -> list[str]:
    """One example as lines, without its heading."""
    catalogue, lists = corpus.dataset.catalogue, corpus.lists["test"]
    tokens, items = trajectory.tokens_T.tolist(), lists.items_LK[row].tolist()
    answer = corpus.template.parse(tokens, request)
    order = POLICIES[corpus.recipe.decode.repair](answer.order, request.k)
    names = [catalogue.titles[item] or f"item {catalogue.raw_ids[item]}" for item in items]
    history = corpus.dataset.histories.of(int(lists.user_L[row]), int(lists.end_L[row]))[-SHOWN:]
    labels = group_labels(corpus.sids, catalogue)
    reasoning = corpus.template.english(tokens, request, names, labels)
    state = "" if answer.valid else f" (repaired: {', '.join(answer.failures)})"
    hit = int(lists.hit_L[row])
    return [
        *("History:", ""),
        *(f"- {item_text(catalogue, item)}" for item in history.tolist()),
        *("", "Candidates, as they came:", ""),
        *(f"{place}. {item_text(catalogue, item)}" for place, item in enumerate(items, 1)),
        *("", "Reasoning:", ""),
        *(f"> {line}" for line in reasoning.splitlines()),
        *("", f"Ranking{state}:", ""),
        *(f"{place}. {names[at]} (came {at + 1}.)" for place, at in enumerate(order, 1)),
        "",
        f"Bought next: {names[hit]}, place {hit + 1} before, {list(order).index(hit) + 1} after. "
        f"{len(tokens)} tokens in {trajectory.nfe} forwards.",
        "",
    ]


def worked_examples(found: Standing, count: int) -> str:
    """Markdown of `count` examples."""
    stage = found.last(tuple(MODELS))
    if stage is None:
        raise ArtifactError(f"{found.root}: no model stands yet (run: diffgr2 sft RECIPE)")
    hits = np.flatnonzero(found.lists.hit_L >= 0)
    rng = generator(found.recipe.seed, "examples")
    rows = np.sort(rng.choice(hits, min(count, len(hits)), replace=False))
    decoded = found.decoded(stage, rows, MODELS[stage])
    name, how = found.recipe.name, MODELS[stage]
    lines = [f"# Worked examples of {name}, model `{stage}`, decoder `{how}`", ""]
    for number, row in enumerate(rows.tolist()):
        user = found.dataset.raw_users[found.lists.user_L[row]]
        lines += [f"## Example {number + 1}: shopper {user}", ""]
        request, trajectory = decoded.requests[number], decoded.trajectories[number]
        lines += described(found.corpus, row, request, trajectory)
    return "\n".join(lines)
