"""What a bundle knows besides its weights: items, shoppers, evidence, the retriever, the template.

Contract: `World(directory)` opens these parts; `requests` builds the content of prompts from
resolved items exactly as the stages build it from lists, `scores_of` rates candidates that came
without scores, `ways` gives a request's ways of decoding and of reading responses. Threads may
share it: nothing here changes after opening, but ways are remembered. Not here: the model
(`reranker`), the way of one request (`task`).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from diffgr2.candidates import kinds
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.pairs import UNDATED
from diffgr2.candidates.retrieval import ragged
from diffgr2.config import DECODERS, Answering, DecodeConfig, Decoder
from diffgr2.data.columnar import unpack
from diffgr2.decode.settings import PRESETS, DecodeSettings, settings_of
from diffgr2.errors import ConfigError, DataError, first_problem, nearest
from diffgr2.items.quantize import Encoder
from diffgr2.items.sids import SemanticIds
from diffgr2.model.contract import contract_of
from diffgr2.prompts.account import kinds_of
from diffgr2.prompts.request import MISSING, Request, item_kind
from diffgr2.prompts.template import frame_of, make_template, trained_answers
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.rerank.bundle import read_note
from diffgr2.rerank.gaps import unknown
from diffgr2.rerank.names import Item, Names, Seats
from diffgr2.rerank.parts import (
    check_arrays,
    check_config,
    check_shop,
    check_vocabulary,
    read_scales,
)
from diffgr2.rerank.readout import ReadOut, Ways
from diffgr2.types import Catalogue

SEATS = 512
"""Unknown items that one request may hold."""

WAYS = 64
"""Ways of decoding that are kept once they were checked."""

READ_KEYS = ("answer", "views")
"""What of the decode section says how responses are read."""

DECODE_KEYS = (
    *(key for key in DecodeConfig.model_fields if key not in ("clean_kv", "repair")),
    "details",
)
"""What of decoding a request may set; `details` keeps every decision's probabilities, `seed` names
the random stream."""


@dataclass(frozen=True)
class Shown:
    """A list of which a prompt is to be made."""

    history: Sequence[Item]
    candidates: Sequence[Item]
    scores_K: np.ndarray
    user: int  # dense number, -1 unknown
    own_KG: np.ndarray | None = None


class World:
    """See the module's docstring."""

    def __init__(self, directory: Path, *, mapped: bool = False) -> None:
        self.directory, self.mapped = directory, mapped
        note = read_note(directory)
        self.recipe, self.simulated = note.recipe, note.simulated
        self.name, self.k = self.recipe.name, self.recipe.candidates.k
        self.k_max = self.recipe.candidates.k_max
        check_config(directory)
        check_arrays(directory)
        self.contract = contract_of(directory)
        self.decoders: tuple[Decoder, ...] = tuple(DECODERS) if self.contract else ("ar",)
        self.histories, self.catalogue, self.raw_users = unpack(directory / "data", mapped=mapped)
        self._user = {raw: user for user, raw in enumerate(self.raw_users)}
        self.sids = SemanticIds.load(directory / "items")
        self.names = Names(self.catalogue, self.sids, Encoder.load(directory / "items"))
        self.vocab = Vocabulary.load(directory)
        check_vocabulary(directory, self.vocab)
        index = EvidenceIndex.load(directory / "evidence", mapped=mapped)
        self.seats = Seats(index, self.catalogue)
        self.fields = self.seats.index.fields
        self.template = make_template(self.vocab, self.recipe.prompt, self.fields)
        self.frame = frame_of(self.template)
        self.retriever = kinds.load_scores(directory / "retriever")
        self.scales = read_scales(directory)
        check_shop(self)
        self.kinds = kinds_of(self.catalogue.categories)
        self._ways: dict[tuple[Any, ...], tuple[DecodeSettings, ReadOut]] = {}

    def ways(self, given: Mapping[str, Any] | None = None) -> Ways:
        """How to decode and read: the recipe's recommendation, changed by `given`."""
        given = given or {}
        seed, rest = given.get("seed"), {k: v for k, v in given.items() if k != "seed"}
        # True equals 1 and is none of it.
        key = tuple((name, type(value), value) for name, value in rest.items())
        plain = all(kind in (str, int, float, bool) for _, kind, _ in key)
        known = self._ways.get(key) if plain else None
        settings, read_out = known or self._decided(rest)
        if plain and known is None and len(self._ways) < WAYS:
            self._ways[key] = settings, read_out
        if seed is None:
            return Ways(settings, read_out)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError("decode.seed: expected an integer")
        return Ways(settings, read_out, ("decode", seed))

    def _decided(self, given: Mapping[str, Any]) -> tuple[DecodeSettings, ReadOut]:
        chosen = self._chosen(given)
        return self._settings(chosen), self._read_out(chosen)

    def _settings(self, chosen: Mapping[str, Any]) -> DecodeSettings:
        config = self.recipe.decode
        given = {key: value for key, value in chosen.items() if key not in READ_KEYS}
        decoder = given.get("decoder") or (config.decoder if self.contract else "ar")
        how = decoder if decoder in PRESETS else "recommended"
        return settings_of(config, self.contract, self.frame, how, **{**given, "decoder": decoder})

    def _chosen(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a request sets, checked like the recipe."""
        chosen = {k: v for k, v in (given or {}).items() if v is not None and k != "seed"}
        for key in chosen:
            if key not in DECODE_KEYS:
                told = f"decode.{key[:80]}: unknown key (known: {', '.join(DECODE_KEYS)})"
                raise ConfigError(told + nearest(key, DECODE_KEYS))
        if not isinstance(chosen.get("details", False), bool):
            raise ConfigError("decode.details: expected true or false")
        known = {key: value for key, value in chosen.items() if key != "details"}
        try:
            DecodeConfig.model_validate({**self.recipe.decode.model_dump(), **known})
        except ValidationError as error:
            where, message, _ = first_problem(error)
            raise ConfigError(f"decode.{where[0]}: {message}") from None
        return chosen

    def _read_out(self, chosen: Mapping[str, Any]) -> ReadOut:
        config = self.recipe.decode
        answer: Answering = chosen.get("answer", config.answer)
        if "said" not in self.answers:  # free text states no strengths
            answer = "written"
        if answer == "said":
            return ReadOut(answer, chosen.get("views", config.views))
        if answer not in self.answers:
            raise ConfigError("decode.answer: this model was not trained to write a permutation")
        if chosen.get("views", 1) > 1:
            raise ConfigError("decode.views: a written answer has one view only")
        return ReadOut(answer)

    @property
    def answers(self) -> tuple[Answering, ...]:
        """The ways to answer that this model was trained for, the usual one first."""
        return trained_answers(self.template, self.recipe.prompt)

    def kind(self, item: Item) -> str:
        """What kind of goods an item is; "" where it is not known."""
        if item.number is not None:
            return self.kinds[item.number]
        return item.stranger.categories[-1] if item.stranger and item.stranger.categories else ""

    def user_number(self, user: str | None) -> int:
        """The dense number of a raw user id, -1 for nobody we know."""
        return -1 if user is None else self._user.get(user, -1)

    def stored_history(self, user: str | None) -> list[Item]:
        """The purchases of a shopper of the bundle."""
        number = self.user_number(user)
        if number < 0 and user is not None:
            raise DataError(f"user: {user} is not known, so a history is needed")
        stored = self.histories.of(number).tolist() if number >= 0 else []
        return [self.names.item(item) for item in stored]

    def scores_of(
        self, past: Sequence[Item], items: Sequence[Item], given: Sequence[float] | None
    ) -> np.ndarray:
        """Retriever scores of the candidates; unknown ones get the list's minimum.

        Where the model learned on a shop's scores, the retriever's are no stand-in: NaN.
        """
        if given is not None:
            if len(given) != len(items):
                raise DataError(f"scores: {len(given)} for {len(items)} candidates")
            if not all(isinstance(s, int | float | np.number) for s in given):
                raise DataError("scores: expected numbers")
            scores_N = np.asarray(given, np.float64).astype(np.float32)
            if not np.isfinite(scores_N).all():
                raise DataError("scores: expected finite numbers")
            return scores_N
        if self.seats.index.own_scores:
            return np.full(len(items), np.nan, np.float32)
        known_N = np.array([item.number is not None for item in items])
        scores_N = np.zeros(len(items), np.float32)
        if known_N.any():
            seen = np.array([i.number for i in past if i.number is not None], np.int32)
            wanted = np.array([i.number for i in items if i.number is not None], np.int32)
            scores_N[known_N] = self.retriever.score_some(seen, wanted)
            scores_N[~known_N] = scores_N[known_N].min()
        return scores_N

    def requests(self, asked: Sequence[Shown]) -> list[Request]:
        """The prompts' content for these lists, candidates as they came; evidence in one go."""
        placed = [self._placed(one) for one in asked]
        found: dict[int, np.ndarray] = {}
        # Lists with unknown items have an index of their own.
        alike = [n for n, (index, _) in enumerate(placed) if index is self.seats.index]
        rest = [[n] for n, (index, _) in enumerate(placed) if index is not self.seats.index]
        for group in [alike, *rest] if alike else rest:
            index, parts = placed[group[0]][0], [placed[n][1] for n in group]
            then_L = [self._bought_at(asked[n]) for n in group]
            features_LKF = features_of(index, parts, [asked[n] for n in group], then_L)
            buckets_LKF = index.buckets(features_LKF)
            for n, buckets_KF in zip(group, buckets_LKF, strict=True):
                found[n] = buckets_KF[: len(asked[n].candidates)]
        return [self._request(one, found[n]) for n, one in enumerate(asked)]

    def _placed(self, one: Shown) -> tuple[EvidenceIndex, tuple[np.ndarray, np.ndarray]]:
        """The index that knows a list's items, and the numbers of its history and candidates."""
        recent = one.history[-self.recipe.evidence.history :]
        strangers = [item for item in (*recent, *one.candidates) if item.stranger is not None]
        place = {id(item): self.seats.n_items + n for n, item in enumerate(strangers)}
        vectors = [item.vector_E for item in strangers if item.vector_E is not None]
        index = self.seats.seat(
            [item.stranger for item in strangers if item.stranger is not None],
            np.stack(vectors) if vectors else np.empty((0, 0), np.float32),
        )

        def numbers(items: Sequence[Item]) -> np.ndarray:
            found = [place[id(i)] if i.number is None else i.number for i in items]
            return np.array(found, np.int32)

        return index, (numbers(recent), numbers(one.candidates))

    def _request(self, one: Shown, buckets_KF: np.ndarray) -> Request:
        """A prompt's content from a list and its evidence."""
        recent = one.history[-self.recipe.evidence.history :]
        past = one.history[-self.recipe.prompt.history :]
        if not recent or any(item.stranger is not None for item in (*recent, *one.candidates)):
            buckets_KF[unknown(recent, one.candidates, self.seats.index.names)] = MISSING
        text_of = self.template.item_text
        described = [self._described(item) for item in past] if text_of else []
        return Request(
            np.array([item.codes for item in past], np.int32).reshape(-1, self.sids.levels),
            np.array([item.codes for item in one.candidates], np.int32),
            buckets_KF,
            tuple(text_of(*each) for each in described) if text_of else (),
            tuple(text_of(*self._described(i)) for i in one.candidates) if text_of else (),
            tuple(item_kind(*each) for each in described),
        )

    def _bought_at(self, one: Shown) -> int:
        """When the newest purchase was made, as far as the bundle knows this shopper."""
        newest = one.history[-1].number if one.history else None
        if one.user < 0 or newest is None:
            return UNDATED
        at = slice(*self.histories.offsets_U1[one.user : one.user + 2])
        found_N = np.flatnonzero(self.histories.items_N[at] == newest)
        if not len(found_N):
            return UNDATED
        # Of several purchases the one that ends this history, if any does.
        last = len(one.history) - 1
        last = last if last in found_N else found_N[-1]
        return int(self.histories.timestamps_N[at][last]) or UNDATED

    def _described(self, item: Item) -> tuple[Catalogue, int]:
        """A catalogue and the item's place in it; a stranger is a catalogue of its own."""
        if item.number is not None:
            return self.catalogue, item.number
        words = item.stranger
        assert words is not None
        path, nothing = [list(words.categories)], np.array([np.nan])
        return Catalogue([""], [words.title], [words.brand], path, nothing, [words.description]), 0


def features_of(
    index: EvidenceIndex,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    asked: Sequence[Shown],
    then_L: Sequence[int],
) -> np.ndarray:
    """Evidence (L, K, F) of lists by their items' numbers; shorter ones are padded.

    `then_L` are the times of their newest purchases; they are asked for now.
    """
    width = max(len(items_K) for _, items_K in parts)
    items_LK = np.full((len(parts), width), -1, np.int32)
    scores_LK = np.zeros((len(parts), width), np.float32)
    own_LKG = np.full((len(parts), width, len(index.own)), np.nan, np.float32)
    for n, ((_, items_K), one) in enumerate(zip(parts, asked, strict=True)):
        items_LK[n, : len(items_K)], scores_LK[n, : len(items_K)] = items_K, one.scores_K
        if one.own_KG is not None:
            own_LKG[n, : len(items_K)] = one.own_KG
    histories = ragged([history_H for history_H, _ in parts], index.pairs.n_items)
    bought = histories.lengths_U > 0
    histories.timestamps_N[histories.offsets_U1[1:][bought] - 1] = np.array(then_L)[bought]
    user_L = np.array([one.user for one in asked], np.int64)
    now_L = np.full(len(asked), int(time.time()))
    return index.features(histories, items_LK, scores_LK, user_L, own_LKG, now_L)
