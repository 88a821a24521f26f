"""Stage `probes`: what becomes of the ranking when the request is changed, on test lists.

Writes `probes.json`: `lengths` (lists of 1 to 100 candidates, the longer ones in windows, beside
the floor and the scorecard), `views` (several shuffled presentations averaged, with what they
cost), `faithfulness` (a cited field taken away) and `reliability` (are the chances so). Every
request is decoded as the recipe recommends, by the diffusion model; views and reliability by the AR
teacher, too. Times differ from run to run, so this file is no part of any bit-identity promise. A
template without strengths has no probes. Run: `diffgr2 probes RECIPE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, write_json
from diffgr2.candidates import kinds
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.lists import ranked_lists
from diffgr2.candidates.moments import moments_of
from diffgr2.candidates.retrieval import prefixes
from diffgr2.candidates.scorers import LinearScorer
from diffgr2.evaluate.calibration import calibration_error, chances
from diffgr2.evaluate.faithfulness import Removal, choose, faithfulness
from diffgr2.evaluate.metrics import MAIN, METRICS, values_of
from diffgr2.evaluate.outputs import stacked
from diffgr2.evaluate.significance import bootstrap_means, interval
from diffgr2.evaluate.verdict import DECIDES
from diffgr2.pipeline import StageContext
from diffgr2.prompts.english import NEITHER
from diffgr2.prompts.request import Request, request_at
from diffgr2.prompts.said import Reading, mean_reading, order_by_level
from diffgr2.rerank.readout import dealt
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.score import Model, decode_requests, test_rows
from diffgr2.streams import generator, permutation
from diffgr2.types import MISS

ROW = "cft_opd_rl"
MOST = 2
"""Fields of each sort that are taken away per list."""


@dataclass(frozen=True)
class Bench:
    """What every probe works with."""

    ctx: StageContext
    corpus: Corpus
    model: Model
    teacher: Model

    def read(self, requests: Sequence[Request], row: str = ROW) -> tuple[list[Reading], float]:
        """Decode with a row's model, processes in shares; and the seconds of one."""
        if not requests:
            return [], 0.0
        model, how = (self.model, "recommended") if row == ROW else (self.teacher, "ar")
        given: dict[str, Any] = {"batch": self.ctx.recipe.evaluate.batch, "together": True}
        decoded = decode_requests(self.corpus, model, requests, how, **given)
        return decoded.readings, decoded.seconds

    def means(self, values_LX: np.ndarray, *key: str | int) -> list[list[float]]:
        """The 95 % interval of each column's mean."""
        resamples = self.ctx.recipe.evaluate.bootstrap
        means_BX = bootstrap_means(values_LX, resamples, self.ctx.seed, "probes", *key)
        return [list(interval(means_B)) for means_B in means_BX.T]


def main_values(rank_L: np.ndarray, k: int) -> np.ndarray:
    """R@1 and NDCG@3 of each list."""
    return values_of(rank_L, k)[:, [METRICS.index(name) for name in MAIN]]


def target_rank(level_K: np.ndarray, hit: int) -> int:
    return int(np.flatnonzero(order_by_level(level_K) == hit)[0])


# ------------------------------------------------------------------------------------- lengths


def strengths(bench: Bench, requests: Sequence[Request]) -> list[np.ndarray]:
    """Strengths of each request's candidates, however many; one candidate is not decoded."""
    most = bench.ctx.recipe.candidates.k_max
    parts = [
        (number, places)
        for number, request in enumerate(requests)
        for places in dealt(np.arange(request.k), most)
        if request.k > 1
    ]
    levels = [np.zeros(r.k) if r.k == 1 else np.full(r.k, np.nan) for r in requests]
    readings, _ = bench.read([requests[number].taken(places) for number, places in parts])
    for (number, places), reading in zip(parts, readings, strict=True):
        levels[number][places] = reading.levels_K
    return levels


@dataclass(frozen=True)
class LongLists:
    """Test lists as long as the longest that is asked for, of the same retriever."""

    hit_L: np.ndarray
    rows: dict[int, Request]  # of the lists that some length needs
    scores: dict[int, np.ndarray]  # the scorecard's


def long_lists(bench: Bench, lengths: Sequence[int], most_lists: int) -> LongLists:
    """The longest list of every user that is needed; shorter ones are its beginnings."""
    corpus, inputs = bench.corpus, bench.ctx.inputs
    if corpus.recipe.lists.file is not None:
        return shops_lists(bench, lengths, most_lists)
    histories, test = corpus.dataset.histories, corpus.lists["test"]
    retriever = kinds.load(inputs["retriever"])
    given = (histories, retriever, "test", test.user_L, test.end_L)
    lists = ranked_lists(*given, max(lengths))
    needed = np.unique(np.concatenate([holding(lists.hit_L, n, most_lists) for n in lengths]))
    own = lists.take(needed)
    index = EvidenceIndex.load(inputs["evidence"])
    queries = prefixes(histories, own.user_L, own.end_L)
    # Rank and gap of a beginning are those of the whole, as all else is.
    given = (own.items_LK, own.scores_LK, own.user_L, None, moments_of(histories, own))
    features_LKF = index.features(queries, *given)
    buckets_LKF = index.buckets(features_LKF)
    score_LK = LinearScorer.load(inputs["evidence"] / "linear.safetensors").score(buckets_LKF)
    shown, texts = corpus.recipe.prompt.history, corpus.template.item_text
    codes_IL = corpus.sids.codes_IL
    requests = {
        int(row): request_at(own, at, corpus.dataset, codes_IL, buckets_LKF[at], shown, texts=texts)
        for at, row in enumerate(needed)
    }
    return LongLists(lists.hit_L, requests, dict(zip(needed.tolist(), score_LK, strict=True)))


def shops_lists(bench: Bench, lengths: Sequence[int], most_lists: int) -> LongLists:
    """The same of a shop's own lists, as far as they reach."""
    corpus, path = bench.corpus, bench.ctx.inputs["evidence"] / "scores_linear_test.safetensors"
    lists, score_LK = corpus.judged("test"), load_arrays(path)["score_LK"]
    whole_L = np.where(lists.length_L >= max(lengths), lists.hit_L, MISS)
    needed = np.unique(np.concatenate([holding(whole_L, n, most_lists) for n in lengths])).tolist()
    requests = {row: corpus.request("test", row) for row in needed}
    return LongLists(whole_L, requests, {row: score_LK[row] for row in needed})


def holding(hit_L: np.ndarray, n: int, most_lists: int) -> np.ndarray:
    """Lists whose first n candidates hold the target, the first `most_lists` of them."""
    return np.flatnonzero((hit_L != MISS) & (hit_L < n))[:most_lists]


def gain_over(bench: Bench, ranks: dict[str, np.ndarray], other: str, n: int) -> dict[str, Any]:
    """What the row gains over another on the same lists, by the metric that decides."""
    at = METRICS.index(DECIDES)
    gain_L1 = values_of(ranks[ROW], n)[:, [at]] - values_of(ranks[other], n)[:, [at]]
    (ends,) = bench.means(gain_L1, "lengths", n, ROW, other)
    return {"diff": float(gain_L1.mean()), "ci": ends}


def probe_lengths(bench: Bench) -> list[dict[str, Any]]:
    """Quality against the number of candidates."""
    config, histories = bench.ctx.recipe.evaluate, bench.corpus.dataset.histories
    room = histories.n_items - int(bench.corpus.lists["test"].end_L.max())
    if bench.corpus.recipe.lists.file is not None:  # nobody makes them longer
        room = int(bench.corpus.judged("test").length_L.max())
    lengths = sorted({n for n in config.list_lengths if n <= room})
    if not lengths:
        return []
    long, points = long_lists(bench, lengths, config.frontier_lists), []
    for n in lengths:
        rows = holding(long.hit_L, n, config.frontier_lists).tolist()
        if not rows:
            continue
        levels = strengths(bench, [long.rows[row].taken(np.arange(n)) for row in rows])
        answered = float(np.mean([not np.isnan(level_K).any() for level_K in levels]))
        by_row = {ROW: levels, "floor": [np.zeros(n)] * len(rows)}
        by_row["evidence"] = [long.scores[row][:n] for row in rows]
        ranks = {
            name: np.array([target_rank(*pair) for pair in zip(own, long.hit_L[rows], strict=True)])
            for name, own in by_row.items()
        }
        for name, rank_L in ranks.items():
            values_L2 = main_values(rank_L, n)
            r_ci, ndcg_ci = bench.means(values_L2, "lengths", n, name)
            point = {"length": n, "row": name, "n": len(rows)}
            point |= dict(zip(MAIN, values_L2.mean(0).tolist(), strict=True))
            point |= {"r_ci": r_ci, "ndcg_ci": ndcg_ci}
            if name == ROW:
                others = [other for other in ranks if other != ROW]
                point["vs"] = {other: gain_over(bench, ranks, other, n) for other in others}
            points.append(point | {"answered": answered if name == ROW else 1.0})
    return points


# --------------------------------------------------------------------------------------- views


def presentations(
    bench: Bench, requests: Sequence[Request], count: int, row: str
) -> tuple[list[list[Reading]], list[float]]:
    """Readings [view][list] in the requests' order, the first as it came, and seconds per view."""
    views, seconds = [], []
    bench.read(requests[:2], row)  # what only the first call costs is not timed
    for view in range(count):
        orders = [
            permutation(r.k, bench.ctx.seed, "probes", "view", number, view)
            if view
            else np.arange(r.k)
            for number, r in enumerate(requests)
        ]
        pairs = list(zip(requests, orders, strict=True))
        readings, spent = bench.read([request.taken(order) for request, order in pairs], row)
        seconds.append(spent)
        views.append([r.restored(order) for r, order in zip(readings, orders, strict=True)])
    return views, seconds


def probe_views(
    bench: Bench, readings: list[list[Reading]], seconds: list[float], hit_L: np.ndarray, row: str
) -> list[dict[str, Any]]:
    """What the mean of the first views gains over the first one."""
    points, spent, base_L2 = [], list(accumulate(seconds)), None
    for count in sorted({1, *bench.ctx.recipe.evaluate.views}):
        means = [mean_reading(own) for own in zip(*readings[:count], strict=True)]
        ranks = [target_rank(r.levels_K, hit) for r, hit in zip(means, hit_L, strict=True)]
        values_L2 = main_values(np.array(ranks), max(len(r.levels_K) for r in means))
        base_L2 = values_L2 if base_L2 is None else base_L2
        point: dict[str, Any] = {"views": count, "row": row, "n": len(hit_L)}
        point |= dict(zip(MAIN, values_L2.mean(0).tolist(), strict=True))
        if count > 1:
            found = bench.means(values_L2 - base_L2, "views", count, row)
            point |= {f"diff_{name}_ci": ends for name, ends in zip(MAIN, found, strict=True)}
        point["ms_per_list"] = 1000.0 * spent[count - 1] / len(hit_L)
        points.append(point)
    return points


# ---------------------------------------------------------------------------------- one reading


def probe_faithfulness(
    bench: Bench, requests: Sequence[Request], readings: Sequence[Reading]
) -> dict[str, Any]:
    """Cited fields and others taken away, one at a time."""
    template, removals = bench.corpus.template, list[Removal]()
    for number, (request, reading) in enumerate(zip(requests, readings, strict=True)):
        rng = generator(bench.ctx.seed, "probes", "faithfulness", number)
        side_KF = template.phrases.sides(request.buckets_KF)
        side_KF[template.untold(request)] = NEITHER  # taking it away would change nothing
        removals += choose(number, reading, side_KF, MOST, rng)
    changed = [
        replace(requests[r.list], buckets_KF=r.without(requests[r.list].buckets_KF))
        for r in removals
    ]
    moved = [
        replace(removal, after=float(reading.levels_K[removal.candidate]))
        for removal, reading in zip(removals, bench.read(changed)[0], strict=True)
    ]
    key = (bench.ctx.seed, "probes", "faithfulness")
    return faithfulness(moved, bench.ctx.recipe.evaluate.bootstrap, *key)


def reliability(row: str, readings: Sequence[Reading], hit_L: np.ndarray, scale: float) -> Any:
    """Chances against what was so."""
    said = [chances(reading.levels_K, scale) for reading in readings]
    chance_LK = stacked(said, max(map(len, said)), np.nan)
    found = calibration_error(chance_LK, hit_L)
    return {"row": row, "bins": [list(bin_) for bin_ in found.bins], "ece": found.error}


def run(ctx: StageContext) -> dict[str, Any]:
    corpus, config = open_corpus(ctx.inputs, ctx.recipe), ctx.recipe.evaluate
    if "said" not in corpus.template.answers:
        write_json(ctx.out / "probes.json", {})
        return {}
    bench = Bench(ctx, corpus, Model.open(ctx.inputs["block_rl"]), Model.open(ctx.inputs["rl"]))
    scales = read_json(ctx.inputs["calibrate"] / "calibration.json")
    rows = test_rows(corpus, "hit", config.frontier_lists)
    hit_L = corpus.judged("test").hit_L[rows]
    requests = [corpus.request("test", int(row)) for row in rows]
    # A recommended `ar` or `verify` states other chances than `block`.
    scale_of = {ROW: scales[ctx.recipe.decode.decoder], "ar": scales["teacher_ar"]}
    found: dict[str, Any] = {"lengths": [], "views": [], "faithfulness": {}, "reliability": []}
    for row, scale in scale_of.items():
        ctx.progress.line(f"{ctx.name}: views of {row}")
        readings, seconds = presentations(bench, requests, max(1, *config.views), row)
        found["views"] += probe_views(bench, readings, seconds, hit_L, row)
        found["reliability"].append(reliability(row, readings[0], hit_L, scale))
        if row == ROW:
            ctx.progress.line(f"{ctx.name}: faithfulness")
            found["faithfulness"] = probe_faithfulness(bench, requests, readings[0])
    ctx.progress.line(f"{ctx.name}: list lengths")
    found["lengths"] = probe_lengths(bench)
    write_json(ctx.out / "probes.json", found)
    moved = {name: round(part["moved"], 4) for name, part in found["faithfulness"].items()}
    answered = min((point["answered"] for point in found["lengths"]), default=1.0)
    return {"lists": len(rows), "answered": round(answered, 4), "moved": moved}
