"""Worked examples in Markdown: what the model read, what it decided, what follows from it.

Contract: `worked_examples(found, count)` decodes test lists drawn by the recipe's seed (not picked
by result) with the last model that stands, and gives history, candidates, reasoning and ranking
with item names in bold; where the target was is said at the end of each. Not here: requests from
outside (`diffgr2 rerank`).
"""

from collections.abc import Sequence

import numpy as np

from diffgr2.errors import ArtifactError
from diffgr2.prompts.account import account, bold, kinds_of
from diffgr2.prompts.answers import POLICIES
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.request import Request, item_text
from diffgr2.stages.corpus import Corpus
from diffgr2.stages.standing import Standing
from diffgr2.streams import generator
from diffgr2.types import Trajectory

BLOCK, AR = ("block_rl", "opd", "cft"), ("rl", "sft")
MODELS = dict.fromkeys(BLOCK, "recommended") | dict.fromkeys(AR, "ar")
"""The first one that stands writes the examples, decoded in this way."""

SHOWN = 6  # history items printed


def told(
    corpus: Corpus,
    row: int,
    request: Request,
    trajectory: Trajectory,
    names: Sequence[str],
    kinds: Sequence[str],
) -> tuple[list[int], str, str]:
    """(order, reasoning, what was wrong with the answer) of a decoded list."""
    template, tokens = corpus.template, trajectory.tokens_T.tolist()
    if isinstance(template, Gr2):
        answer = template.parse(tokens, request)
        order = POLICIES[corpus.recipe.decode.repair](answer.order, request.k).tolist()
        state = "" if answer.valid else f" (repaired: {', '.join(answer.failures)})"
        return order, template.english(tokens, request, [bold(name) for name in names]), state
    reading = template.read(tokens, request, trajectory.level_T)
    order = reading.said_order().tolist()
    lists, dataset = corpus.lists["test"], corpus.dataset
    past = dataset.histories.of(int(lists.user_L[row]), int(lists.end_L[row]))
    shown = past[-corpus.recipe.prompt.history :].tolist()
    text = account(
        template.words,
        template.phrases,
        request,
        reading,
        order,
        template.vocab.spec.strengths,
        names,
        [kinds[int(item)] for item in shown],
        [title(corpus, int(item)) for item in shown],
        markdown=True,
    )
    return order, text, "" if reading.complete else " (some candidates were not judged)"


def title(corpus: Corpus, item: int) -> str:
    """What to call an item."""
    catalogue = corpus.dataset.catalogue
    return catalogue.titles[item] or f"item {catalogue.raw_ids[item]}"


def described(
    corpus: Corpus, row: int, request: Request, trajectory: Trajectory, kinds: Sequence[str]
) -> list[str]:
    """One example as lines, without its heading."""
    catalogue, lists = corpus.dataset.catalogue, corpus.lists["test"]
    items, hit = lists.items_LK[row].tolist(), int(lists.hit_L[row])
    names = [title(corpus, item) for item in items]
    history = corpus.dataset.histories.of(int(lists.user_L[row]), int(lists.end_L[row]))[-SHOWN:]
    order, reasoning, state = told(corpus, row, request, trajectory, names, kinds)
    return [
        *("History:", ""),
        *(f"- {item_text(catalogue, item)}" for item in history.tolist()),
        *("", "Candidates, as they came:", ""),
        *(f"{place}. {item_text(catalogue, item)}" for place, item in enumerate(items, 1)),
        *("", "Reasoning:", ""),
        *(f"> {line}".rstrip() for line in reasoning.splitlines()),
        *("", f"Ranking{state}:", ""),
        *(f"{place}. {bold(names[at])} (came {at + 1}.)" for place, at in enumerate(order, 1)),
        "",
        f"Bought next: {bold(names[hit])}, place {hit + 1} before, {order.index(hit) + 1} after. "
        f"{len(trajectory.tokens_T)} tokens in {trajectory.nfe} forwards.",
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
    kinds = kinds_of(found.dataset.catalogue.categories)
    lines = [f"# Worked examples of {name}, model `{stage}`, decoder `{how}`", ""]
    for number, row in enumerate(rows.tolist()):
        user = found.dataset.raw_users[found.lists.user_L[row]]
        lines += [f"## Example {number + 1}: shopper {user}", ""]
        request, trajectory = decoded.requests[number], decoded.trajectories[number]
        lines += described(found.corpus, row, request, trajectory, kinds)
    return "\n".join(lines)
