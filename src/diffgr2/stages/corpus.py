"""The corpus: everything the language-model stages read, opened once from the stage directories.

Contract: `open_corpus(inputs, recipe)` loads histories, semantic IDs, candidate lists, evidence
buckets and (where given) traces. Lists and buckets have all stored columns; results are about the
first `k`, which `judged` and `request` give, or all of a shorter list. `shown` says how a stage
that learns meets a list: of another length, shuffled, with evidence missing; whatever part of a
list is shown keeps the evidence that was counted on the whole. `taught` is the teacher's trace for
exactly what is shown. `examples` enumerates the lists whose traces train, `hits` the known ones
that hold their target (train and validation, never test), both without selection users;
`selection` holds theirs. Not here: token batches (`batches`) and training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays
from diffgr2.candidates.index import read_fields
from diffgr2.candidates.lists import first_columns, load_lists, selected_lists
from diffgr2.candidates.scorers import LinearScorer
from diffgr2.candidates.trees import FILE, Trees
from diffgr2.config import Answering, Recipe, ShowConfig
from diffgr2.data.store import Dataset, read_dataset
from diffgr2.decode.settings import DecodeSettings, settings_of
from diffgr2.items.sids import SemanticIds
from diffgr2.model.contract import BlockContract
from diffgr2.prompts.account import kinds_of
from diffgr2.prompts.request import MISSING, NONE, Request, Trace, request_at
from diffgr2.prompts.template import Template, frame_of, make_template, trained_answers
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.traces.decide import Scale, Traces
from diffgr2.traces.words import read_explanations
from diffgr2.types import MISS, CandidateLists

KNOWN = ("train", "validation")
"""Splits whose targets may be used for training; the test split's never are."""

HIDDEN = 0.3
"""Chance of each piece of evidence to be missing, in lists that lack some."""

SHORTEST = 2
"""Candidates of the shortest list that is learned from."""


@dataclass(frozen=True)
class Shown:
    """A list as a stage shows it."""

    request: Request
    places: np.ndarray  # of each shown candidate: its column in the stored list
    target: int  # where the target is shown, or MISS

    @property
    def hidden(self) -> np.ndarray:
        """Evidence that is not shown, bool (K, F)."""
        return self.request.buckets_KF == MISSING


@dataclass(frozen=True)
class Corpus:
    recipe: Recipe
    dataset: Dataset
    sids: SemanticIds
    vocab: Vocabulary
    template: Template
    lists: dict[str, CandidateLists]  # all stored columns
    buckets: dict[str, np.ndarray]
    traces: dict[str, Traces]
    explanations: dict[str, list[str]]  # a teacher's own words per trace; empty if verbalised
    worth_FB: np.ndarray  # levels a field's bucket is worth to the scorecard; 0 without traces
    step: float = np.inf  # what a level is worth to the tutor's score; without traces none is
    tutor: Trees | None = None  # whose scores the traces' levels are; None: the scorecard's

    @cached_property
    def kinds(self) -> list[str]:
        """What kind of goods each item is, by a name that tells them apart."""
        return kinds_of(self.dataset.catalogue.categories)

    @property
    def answers(self) -> tuple[Answering, ...]:
        """The read-outs that this recipe trains."""
        return trained_answers(self.template, self.recipe.prompt)

    @property
    def k(self) -> int:
        """Length of the lists that results are about."""
        return self.recipe.candidates.k

    def judged(self, split: str) -> CandidateLists:
        """The lists that results are about: the first k columns."""
        return first_columns(self.lists[split], self.k)

    def request(self, split: str, row: int, places: np.ndarray | None = None) -> Request:
        """The request of a list's first k columns, or of these columns in this order."""
        lists, texts = self.lists[split], self.template.item_text
        given = (self.dataset, self.sids.codes_IL, self.buckets[split][row])
        request = request_at(lists, row, *given, self.recipe.prompt.history, texts=texts)
        return request.taken(np.arange(min(self.k, request.k)) if places is None else places)

    def shown(
        self,
        split: str,
        row: int,
        config: ShowConfig,
        rng: np.random.Generator,
        *,
        keep_target: bool = False,
        most: int | None = None,
    ) -> Shown:
        """A list as `config` wants lists shown, out of its first `most` columns (None: all).

        With `keep_target` the target, which has to be stored, is always among the candidates.
        """
        lists = self.lists[split]
        hit, length = int(lists.hit_L[row]), int(lists.length_L[row])
        most = length if most is None else min(most, length)
        forced = hit if keep_target else MISS
        assert not keep_target or 0 <= hit < most, "the target is not in the list"
        places = drawn_places(min(self.k, length), most, forced, config, rng)
        request = self.request(split, row, places)
        # Drawn for all columns, so that how much is drawn depends on nothing.
        hide, chance_KF = rng.random() < config.hide, rng.random(self.buckets[split].shape[1:])
        if hide:
            lost_KF = chance_KF[places] < HIDDEN
            buckets_KF = np.where(lost_KF, np.uint8(MISSING), request.buckets_KF)
            request = replace(request, buckets_KF=buckets_KF)
        at = np.flatnonzero((places == hit) & (hit != MISS))
        return Shown(request, places, int(at[0]) if len(at) else MISS)

    def trace(self, split: str, n: int) -> Trace:
        """A split's n-th trace on its whole list, with its teacher's words where it has some."""
        trace, words = self.traces[split].at(n), self.explanations.get(split)
        return replace(trace, explanation=words[n]) if words else trace

    def taught(self, split: str, n: int, shown: Shown) -> Trace:
        """The n-th trace for what is shown of its list.

        Hidden evidence is not cited, and what it is worth to the tutor is taken off the level.
        """
        hidden_KF, row = shown.hidden, int(self.traces[split].row_N[n])
        trace = self.trace(split, n).taken(shown.places)
        level_K, cites = trace.level_K, self.recipe.prompt.cites
        if hidden_KF.any():
            lower_K = level_K - self.lost(split, row, shown.places, hidden_KF)
            level_K = np.clip(lower_K, 0, self.recipe.prompt.strengths - 1)
        untold_KF = self.template.untold(shown.request)
        return replace(trace, level_K=level_K, cites_KC=seen(trace.cites_KC, untold_KF)[:, :cites])

    def lost(self, split: str, row: int, places: np.ndarray, hidden_KF: np.ndarray) -> np.ndarray:
        """Levels that hidden evidence is worth: to a scorecard, what its weights say; trees, which
        have learned from lists that lack some, judge the candidates again."""
        whole_KF = self.buckets[split][row][places]
        if self.tutor is None:
            fields_F, last = np.arange(hidden_KF.shape[1]), self.worth_FB.shape[1] - 1
            worth_KF = self.worth_FB[fields_F, np.minimum(whole_KF, last)] * (whole_KF != MISSING)
            return (worth_KF * hidden_KF).sum(1)
        both_2KF = np.stack([whole_KF, np.where(hidden_KF, np.uint8(MISSING), whole_KF)])
        seen_K, blind_K = self.tutor.score(both_2KF, self.lists[split].owner_L[[row, row]])
        return (seen_K - blind_K) / self.step

    def lesson(
        self, split: str, n: int, config: ShowConfig, rng: np.random.Generator
    ) -> tuple[Shown, Trace]:
        """A split's n-th trace to learn from: what is shown, and what is taught about it.

        A teacher's own words speak of the list as it was, which then keeps its length and evidence.
        """
        if self.explanations.get(split):
            config = config.model_copy(update={"vary": 0.0, "hide": 0.0})
        shown = self.shown(split, int(self.traces[split].row_N[n]), config, rng)
        return shown, self.taught(split, n, shown)

    def settings(
        self, contract: BlockContract | None, how: str = "recommended", **given: Any
    ) -> DecodeSettings:
        """How a model with this contract is decoded (`decode.settings.settings_of`)."""
        return settings_of(self.recipe.decode, contract, frame_of(self.template), how, **given)

    def selected(self, split: str) -> np.ndarray:
        """The lists (bool) of selection users, which train nothing."""
        return selected_lists(self.lists[split], self.dataset.histories.n_users)

    @cached_property
    def examples(self) -> list[tuple[str, int]]:
        """(split, index into that split's traces) of every trace that trains."""
        return [
            (split, int(n))
            for split in KNOWN
            for n in np.flatnonzero(~self.selected(split)[self.traces[split].row_N])
        ]

    @cached_property
    def hits(self) -> list[tuple[str, int]]:
        """(split, list) of every known list that trains and stores its target in any column."""
        return [
            (split, int(row))
            for split in KNOWN
            for row in np.flatnonzero((self.lists[split].hit_L != MISS) & ~self.selected(split))
        ]

    @cached_property
    def selection(self) -> list[tuple[str, int]]:
        """(split, list) of every selection user's list that results could be about."""
        return [
            (split, int(row))
            for split in KNOWN
            for row in np.flatnonzero((self.judged(split).hit_L != MISS) & self.selected(split))
        ]


def drawn_places(
    k: int, most: int, forced: int, config: ShowConfig, rng: np.random.Generator
) -> np.ndarray:
    """Which of a list's first `most` columns are shown, in which order; column `forced` is in.

    A forced column is not put into a part that missed it, where it would be the odd one out: it
    comes in a part that holds it by itself, a longer one or another sub-list.
    """
    vary, length, first = rng.random() < config.vary, rng.random(), rng.random() < 0.5
    key_K, shuffle, order_K = rng.random(most), rng.random() < config.shuffle, rng.random(most)
    n, least = min(k, most), max(min(SHORTEST, most), forced + 1 if first else 0)
    if vary or forced >= k:
        n = least + int(length * (most + 1 - least))
    if (vary or forced >= k) and not first:
        if forced != MISS:
            key_K[forced] = -1.0
        places = np.sort(np.argsort(key_K)[:n])
    else:
        places = np.arange(min(n, most))
    return places[np.argsort(order_K[: len(places)])] if shuffle else places


def seen(cites_KC: np.ndarray, hidden_KF: np.ndarray) -> np.ndarray:
    """Cited fields without the hidden ones, those behind them moved up."""
    lost_KC = (cites_KC == NONE) | np.take_along_axis(hidden_KF, np.maximum(cites_KC, 0), axis=1)
    order_KC = np.argsort(lost_KC, axis=1, kind="stable")
    return np.take_along_axis(np.where(lost_KC, NONE, cites_KC), order_KC, axis=1)


def open_corpus(inputs: Mapping[str, Path], recipe: Recipe) -> Corpus:
    """Open what the given stage directories hold."""
    vocab, splits = Vocabulary.load(inputs["vocabulary"]), (*KNOWN, "test")
    taught = KNOWN if "traces" in inputs else ()
    traces = {s: Traces.load(inputs["traces"] / f"{s}.safetensors") for s in taught}
    weight_FV = LinearScorer.load(inputs["evidence"] / "linear.safetensors").weight_FV
    step = Scale.load(inputs["traces"] / "scale.safetensors").step if taught else np.inf
    return Corpus(
        recipe=recipe,
        dataset=read_dataset(inputs["data"]),
        sids=SemanticIds.load(inputs["items"]),
        vocab=vocab,
        template=make_template(vocab, recipe.prompt, read_fields(inputs["evidence"])),
        lists={s: load_lists(inputs["candidates"], s) for s in splits},
        buckets={
            s: load_arrays(inputs["evidence"] / f"{s}.safetensors")["buckets_LKF"] for s in splits
        },
        traces=traces,
        explanations={s: read_explanations(inputs["traces"] / f"{s}.jsonl") for s in taught},
        worth_FB=(weight_FV[:, :-1] - weight_FV[:, -1:]) / step,
        step=step,
        tutor=Trees.load(inputs["tutor"] / FILE) if "tutor" in inputs else None,
    )
