"""What `diffgr2 data check` says of a shop's own lists.

Contract: `told(recipe)` reads the recipe's files as the data stage would, keeps nothing, and gives
lines for people: how the file was read, how long lists are, what came of them, what each feature's
column holds, whose histories there are, what was put aside and why, how the lists are split, and
what the shop's own order reaches, with intervals. Not here: the recipe (`init` writes one).
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.candidates.own_split import SPLITS, own_split, parts_of
from diffgr2.config import Recipe
from diffgr2.data.own_lists import import_own
from diffgr2.data.own_store import OwnLists
from diffgr2.errors import DataError
from diffgr2.evaluate.baselines import floor_order
from diffgr2.evaluate.metrics import METRICS, metrics_of
from diffgr2.evaluate.significance import bootstrap_means, interval
from diffgr2.types import CandidateLists

FLOOR = ("r@1", "ndcg@10")
RESAMPLES = 2_000
REASONS = 8  # that are told, the commonest first
WORDS = 5  # of a category


def told(recipe: Recipe) -> Iterator[str]:
    """See the module's docstring."""
    with tempfile.TemporaryDirectory() as folder:
        quarantine = Path(folder) / "quarantine.jsonl"
        dataset, own = import_own(recipe.data, recipe.lists, recipe.seed, quarantine)
        lines = quarantine.read_text("ascii").splitlines() if quarantine.exists() else []
    aside = [json.loads(line) for line in lines]
    facts = dataset.report
    yield from _file(recipe, facts)
    yield from _outcomes(recipe, own, facts)
    yield from _features(own)
    yield from _histories(facts)
    yield from _aside(aside)
    yield from (f"warning: {warning}" for warning in facts.get("warnings", []))
    yield from _floor(recipe, own)


def _file(recipe: Recipe, facts: dict[str, Any]) -> Iterator[str]:
    sizes = f"{facts['shortest_list']} to {facts['longest_list']}, median {facts['median_list']:g}"
    yield (
        f"{facts['lists_file']}: {facts['list_lines_in']:,} rows, {facts['lists']:,} lists "
        f"{_whose(facts)}, {facts['list_candidates']:,} candidates ({sizes})"
    )
    order = {"place": "place", "score": "falling score", "file": "the file's own order"}
    yield f"read as: {facts['list_columns']}; in the order of: {order[facts['list_order']]}"
    if (share := facts["scores_known"]) is not None and share < 1:
        yield f"score: {share:.1%} known, a candidate without one has no evidence `gap`"
    if facts["rows_merged"]:
        yield f"rows of an item that its list had already: {facts['rows_merged']:,}, merged"
    if facts["single_lists"]:
        yield f"lists of one candidate: {facts['single_lists']:,}, nothing to rank, left out"
    if (longer := facts["longest_list"]) > (most := recipe.candidates.k_max):
        yield f"lists longer than candidates.k_max ({most}) are cut to it; the longest has {longer}"


def _whose(facts: dict[str, Any]) -> str:
    nobodys = facts["lists_without_user"]
    if nobodys == facts["lists"]:
        return "without a user"
    return f"of {facts['list_users']:,} users" + (f" ({nobodys:,} without one)" if nobodys else "")


def _outcomes(recipe: Recipe, own: OwnLists, facts: dict[str, Any]) -> Iterator[str]:
    won_N = own.gain_N > 0
    share = _any(own, won_N).mean()
    worth = ", ".join(f"{name} (worth {gain:g})" for name, gain in recipe.lists.gains.items())
    yield (
        f"outcomes: {worth}: {int(won_N.sum()):,} candidates in "
        f"{int(_any(own, won_N).sum()):,} lists ({share:.1%})"
    )
    for gain, count in sorted(Counter(own.gain_N[won_N].tolist()).items()):
        yield f"  worth {gain:g}: {count:,} candidates"
    if rows := facts["outcome_rows_outside"]:
        yield f"  {rows:,} rows with an outcome and no place: taken as outcomes outside their lists"
    inside_L = _any(own, won_N)
    if outside := int(((own.target_L >= 0) & ~inside_L).sum()):
        yield f"  {outside:,} lists whose outcome was about an item outside them"


def _any(own: OwnLists, of_N: np.ndarray) -> np.ndarray:
    """Which lists have such a candidate."""
    return np.add.reduceat(of_N.astype(np.int64), own.offsets_L1[:-1]) > 0


def _features(own: OwnLists) -> Iterator[str]:
    if not own.features:
        yield "features: none"
    for about, value_N in zip(own.features, own.feature_NG.T, strict=True):
        known_N = value_N[~np.isnan(value_N)]
        line = f"feature {about['name']}: {about['kind']}, {len(known_N) / len(value_N):.1%} known"
        if not len(known_N):
            yield line
        elif about["kind"] == "category":
            common = Counter(known_N.astype(int).tolist()).most_common(WORDS)
            words = ", ".join(f"{about['words'][at]} {n:,}" for at, n in common)
            yield f"{line}, {len(about['words'])} words: {words}"
        elif about["kind"] == "flag":
            yield f"{line}, set in {known_N.mean():.1%}"
        else:
            low, middle, high = np.quantile(known_N, [0.0, 0.5, 1.0])
            yield f"{line}, from {low:g} to {high:g}, median {middle:g}"


def _histories(facts: dict[str, Any]) -> Iterator[str]:
    if facts["source"] == "lists" and not facts["inline_histories"]:
        told = "data.interactions, or columns.history of the lists, say what users bought before"
        yield f"histories: none, so that no evidence speaks of purchases ({told})"
        return
    inline, none, lists = (
        facts["inline_histories"], facts["lists_without_history"], facts["lists"],
    )  # fmt: skip
    before = {"time": "before the list's time", "position": "before the list's position"}
    found = before.get(facts["moments"], "whole, for there are no moments")
    where = f"{inline:,} with the lists" if inline else f"from the interactions, {found}"
    if inline and inline < lists:
        where += f", the others from the interactions, {found}"
    yield f"histories: {where}; {none:,} of {lists:,} lists have none"


def _aside(entries: list[dict[str, Any]]) -> Iterator[str]:
    if not entries:
        yield "set aside: nothing"
        return
    yield f"set aside: {len(entries):,} entries"
    reasons = Counter((entry["file"], entry["reason"]) for entry in entries)
    lines = {(e["file"], e["reason"]): e["line"] for e in reversed(entries)}
    for (file, reason), count in reasons.most_common(REASONS):
        more = f" ({count:,} times)" if count > 1 else ""
        yield f"  {file} line {lines[file, reason]}: {reason}{more}"
    if len(reasons) > REASONS:
        yield f"  and {len(reasons) - REASONS} more reasons"


def _floor(recipe: Recipe, own: OwnLists) -> Iterator[str]:
    """The splits, and what the shop's order reaches; a split that cannot be is told, too."""
    try:
        parts_L = parts_of(own, recipe.lists)
    except DataError as error:
        yield f"split: {error}"
        parts_L = np.zeros(len(own), np.int8)
    else:
        count = np.bincount(parts_L, minlength=3).tolist()
        told = ", ".join(f"{n:,} {name}" for n, name in zip(count, SPLITS, strict=True))
        yield f"split by {recipe.lists.split}: {told} lists"
    everyone, _, _ = own_split(own, np.zeros(len(own), np.int8), "train", recipe.candidates.k_max)
    for name, which in (
        ("lists with an outcome", np.flatnonzero(everyone.hit_L >= 0)),
        ("all lists", np.arange(len(own))),
    ):
        if len(which):
            yield f"the shop's order on {name} (n = {len(which):,}): {_reached(everyone, which)}"


def _reached(lists: CandidateLists, which: np.ndarray) -> str:
    part = lists.take(which)
    values_LM = metrics_of(floor_order(len(part), part.k, part.length_L), part.gains_LK)
    means_BM = bootstrap_means(values_LM, RESAMPLES, "data", "check")
    said = []
    for name in FLOOR:
        at = METRICS.index(name)
        low, high = interval(means_BM[:, at])
        said.append(f"{name.upper()} {values_LM[:, at].mean():.4f} [{low:.4f}, {high:.4f}]")
    return ", ".join(said)
