"""The Python API: open a bundle, rank candidates for a history.

Contract: `Reranker.from_pretrained(directory).rank(history, candidates)` returns a `RankResult`
whose order is a permutation of what was given, whatever the model wrote: `valid` says whether its
own answers were permutations, `repaired` and `fallback` what was done if not. Prompts, evidence,
decoding and repair are those of the stages (`corpus`, `score`), so a served answer is the evaluated
one. Lists longer than the model's K go through a sliding window from the back. `prepare` and
`RankTask` expose the same work decode by decode, for callers that batch (`rank_many`, `serve`).
Not here: HTTP (`serve`) and the command line (`reranking_cli`).

    reranker = Reranker.from_pretrained("runs/demo/bundle")
    result = reranker.rank(["P0000170"], ["P0000046", "P0000186"], return_reasoning=True)
    print(result.items, result.reasoning)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from diffgr2.artifacts import read_manifest
from diffgr2.candidates import kinds
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.retrieval import ragged, score
from diffgr2.config import DecodeConfig
from diffgr2.data.store import read_dataset
from diffgr2.decode.batch import DecodeRequest, decode
from diffgr2.decode.settings import DecodeSettings, settings_of
from diffgr2.errors import ConfigError, DataError
from diffgr2.items.encode import Encoder
from diffgr2.items.sids import SemanticIds
from diffgr2.model.contract import contract_of
from diffgr2.model.forward import LeanQwen3
from diffgr2.model.load import open_model
from diffgr2.prompts.request import Request, item_kind, item_text
from diffgr2.prompts.template import frame_of, make_template
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.rerank.bundle import read_note
from diffgr2.rerank.names import Item, Names
from diffgr2.rerank.strangers import Seats
from diffgr2.rerank.task import Query, RankResult, RankTask
from diffgr2.types import Catalogue

SEATS = 512
"""Unknown items that one request may hold."""

HOW = {"ar": "ar", "block": "recommended", "verify": "verify"}
DECODE_KEYS = (
    "decoder",
    "accept",
    "threshold",
    "per_step",
    "entropy_bound",
    "rule",
    "canvas",
    "temperature",
    "max_tokens",
)
"""What of the decode section a request may set; `seed` names its random stream."""


class Reranker:
    """See the module's docstring."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recipe = read_note(directory)
        self.name = self.recipe.name
        self.contract = contract_of(directory)
        dataset = read_dataset(directory / "data")
        self.histories, self.catalogue = dataset.histories, dataset.catalogue
        self.raw_users = dataset.raw_users
        self._user = {raw: user for user, raw in enumerate(dataset.raw_users)}
        self.sids = SemanticIds.load(directory / "items")
        self.names = Names(self.catalogue, self.sids, Encoder.load(directory / "items"))
        self.vocab = Vocabulary.load(directory)
        self.template = make_template(self.vocab, self.recipe.prompt)
        self.frame = frame_of(self.template)
        self.k = self.recipe.candidates.k
        self.retriever = kinds.load(directory / "retriever")
        self.seats = Seats(EvidenceIndex.load(directory / "evidence"), self.catalogue)
        self.group_labels = group_labels(self.sids, self.catalogue)
        self.model = LeanQwen3(open_model(directory))
        self.decoders = ("ar", "block", "verify") if self.contract else ("ar",)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Reranker:
        """Open a bundle after checking every file against its manifest."""
        read_manifest(Path(directory), verify=True)
        return cls(Path(directory))

    # ------------------------------------------------------------------------------ asking

    def settings(self, given: Mapping[str, Any] | None = None) -> DecodeSettings:
        """Decode settings: the recipe's recommendation, changed by `given`."""
        given = {k: v for k, v in (given or {}).items() if v is not None and k != "seed"}
        for key in given:
            if key not in DECODE_KEYS:
                raise ConfigError(f"decode.{key}: unknown key (known: {', '.join(DECODE_KEYS)})")
        config = self.recipe.decode
        try:
            merged = DecodeConfig.model_validate({**config.model_dump(), **given})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ConfigError(f"decode.{first['loc'][0]}: {first['msg']}") from None
        decoder = merged.decoder if "decoder" in given or self.contract else "ar"
        if decoder not in self.decoders:
            raise ConfigError(f"decode.decoder: this model is autoregressive, not {decoder}")
        chosen = {k: getattr(merged, k) for k in given if k != "decoder"}
        return settings_of(config, self.contract, self.frame, HOW[decoder], **chosen)

    def user_number(self, user: str | None) -> int:
        """The dense number of a raw user id, -1 for nobody we know."""
        return -1 if user is None else self._user.get(user, -1)

    def prepare(
        self,
        history: Sequence[Any] | None,
        candidates: Sequence[Any],
        *,
        scores: Sequence[float] | None = None,
        user: str | None = None,
        decode: Mapping[str, Any] | None = None,
        reasoning: bool = True,
    ) -> RankTask:
        """Resolve a request; errors name what is wrong with it."""
        settings = self.settings(decode)
        number = self.user_number(user)
        if history is None:
            if user is not None and number < 0:
                raise DataError(f"user: {user} is not known, so a history is needed")
            stored = self.histories.of(number).tolist() if number >= 0 else []
            known = [self.catalogue.raw_ids[item] for item in stored]
            past = self.names.resolve(known, "history")
        else:
            past = self.names.resolve(_listed(history, "history"), "history")
        named = _listed(candidates, "candidates")
        if not named:
            raise DataError("candidates: the list is empty")
        items = self.names.resolve(named, "candidates")
        _check_distinct(items)
        strangers = sum(item.stranger is not None for item in [*past, *items])
        if strangers > SEATS:
            raise DataError(f"{strangers} unknown items in one request, at most {SEATS}")
        query = Query(past, items, named, self._scores(past, items, scores), number)
        seed = (decode or {}).get("seed")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ConfigError("decode.seed: expected an integer")
        stream = ("decode",) if seed is None else ("decode", seed)
        return RankTask(self, query, settings, reasoning=reasoning, stream=stream)

    def rank(
        self,
        history: Sequence[Any] | None,
        candidates: Sequence[Any],
        *,
        scores: Sequence[float] | None = None,
        user: str | None = None,
        decode: Mapping[str, Any] | None = None,
        reasoning: bool = True,
        return_reasoning: bool = False,
        top_k: int | None = None,
    ) -> RankResult:
        """Rank candidates, given in the order in which they came (the floor).

        `history` is oldest first; `user` names a shopper of the bundle, whose own purchases are
        then left out of the evidence (and who provides the history where it is None). `scores` are
        the retriever's; without them the bundled retriever scores. `decode` changes the recommended
        settings; `reasoning=False` answers directly.
        """
        task = self.prepare(
            history, candidates, scores=scores, user=user, decode=decode, reasoning=reasoning
        )
        self.run([task], batch=1)
        return task.result(return_reasoning=return_reasoning, top_k=top_k)

    def rank_many(
        self,
        requests: Sequence[Mapping[str, Any]],
        *,
        batch: int = 64,
        return_reasoning: bool = False,
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
        open_tasks = [(task, task.window()) for task in tasks]
        while open_tasks := [(task, wanted) for task, wanted in open_tasks if wanted is not None]:
            groups: dict[DecodeSettings, list[tuple[RankTask, DecodeRequest]]] = {}
            for task, wanted in open_tasks:
                groups.setdefault(task.settings, []).append((task, wanted))
            for settings, group in groups.items():
                wanted_G = [wanted for _, wanted in group]
                runs = decode(self.model, wanted_G, settings, batch=batch)
                for (task, _), trajectory in zip(group, runs, strict=True):
                    task.take(trajectory)
            open_tasks = [(task, task.window()) for task, _ in open_tasks]

    # --------------------------------------------------------------------------- resolving

    def _scores(
        self, past: list[Item], items: list[Item], given: Sequence[float] | None
    ) -> np.ndarray:
        """Retriever scores of the candidates; unknown ones get the list's minimum."""
        if given is not None:
            if len(given) != len(items):
                raise DataError(f"scores: {len(given)} for {len(items)} candidates")
            if not all(isinstance(s, int | float | np.number) for s in given):
                raise DataError("scores: expected numbers")
            scores_N = np.asarray(given, np.float64).astype(np.float32)
            if not np.isfinite(scores_N).all():
                raise DataError("scores: expected finite numbers")
            return scores_N
        known_N = np.array([item.number is not None for item in items])
        scores_N = np.zeros(len(items), np.float32)
        if known_N.any():
            query = ragged(
                [np.array([i.number for i in past if i.number is not None], np.int32)],
                len(self.catalogue),
            )
            wanted = np.array([[i.number for i in items if i.number is not None]], np.int32)
            scores_N[known_N] = score(self.retriever, query, wanted)[0]
            scores_N[~known_N] = scores_N[known_N].min()
        return scores_N

    def request(self, query: Query, places: np.ndarray) -> Request:
        """The prompt's content for these candidates, in this order."""
        shown = [query.candidates[place] for place in places.tolist()]
        past = query.history[-self.recipe.prompt.history :]
        recent = query.history[-self.recipe.evidence.history :]
        strangers = [item for item in [*recent, *shown] if item.stranger is not None]
        seat = {id(item): self.seats.n_items + n for n, item in enumerate(strangers)}
        vectors = [item.vector_E for item in strangers if item.vector_E is not None]
        index = self.seats.seat(
            [item.stranger for item in strangers if item.stranger is not None],
            np.stack(vectors) if vectors else np.empty((0, 0), np.float32),
        )

        def numbers(items: list[Item]) -> np.ndarray:
            return np.array(
                [seat[id(i)] if i.number is None else i.number for i in items], np.int32
            )

        queries = ragged([numbers(recent)], index.pairs.n_items)
        features_1KF = index.features(
            queries, numbers(shown)[None], query.scores_N[places][None], np.array([query.user])
        )
        texts, history_texts, groups = self._texts(shown), self._texts(past), self._groups(past)
        return Request(
            np.array([item.codes for item in past], np.int32).reshape(-1, self.sids.levels),
            np.array([item.codes for item in shown], np.int32),
            index.buckets(features_1KF)[0],
            history_texts,
            texts,
            groups,
        )

    def _texts(self, items: list[Item]) -> tuple[str, ...]:
        """One line per item where the template shows text."""
        if not self.template.shows_text:
            return ()
        return tuple(item_text(*self._described(item)) for item in items)

    def _groups(self, items: list[Item]) -> tuple[str, ...]:
        """The category that the template names a history item by."""
        if not self.template.shows_text:
            return ()
        described = [self._described(item) for item in items]
        return tuple(item_kind(c, number) for c, number in described)

    def _described(self, item: Item) -> tuple[Catalogue, int]:
        """A catalogue and the item's place in it; a stranger is a catalogue of its own."""
        if item.number is not None:
            return self.catalogue, item.number
        words = item.stranger
        assert words is not None
        own = Catalogue(
            [""],
            [words.title],
            [words.brand],
            [list(words.categories)],
            np.array([np.nan]),
            [words.description],
        )
        return own, 0


def _listed(value: Any, name: str) -> list[Any]:
    """A list, not a text that happens to have characters."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence | np.ndarray):
        raise DataError(f"{name}: expected a list")
    return list(value)


def _check_distinct(items: list[Item]) -> None:
    """The same catalogue item twice is a mistake, and its rank would be a riddle."""
    first: dict[int, int] = {}
    for place, item in enumerate(items):
        if item.number is None:
            continue
        if item.number in first:
            raise DuplicateError(first[item.number], place)
        first[item.number] = place


class DuplicateError(DataError):
    """Two candidates are the same item."""

    def __init__(self, first: int, second: int) -> None:
        self.field, self.problems = "candidates", {second: f"the same item as candidates[{first}]"}
        super().__init__(f"candidates[{second}]: the same item as candidates[{first}]")


def group_labels(sids: SemanticIds, catalogue: Catalogue) -> list[str]:
    """What to call each first code: the most frequent most specific category of its items."""
    labels = []
    for code in range(sids.n_codes):
        inside = np.flatnonzero(sids.codes_IL[:, 0] == code)
        names = Counter(catalogue.categories[i][-1] for i in inside if catalogue.categories[i])
        best = sorted(names.items(), key=lambda pair: (-pair[1], pair[0]))
        labels.append(best[0][0] if best else f"group {code}")
    return labels
