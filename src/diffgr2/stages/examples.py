"""Worked examples in Markdown: what the model read, what it decided, what follows from it.

Contract: `worked_examples(found, count)` decodes test lists drawn by the recipe's seed (not picked
by result) with the last model that stands, and gives history, candidates, reasoning and ranking
with item names in bold; where the target was is said at the end of each. Not here: requests from
outside (`diffgr2 rerank`).
"""

import numpy as np

from diffgr2.errors import ArtifactError
from diffgr2.prompts.account import bold
from diffgr2.prompts.request import item_text
from diffgr2.stages.corpus import Corpus
from diffgr2.stages.score import Decoded, orders_of, told_of
from diffgr2.stages.standing import Standing
from diffgr2.streams import generator

BLOCK, AR = ("block_rl", "opd", "cft"), ("rl", "sft")
MODELS = dict.fromkeys(BLOCK, "recommended") | dict.fromkeys(AR, "ar")
"""The first one that stands writes the examples, decoded in this way."""


def described(corpus: Corpus, row: int, decoded: Decoded, n: int, order_K: np.ndarray) -> list[str]:
    """The n-th example as lines, without its heading."""
    catalogue, lists = corpus.dataset.catalogue, corpus.judged("test")
    items = lists.items_LK[row, : int(lists.length_L[row])].tolist()
    hit, order = int(lists.hit_L[row]), order_K.tolist()
    # What came of a shop's own list may be less than a purchase.
    own = "" if lists.gains is None else f" (worth {float(lists.gains_LK[row, hit]):g})"
    came = "Wanted most" if own else "Bought next"
    names = [bold(catalogue.titles[i] or f"item {catalogue.raw_ids[i]}") for i in items]
    whole = corpus.dataset.histories.of(int(lists.user_L[row]), int(lists.end_L[row]))
    read = whole[-corpus.recipe.prompt.history :]  # what the reasoning counts in
    last = f", the last {len(read)} of {len(whole)}" if len(read) < len(whole) else ""
    reasoning = told_of(corpus, row, decoded, n, order_K, markdown=True).text
    answer, trajectory = decoded.readings[n].answer(decoded.answer), decoded.trajectories[n]
    state = "" if answer.valid else f" (repaired: {', '.join(answer.failures)})"
    return [
        *(f"History{last}:", ""),
        *(f"- {item_text(catalogue, item)}" for item in read.tolist()),
        *("", "Candidates, as they came:", ""),
        *(f"{place}. {item_text(catalogue, item)}" for place, item in enumerate(items, 1)),
        *("", "Reasoning:", ""),
        *(f"> {line}".rstrip() for line in reasoning.splitlines()),
        *("", f"Ranking{state}:", ""),
        *(f"{place}. {names[at]} (came {at + 1}.)" for place, at in enumerate(order, 1)),
        "",
        f"{came}: {names[hit]}{own}, place {hit + 1} before, {order.index(hit) + 1} after. "
        f"{len(trajectory.tokens_T)} tokens in {trajectory.nfe} "
        f"forward{'s' * (trajectory.nfe != 1)}.",
        "",
    ]


def worked_examples(found: Standing, count: int) -> str:
    """Markdown of `count` examples."""
    stage = found.last(tuple(MODELS))
    if stage is None:
        raise ArtifactError(f"{found.root}: no model stands yet (run: diffgr2 sft RECIPE)")
    hits = np.flatnonzero(found.corpus.judged("test").hit_L >= 0)
    rng = generator(found.recipe.seed, "examples")
    rows = np.sort(rng.choice(hits, min(count, len(hits)), replace=False))
    decoded = found.decoded(stage, rows, MODELS[stage])
    name, how = found.recipe.name, MODELS[stage]
    orders = orders_of(decoded, found.recipe.decode.repair)
    lines = [f"# Worked examples of {name}, model `{stage}`, decoder `{how}`", ""]
    for number, row in enumerate(rows.tolist()):
        user = found.dataset.raw_users[found.lists.user_L[row]]
        lines += [f"## Example {number + 1}: shopper {user}", ""]
        lines += described(found.corpus, row, decoded, number, orders[number])
    return "\n".join(lines)
