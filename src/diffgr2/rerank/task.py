"""One ranking on its way: decodes out, responses in, a permutation at the end.

Contract: `RankTask.pending()` hands out the decodes that may begin now, each once and with its
number; `take()` brings a response back; `result()` is the ranking once all were taken and nothing
is pending. A said answer hands out all windows of all views at once, in any order they may come
back; a written one goes window by window. Evidence is counted once, on the whole list as it came,
so strengths of different windows compare as they stand. One candidate needs no decode, and without
any history or value of the shop's own there is nothing to judge by: such a list stays as it came.
What cannot be judged is never shown, and the shop's rules come last (`rules`). Whoever decodes may
batch many tasks, and may call these on any thread, one at a time. Not here: resolving what was
asked (`names`, `brought`, `reranker`), decoding (`decode`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffgr2.decode.settings import DecodeRequest
from diffgr2.evaluate.calibration import chances
from diffgr2.prompts.account import account, bold, labels, moves_lines
from diffgr2.prompts.answers import POLICIES
from diffgr2.prompts.english import wording
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.request import Request
from diffgr2.prompts.said import Reading, mean_reading, order_by_level
from diffgr2.rerank.decisions import Decision, decisions_of, merged
from diffgr2.rerank.names import Item
from diffgr2.rerank.readout import Ways, dealt, sliding, view_of
from diffgr2.rerank.result import RankResult, Telling
from diffgr2.rerank.rules import Moved, Placing
from diffgr2.rerank.world import Shown, World
from diffgr2.types import Trajectory


@dataclass(frozen=True)
class Query:
    """One request, resolved."""

    history: list[Item]
    candidates: list[Item]
    named: list[Any]  # the candidates as the caller named them
    scores_N: np.ndarray
    user: int  # dense number, -1 unknown
    own_NG: np.ndarray | None = None  # what came with them, NaN missing
    rules: Placing | None = None
    warnings: tuple[str, ...] = ()

    @property
    def shown(self) -> Shown:
        """What a prompt may show of it."""
        return Shown(self.history, self.candidates, self.scores_N, self.user, self.own_NG)

    @property
    def silent(self) -> bool:
        """Nothing is there to judge by: no purchases, and no values of the shop's own."""
        return not self.history and (self.own_NG is None or bool(np.isnan(self.own_NG).all()))

    @property
    def placing(self) -> Placing:
        """Whom the model judges, and what the shop does to its ranking."""
        return self.rules or Placing(len(self.candidates))


@dataclass
class Part:
    """One decode: the places of the list that it shows, and its response."""

    places: np.ndarray
    request: Request
    trajectory: Trajectory | None = None

    @property
    def tokens(self) -> list[int]:
        assert self.trajectory is not None, "the ranking is not complete"
        return self.trajectory.tokens_T.tolist()


class RankTask:
    """One ranking on its way, for callers that decode themselves (`Reranker.prepare` makes it)."""

    def __init__(
        self,
        world: World,
        query: Query,
        ways: Ways,
        *,
        reasoning: bool,
    ) -> None:
        self.world, self.query, self.settings = world, query, ways.settings
        self.read_out, self.stream = ways.read_out, ways.stream
        self.reasoning, read_out, stream = reasoning, ways.read_out, ways.stream
        self.placing = query.placing
        judged_J = np.array(self.placing.judged, np.int64)
        n, k = len(judged_J), world.k_max
        self.order = judged_J  # of the judged alone; the rules come last
        self.parts: list[Part] = []  # handed out so far
        self._said: list[np.ndarray] = []  # places of decodes to hand out
        self._written: list[tuple[int, int]] = []  # windows of `order`, the next one last
        self.blank = len(query.candidates) > 1 and query.silent
        if n > 1 and not self.blank and read_out.answer == "said":
            views = [view_of(n, view, stream) for view in range(read_out.views)]
            self._said = [judged_J[at] for order_J in views for at in dealt(order_J, k)]
        elif n > 1 and not self.blank:
            self._written = sliding(n, k)[::-1]
        self.n_windows = len(self._written) + len(self._said) // read_out.views
        whole = len(query.candidates)
        self._readings = [
            Reading(np.full(whole, np.nan), ((),) * whole) for _ in range(max(1, read_out.views))
        ]
        self._failures: dict[str, None] = {}  # kinds, in the order in which they were met
        self._valid, self._repaired, self._fallback = True, False, False
        self._prompt_tokens = self._reasoning_tokens = 0

    @cached_property
    def whole(self) -> Request:
        """The content of a prompt that would show the whole list as it came."""
        return self.world.requests([self.query.shown])[0]

    @property
    def complete(self) -> bool:
        """Nothing is to hand out or to come back."""
        open_ = any(part.trajectory is None for part in self.parts)
        return not (self._said or self._written or open_)

    # ------------------------------------------------------------------------------ decodes

    def pending(self) -> list[tuple[int, DecodeRequest]]:
        """The decodes that may begin now, each once and with its number."""
        fresh, self._said = self._said, []
        if self._written and all(part.trajectory is not None for part in self.parts):
            fresh = [self.order[slice(*self._written[-1])]]
        return [self._begin(places) for places in fresh]

    def _begin(self, places: np.ndarray) -> tuple[int, DecodeRequest]:
        number, request = len(self.parts), self.whole.taken(places)
        self.parts.append(Part(places.copy(), request))
        template, reasoning = self.world.template, self.reasoning
        prompt = template.prompt(request, reasoning=reasoning)
        grammar = template.grammar(request, reasoning=reasoning, answer=self.read_out.answer)
        self._prompt_tokens += len(prompt)
        stream = self.stream if number == 0 else (*self.stream, number)
        return number, DecodeRequest(prompt, grammar, stream)

    def take(self, number: int, trajectory: Trajectory) -> None:
        """The response to the decode of this number."""
        part = self.parts[number]
        part.trajectory = trajectory
        template, tokens = self.world.template, part.tokens
        if self.reasoning:
            self._reasoning_tokens += template.answer_start(tokens)
        if not isinstance(template, Gr2):
            reading = template.read(tokens, part.request, trajectory.level_T)
            self._note(number, part.places, reading)
        if self.read_out.answer == "written":
            self._place(part)
        elif self.complete:
            levels_N, judged_J = self.reading.levels_K, np.array(self.placing.judged)
            self.order = judged_J[order_by_level(levels_N[judged_J])]

    def _note(self, number: int, places: np.ndarray, reading: Reading) -> None:
        """What a window says goes to its places of the list."""
        said = self.read_out.answer == "said"
        view = number // self.n_windows if said else 0
        whole = self._readings[view]
        cites = list(whole.cites)
        for shown, place in enumerate(places.tolist()):
            whole.levels_K[place] = reading.levels_K[shown]
            cites[place] = reading.cites[shown]
        self._readings[view] = Reading(whole.levels_K, tuple(cites))
        if said and not reading.complete:
            trajectory = self.parts[number].trajectory
            kind = "missing" if trajectory is not None and trajectory.finished else "overlong"
            self._fail((kind,), useless=bool(np.isnan(reading.levels_K).all()))

    def _place(self, part: Part) -> None:
        """A written answer settles its window of the order."""
        start, end = self._written.pop()
        policy, k = self.world.recipe.decode.repair, end - start
        answer = self.world.template.parse(part.tokens, part.request)
        if not answer.valid:
            floor = policy == "floor" or not any(0 <= place < k for place in answer.order)
            self._fail(answer.failures, useless=floor)
        self.order[start:end] = part.places[POLICIES[policy](answer.order, k)]

    def _fail(self, failures: Sequence[str], *, useless: bool) -> None:
        self._valid = False
        self._fallback |= useless
        self._repaired |= not useless
        self._failures |= dict.fromkeys(failures)

    # ------------------------------------------------------------------------------- result

    @property
    def reading(self) -> Reading:
        """What all windows and views say of the list as it came."""
        return mean_reading(self._readings) if len(self._readings) > 1 else self._readings[0]

    @property
    def levels(self) -> np.ndarray:
        """Strengths as ties are told: what batching does to the last digits shows nowhere."""
        return np.round(self.reading.levels_K, 4)

    def arranged(self) -> tuple[list[int], dict[int, Moved]]:
        """The answer's order, as positions of the list that came, and whom rules moved."""
        ranked_J, boosts = self.order, self.placing.boosts
        if boosts:
            ranked_J = ranked_J[np.argsort(-self._boosted(ranked_J.tolist()), kind="stable")]
        return self.placing.arranged(ranked_J.tolist())

    def _boosted(self, order: list[int]) -> np.ndarray:
        """Strengths with their boosts, along an order; who was not judged counts as the weakest."""
        levels_N = self.levels
        known = levels_N[~np.isnan(levels_N)]
        lowest = known.min() if len(known) else 0.0
        boost_M = np.array([self.placing.boosts.get(at, 0.0) for at in order])
        return np.round(np.where(np.isnan(levels_N), lowest, levels_N)[order] + boost_M, 4)

    def _scores(self, order: list[int]) -> tuple[np.ndarray, float | None]:
        """Falling along the order, and the chance of the first place by the model alone."""
        n, first = len(order), order[0]
        if self.read_out.answer == "written":  # free text has no scale: it states no strengths
            return 1.0 - np.arange(n) / n, None
        scale = self.world.scales[self.settings.decoder] if n > 1 else 1.0
        if self.placing.plain:
            scores_N = chances(self.levels, scale, self.order)[self.order]
            return scores_N, None if self.blank else float(scores_N[0])
        alone_N = chances(self.levels[sorted(order)], scale)
        judged = first not in self.placing.kept and not self.blank and (self.parts or n == 1)
        sure = float(alone_N[sorted(order).index(first)]) if judged else None
        # Who was moved up counts as much as the next behind, then all make one again.
        along_N = chances(self._boosted(order), scale, np.arange(n))
        return chances(np.log(along_N), 1.0, np.arange(n)), sure

    def english(self, *, markdown: bool = False) -> str:
        """The reasoning for people: one account of the whole list, or the model's own words."""
        world, template, query = self.world, self.world.template, self.query
        names = [world.names.title(item) for item in query.candidates]
        order, moved = self.arranged()
        moves = self.placing.moves(moved)
        if self.blank or isinstance(template, Gr2):
            words = wording("compact")
            called = labels(words, names, len(names), markdown=markdown)
            lines = moves_lines(words, moves, called)
            if isinstance(template, Gr2) and not self.blank:
                lines = [self._told(template, names, markdown=markdown), *lines]
                return "\n\n".join(line for line in lines if line)
            stays = words["as_it_came_else" if lines else "as_it_came"]
            return " ".join([words["history_none"], *lines, stays])
        shown = query.history[-world.recipe.prompt.history :]
        return account(
            template.words,
            template.phrases,
            self.whole,
            self.reading,
            order,
            template.vocab.spec.strengths,
            names,
            [world.kind(item) for item in shown],
            [world.names.title(item) for item in shown],
            markdown=markdown,
            moves=moves,
        )

    def _told(self, template: Gr2, names: list[str], *, markdown: bool) -> str:
        """Free text, a part per window; the last window decided the top, so it comes first."""
        called = [bold(name) for name in names] if markdown else names
        if not self.parts:
            return wording("compact")["only"].format(first=called[0]) if len(names) == 1 else ""
        told = [
            template.english(part.tokens, part.request, [called[place] for place in part.places])
            for part in self.parts
        ]
        return "\n\n".join(told[::-1])

    def _decisions(self) -> list[Decision] | None:
        """Of every candidate of the list as it came; free text decides nothing to be told apart."""
        template = self.world.template
        if isinstance(template, Gr2):
            return None
        found: list[list[Decision]] = [[] for _ in self.query.candidates]
        for part in self.parts:
            assert part.trajectory is not None
            decided = decisions_of(template, part.request, part.trajectory)
            for shown, decision in decided.items():
                found[int(part.places[shown])].append(decision)
        written = self.read_out.answer == "written"  # there, a later window overrules
        return [merged(some[-1:] if written else some) for some in found]

    def result(self, *, return_reasoning: Telling = False, top_k: int | None = None) -> RankResult:
        """The ranking; all windows must have been taken."""
        assert self.complete, "the ranking is not complete"
        order, moved = self.arranged()
        assert sorted({*order, *self.placing.excluded}) == list(range(self.placing.n)), "no ranking"
        head = order if top_k is None else order[:top_k]
        scores, sure = self._scores(order)
        levels_N, markdown = self.levels, return_reasoning == "markdown"
        decisions = self._decisions() if self.settings.details else None
        runs = tuple(part.trajectory for part in self.parts if part.trajectory is not None)
        return RankResult(
            order=tuple(head),
            items=tuple(self.query.named[i] for i in head),
            scores=tuple(scores[: len(head)].tolist()),
            levels=tuple(None if np.isnan(levels_N[i]) else float(levels_N[i]) for i in head),
            sure=sure,
            valid=self._valid,
            repaired=self._repaired,
            fallback=self._fallback,
            identity=order == sorted(order),
            failures=tuple(self._failures),
            reasoning=self.english(markdown=markdown) if return_reasoning else None,
            raw=tuple(self.world.vocab.decode(run.tokens_T.tolist()) for run in runs),
            trajectories=runs,
            decode=self._cost(runs),
            decisions=None if decisions is None else tuple(decisions[i] for i in head),
            placed=tuple(moved.get(i) for i in head),
            warnings=self.query.warnings,
        )

    def _cost(self, runs: Sequence[Trajectory]) -> dict[str, Any]:
        """How it was decoded, and what that took."""
        tokens, forwards = sum(len(run.tokens_T) for run in runs), sum(run.nfe for run in runs)
        return {
            "decoder": self.settings.decoder,
            "rule": self.settings.rule,
            "threshold": self.settings.threshold,
            "answer": self.read_out.answer,
            "views": self.read_out.views,
            "windows": self.n_windows,
            "prompt_tokens": self._prompt_tokens,
            "tokens": tokens,
            "reasoning_tokens": self._reasoning_tokens,
            "forwards": forwards,
            "tokens_per_forward": round(tokens / forwards, 3) if forwards else 0.0,
        }


def write_together(tasks: Sequence[RankTask]) -> None:
    """Count the evidence of many tasks of one bundle at once; `pending` then has it."""
    asked = [task for task in tasks if task._said or task._written]
    if len(asked) > 1:
        requests = asked[0].world.requests([task.query.shown for task in asked])
        for task, request in zip(asked, requests, strict=True):
            task.whole = request
