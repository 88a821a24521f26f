"""The Python API: open a bundle, rank candidates for a history.

Contract: `Reranker.from_pretrained(directory).rank(history, candidates)` returns a `RankResult`
whose order is a permutation of what was given, read from the strengths that the model states, or
from the permutation that it writes (`decode={"answer": "written"}`): `valid` says whether its own
answers were whole, `repaired` and `fallback` what was done if not. Prompts, evidence, decoding and
repair are those of the stages, so a served answer is the evaluated one. Lists of any length are
ranked (`task`), and no single entry makes a list fail: what names nothing and says nothing of
itself keeps its place, or is left out of the history, and stands in `warnings` (an error with
`strict`). `rules` are the shop's own (`rules`). `prepare` and `RankTask` expose the same work
decode by decode, for callers that batch (`rank_many`, `serve`). Not here: HTTP (`serve`) and the
command line (`cli.rerank`).

    reranker = Reranker.from_pretrained("demo")
    result = reranker.rank(["P0001692"], ["P0001373", "P0000485"], return_reasoning=True)
    print(result.items, result.reasoning)
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.candidates.fields import names_of
from diffgr2.decode.batch import decode as decode_all
from diffgr2.decode.batch import make_writer
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.errors import CheckpointError, DataError
from diffgr2.model.backends import open_backend
from diffgr2.rerank.brought import KEY, Brought, brought, off_scale
from diffgr2.rerank.bundle import opened
from diffgr2.rerank.names import KEYS, Item, ListProblem
from diffgr2.rerank.readout import Ways
from diffgr2.rerank.result import RankResult, Telling
from diffgr2.rerank.rules import GROUPS, Placing, placing_of, read_rules, shown
from diffgr2.rerank.task import Query, RankTask
from diffgr2.rerank.world import SEATS, World


class Reranker(World):
    """An opened bundle: `rank` for one list, `rank_many` for several at once."""

    def __init__(self, directory: Path, *, mapped: bool = False) -> None:
        super().__init__(directory, mapped=mapped)
        self.model = open_backend(directory)
        self._try_out()

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, mapped: bool = False) -> Reranker:
        """Open a bundle after checking every file against its manifest.

        `demo` is the one that ships with the package.
        `mapped` leaves counts and histories in the bundle's files, whose pages processes on one
        machine share; such a bundle may be replaced by a rename, but never written to in place.
        """
        from diffgr2.rerank.shipped import bundle_of

        return opened(bundle_of(directory), partial(cls, mapped=mapped))

    def _try_out(self) -> None:
        """A list goes through every part once: what does not fit fails here, not at a request."""
        self.names.encoder.encode([self.catalogue.titles[0]])  # as for an item that is new to it
        raw = self.catalogue.raw_ids
        shown = raw[: self.k_max] if len(raw) > 1 else raw * 2
        task = self.prepare(raw[-1:], shown)
        (_, wanted), *_ = task.pending()
        needed, most = make_writer(0, wanted, task.settings).slots + 1, self.model.max_positions
        if needed > most:
            raise CheckpointError(f"{self.directory}: a list needs {needed} positions of {most}")

    def prepare(
        self,
        history: Sequence[Any] | None,
        candidates: Sequence[Any],
        *,
        scores: Sequence[float] | None = None,
        user: str | None = None,
        decode: Mapping[str, Any] | Ways | None = None,
        reasoning: bool = True,
        features: Sequence[Mapping[str, Any] | None] | None = None,
        rules: Mapping[str, Any] | None = None,
        strict: bool = False,
    ) -> RankTask:
        """Resolve a request; errors name what is wrong with it."""
        ways = decode if isinstance(decode, Ways) else self.ways(decode)
        past, warnings = self._past(history, user, strict=strict)
        named = _listed(candidates, "candidates")
        if not named:
            raise DataError("candidates: the list is empty")
        own = brought(self.seats.index.own, named, features, strict=strict)
        items = self.names.resolve(named, "candidates", strict=strict, backed=own.backed)
        strangers = sum(item.stranger is not None for item in [*past, *items])
        if strangers > SEATS:
            raise DataError(f"{strangers} unknown items in one request, at most {SEATS}")
        lost = {at: item.lost for at, item in enumerate(items) if item.lost}
        repeats = _repeated(items, strict=strict)
        lost |= repeats
        placing, vain = self._placing(rules, named, items, own, lost, repeats, ways)
        warnings += _unjudged(placing, lost, named)
        scores_N = self.scores_of(past, items, scores)
        if scores is not None and (odd := off_scale(self.seats.index, scores_N)) is not None:
            scores_N, vain = np.full_like(scores_N, np.nan), [*vain, odd]
        if strict and vain:
            raise DataError(vain[0].removesuffix(", ignored"))
        told, number = (*warnings, *own.warnings, *vain), self.user_number(user)
        query = Query(past, items, named, scores_N, number, own.values_KG, placing, told)
        return RankTask(self, query, ways, reasoning=reasoning)

    def _past(
        self, history: Sequence[Any] | None, user: str | None, *, strict: bool
    ) -> tuple[list[Item], list[str]]:
        """The history without what names nothing, and what that was."""
        if history is None:
            return self.stored_history(user), []
        named = _listed(history, "history")
        items = self.names.resolve(named, "history", strict=strict)
        warnings = [
            f"history[{at}]: {shown(name_of(named[at]))} is left out ({item.lost})"
            for at, item in enumerate(items)
            if item.lost
        ]
        if any(isinstance(entry, Mapping) and entry.get(KEY) for entry in named):
            warnings.append(f"history: {KEY} are evidence of candidates only, ignored")
        return [item for item in items if not item.lost], warnings

    def _placing(
        self,
        rules: Mapping[str, Any] | None,
        named: Sequence[Any],
        items: Sequence[Item],
        own: Brought,
        lost: Collection[int],
        repeats: Collection[int],
        ways: Ways,
    ) -> tuple[Placing, list[str]]:
        """The shop's rules for this list."""
        if not rules:
            return Placing(len(items), frozenset(lost), repeats=frozenset(repeats)), []
        asked = read_rules(rules)
        if asked.boost and ways.read_out.answer == "written":
            raise DataError("boost: a written answer states no strengths to add to")

        known = (*GROUPS, *names_of(self.seats.index.own))

        def group_of(key: str, at: int) -> Hashable:
            if key not in known:
                raise KeyError(", ".join(known))
            item = items[at]
            if key not in GROUPS:
                return own.said(at, key)
            if key == "category":
                return self.kind(item) or None
            if item.stranger is not None:
                return item.stranger.brand or None
            assert item.number is not None
            return self.catalogue.brands[item.number] or None

        raw = self.catalogue.raw_ids
        names_N = [
            {name_of(entry)} | ({raw[item.number]} if item.number is not None else set())
            for entry, item in zip(named, items, strict=True)
        ]
        return placing_of(asked, names_N, lost, group_of, repeats)

    def rank(
        self,
        history: Sequence[Any] | None,
        candidates: Sequence[Any],
        *,
        scores: Sequence[float] | None = None,
        user: str | None = None,
        decode: Mapping[str, Any] | None = None,
        reasoning: bool = True,
        features: Sequence[Mapping[str, Any] | None] | None = None,
        rules: Mapping[str, Any] | None = None,
        strict: bool = False,
        return_reasoning: Telling = False,
        top_k: int | None = None,
    ) -> RankResult:
        """Rank candidates, given in the order in which they came (the floor).

        `history` is oldest first; `user` names a shopper of the bundle, whose own purchases are
        then left out of the evidence (and who provides the history where it is None). `scores` are
        the retriever's; without them the bundled retriever scores. `decode` changes the recommended
        settings, `answer` and `views` among them; with `details` the result has `decisions`.
        `reasoning=False` answers directly; `return_reasoning="markdown"` has bold names.
        `features` holds a mapping (or None) per candidate, name -> value of the shop's own fields;
        it may stand in the candidates instead (`{"id": …, "features": {…}}`). `rules` holds any of
        `pin` (ids for the top, or id -> place from 1), `exclude` (ids), `boost` (id -> levels added
        to its strength) and `max_per` (`brand`, `category` or a feature -> how many). `strict`
        makes errors of all that would be a warning.
        """
        task = self.prepare(
            history,
            candidates,
            scores=scores,
            user=user,
            decode=decode,
            reasoning=reasoning,
            features=features,
            rules=rules,
            strict=strict,
        )
        self.run([task], batch=1)
        return task.result(return_reasoning=return_reasoning, top_k=top_k)

    def rank_many(
        self,
        requests: Sequence[Mapping[str, Any]],
        *,
        batch: int = 64,
        return_reasoning: Telling = False,
        top_k: int | None = None,
    ) -> list[RankResult]:
        """`rank` for many requests at once; each is `rank`'s arguments as a mapping."""
        tasks = []
        for number, request in enumerate(requests):
            try:
                tasks.append(self.prepare(**request))
            except DataError as error:
                raise DataError(f"requests[{number}]: {error}") from None
        self.run(tasks, batch=batch)
        return [task.result(return_reasoning=return_reasoning, top_k=top_k) for task in tasks]

    def run(self, tasks: Sequence[RankTask], *, batch: int = 64) -> None:
        """Decode all windows of all tasks; tasks with equal settings share forwards."""
        open_tasks = list(tasks)
        while open_tasks:
            groups: dict[DecodeSettings, list[tuple[RankTask, int, DecodeRequest]]] = {}
            for task in open_tasks:
                for number, wanted in task.pending():
                    groups.setdefault(task.settings, []).append((task, number, wanted))
            for settings, group in groups.items():
                runs = decode_all(self.model, [one[2] for one in group], settings, batch=batch)
                for (task, number, _), trajectory in zip(group, runs, strict=True):
                    task.take(number, trajectory)
            open_tasks = [task for task in open_tasks if not task.complete]


def _listed(value: Any, name: str) -> list[Any]:
    """A list, not a text that happens to have characters."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence | np.ndarray):
        raise DataError(f"{name}: expected a list")
    return list(value)


def name_of(entry: Any) -> str:
    """What a caller calls an item, in rules and warnings."""
    if not isinstance(entry, Mapping):
        return str(entry)
    return next((str(entry[key]) for key in KEYS if entry.get(key)), "")


def _unjudged(placing: Placing, lost: Mapping[int, str], named: Sequence[Any]) -> list[str]:
    """Who is not judged and why, and whether that keeps its place, once the rules are known."""
    stays = {at for at, place in placing.kept_places().items() if place == at}
    return [
        f"candidates[{at}]: {shown(name_of(named[at]))} "
        f"{'keeps its place' if at in stays else 'is not judged'} ({why})"
        for at, why in sorted(lost.items())
        if at not in placing.excluded  # gone, as was asked for
    ]


def _repeated(items: Sequence[Item], *, strict: bool) -> dict[int, str]:
    """The same catalogue item twice is a mistake, and the second one's rank would be a riddle."""
    first: dict[int, int] = {}
    found: dict[int, str] = {}
    for place, item in enumerate(items):
        if item.number is not None and first.setdefault(item.number, place) != place:
            found[place] = f"the same item as candidates[{first[item.number]}]"
    if found and strict:
        raise ListProblem("candidates", found)
    return found
