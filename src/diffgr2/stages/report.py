"""The report of a run: collects what stands, hands it to `evaluate`, draws and writes.

Contract: `make_report(found)` reads only stages that stand for the run's recipe, so it works at
any point of the pipeline; rows and figures appear as their stages stand. It writes `<run>/report/`:
report.json, report.md, ids.json, recipe.json, ranks.safetensors (which list is which, where every
row puts what is wanted and what its output was worth: what `compare` and `seeds` read) and a PNG
per figure. Besides the rows,
report.json holds `speed` (all decoders and batch sizes of the timing run), `retriever` (its own
figures over all users), `rival` (the row to beat, and what chose it), `verdict` (what the run is
worth), `closing` (the three lines it ends with), `slices` (where the judged row gains) and `probes`
(list lengths, views, faithfulness, reliability). Not here: measuring and drawing (`evaluate`),
which figures there are (`drawing`), decoding (`score`).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, read_manifest, save_arrays, write_json
from diffgr2.data.columnar import texts_of
from diffgr2.evaluate import plots, probed
from diffgr2.evaluate.baselines import floor_order
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.results import (
    accounts_by_system,
    build_report,
    ranks_by_system,
    values_by_system,
)
from diffgr2.evaluate.tables import number, render_markdown, timings_table
from diffgr2.evaluate.trec import write_qrels, write_run
from diffgr2.stages import ties
from diffgr2.stages.drawing import figures_of, slices_of
from diffgr2.stages.judge import LAMBDAMART, meta_of
from diffgr2.stages.standing import Standing
from diffgr2.streams import key_of
from diffgr2.types import MISS


def make_report(found: Standing, command: str) -> tuple[dict[str, Any], list[Path]]:
    """Measure, draw, write: the report, and the files it was written to."""
    recipe, systems = found.recipe, found.systems
    made = {read_manifest(place)["versions"].get("commit", "") for place in found.places.values()}
    report = build_report(
        meta_of(recipe, command) | {"commits": sorted(made)},
        found.lists,
        systems,
        resamples=recipe.evaluate.bootstrap,
        seed=recipe.seed,
        truth_LK=found.truth,
        rival=found.rival.get("row"),
        parts=found.parts,
    )
    if recipe.lists.file is not None:
        report["own_lists"] = True
    if found.rival:
        report["rival"] = found.rival
    if found.verdict:
        report |= {"verdict": found.verdict, "closing": found.closing}
    if found.speed is not None:
        report["speed"] = found.speed["decoders"]
    if found.pace:
        report["pace"] = found.pace
    if "retriever" in found.stages:
        report["retriever"] = read_manifest(found.root / "retriever")["metrics"]
    if found.probes:
        report["probes"] = found.probes
    ranks = ranks_by_system(found.lists, systems, found.truth)
    if cut := slices_of(found):
        report["slices"] = cut
    figures = figures_of(found, report, ranks)
    text = render_markdown(report, [f"{name}.png" for name in figures]) + notes(found, report)
    text += probed.sections(found.probes)
    figures |= probed.figures(found.probes)

    out = found.root / "report"
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", report)
    (out / "report.md").write_text(text, encoding="utf-8")
    again = f"{command}; diffgr2 report runs/{recipe.name}"
    pictures = [
        plots.save_figure(plots.captioned(figure, again), out / f"{name}.png")
        for name, figure in figures.items()
    ]
    ranks |= identities(found) | values_by_system(found.lists, systems, found.truth)
    ranks |= accounts_by_system(systems)
    save_arrays(out / "ranks.safetensors", **ranks)
    write_json(out / "recipe.json", recipe.model_dump(mode="json"))
    write_json(out / "ids.json", read_json(found.root / "items" / "report.json"))
    return report, [out / "report.json", out / "report.md", *pictures, out / "ranks.safetensors"]


def identities(found: Standing) -> dict[str, np.ndarray]:
    """Per list a number of the request (user, moment, what came of it), one of its candidates and
    one of its person, by the data's own names: what lists of several runs are paired by. Every seed
    of the simulated shop is another shop, with other people."""
    lists, names = found.lists, found.dataset.catalogue.raw_ids
    users, wanted, shown, persons = found.dataset.raw_users, [], [], []
    data = found.recipe.data
    world = f"shop {found.recipe.seed}" if data.source == "shop" else ""
    moment_L = lists.moment if lists.moment is not None else np.full(len(lists), -1)
    for row in range(len(lists)):
        there_K, owner = lists.there_LK[row], int(lists.owner_L[row])
        items = [names[item] for item in lists.items_LK[row][there_K].tolist()]
        gains = lists.gains_LK[row][there_K].tolist()
        came = sorted(f"{item}={gain:g}" for item, gain in zip(items, gains, strict=True) if gain)
        if lists.gains is None and (target := int(lists.target_L[row])) != MISS:
            came = [names[target]]  # whether or not it is among the candidates
        who = users[owner] if 0 <= owner < len(users) else f"list owner {owner}"
        wanted.append(key_of(who, int(lists.end_L[row]), int(moment_L[row]), *came))
        shown.append(key_of(*items))
        persons.append(key_of(world, who))
    keys = {"list": wanted, "candidates": shown, "person": persons}
    result: dict[str, np.ndarray] = {n: np.array(k, np.int64) for n, k in keys.items()}
    if "same_day" in found.parts:
        result["same_day"] = found.parts["same_day"].astype(np.int8)
    return result


def notes(found: Standing, report: dict[str, Any]) -> str:
    """What the tables need to be read rightly."""
    lines = ["", "## Reading the rows", ""]
    about, k = report.get("retriever", {}), found.lists.k
    if "test_ndcg@10" in about:
        lines.append(
            f"- The lists are the retriever's ({found.recipe.retriever.kind}) own top {k}, in its "
            "order, so the row `floor` over all users is the retriever itself up to rank "
            f"{k}. Its own evaluation over the whole catalogue: R@10 "
            f"{number(about.get('test_r@10'))}, NDCG@10 {number(about['test_ndcg@10'])}."
            + searched_told(about)
        )
    lines += own_notes(found) or tie_notes(report)
    lines += [
        "- `oracle` puts the target first: a bound that no re-ranker can reach."
        if found.truth is None
        else "- `oracle` orders candidates by the true probabilities that the simulated shop draws "
        "from: no re-ranker can do better on average.",
        "- A plain name is the order of the strengths that the model states (of a template without "
        "strengths: its answer), `_written` the permutation that it writes after them, `_raw` that "
        "permutation under the papers' plain rule at τ = .9, invalid lists in floor order. Other "
        "rows use the recipe's recommended setting. `_direct` rows give no reasoning. `student_ar` "
        "is the last diffusion checkpoint decoded token by token.",
    ]
    if rival := report.get("rival"):
        lines.append(rival_told(rival))
    if pace := report.get("pace"):
        counted = pace.get("evidence_ms")  # none of the shop's own lists, whose fields came along
        lines.append(
            f"- Milliseconds per list are those of one list at a time on {pace['engine']}, from "
            "the request on: prompt, prefill, decoding, reading. The prompt's forward may be "
            "shared with the first of decoding: by itself it takes what `prefill by itself` says."
            + (f" Counting its evidence takes {counted:.2f} ms more." if counted else "")
        )
    if report.get("speed"):
        title = "## Speed, decoders taking turns in one run"
        lines += ["", title, "", timings_table(report["speed"])]
    return "\n".join(lines) + "\n"


def searched_told(about: dict[str, Any]) -> str:
    """What lists of an approximate search lack, nothing of an exact one."""
    if about.get("search") != "approximate":
        return ""
    name = next(key for key in about if key.startswith("search_recall@"))
    return (
        f" Lists are searched for in {about['search_probes']:,} of {about['search_cells']:,} parts "
        f"of the catalogue, where {about[name]:.2%} of the exact best {name.partition('@')[2]} "
        "are, by queries that did not choose how many."
    )


def rival_told(rival: dict[str, Any]) -> str:
    """Which row is to be beaten, and by what it was chosen."""
    line = (
        f"- The rival is `{rival['row']}`: of the scorers without a language model the one with "
        f"the best {rival['metric'].upper()} on {rival['n']:,} lists of selection users, which "
        "train nothing. `lambdamart` is LightGBM on the raw values of what prompts show."
    )
    if LAMBDAMART not in rival["values"]:
        line += (
            " Here it is left out: LightGBM was not installed (`pip install 'diffgr2[lambdamart]'`,"
            " then `diffgr2 rival RECIPE`)."
        )
    return line


def tie_notes(report: dict[str, Any]) -> list[str]:
    """What rows about time and ids mean."""
    order = {
        "file": "in the order of the file, which on Amazon's files is that of the ids",
        "none": "as the shop sold",
    }.get(report["tie_order"], f"shuffled ({report['tie_order']})")
    return [
        f"- Purchases at one time are {order}. `{ties.ID_ABOVE}` learns nothing: candidates whose "
        "id sorts above that of the last bought item come first. Where it gains, the order of "
        "equal times is the alphabet, and a model may have read it.",
        "- `evidence_before` is the scorecard with evidence from strictly before each target's "
        "moment; the other rows' evidence counts the whole train part, of which some is later.",
    ]


def own_notes(found: Standing) -> list[str]:
    """What is to be known of lists that are the shop's own, and of counts at their moments."""
    if found.recipe.lists.file is None:
        return []
    config, lines = found.recipe.lists, []
    told = read_manifest(found.root / "candidates")["metrics"]
    how = {"list": "by list", "time": "by time", "user": "by user"}[config.split]
    fold = f" (fold {config.fold} of {config.folds})" if config.folds else ""
    lines.append(
        f"- The lists are the shop's own ({Path(config.file or '').name}), split {how}{fold}: "
        f"{told['train_lists']} train, {told['validation_lists']} validation, "
        f"{told['test_lists']} test. `floor` is the shop's order. A list counts as a hit where "
        "something came of it; `r@n`, `ndcg@n` and `mrr` count every outcome by its gain "
        f"({', '.join(f'{name} {gain:g}' for name, gain in config.gains.items())})."
    )
    if config.point_in_time and "evidence" in found.stages:
        counts = read_manifest(found.root / "evidence")["metrics"]
        later, now = (counts.get(f"validation_{kind}linear_ndcg@3") for kind in ("untimed_", ""))
        lines.append(
            "- Evidence counts only what lies strictly before each list's moment. With counts that "
            f"know what came later, {counts['validation_buckets_moved']:.1%} of the values would "
            f"stand in another bucket, and the scorecard would reach NDCG@3 {number(later)} on "
            f"validation lists instead of {number(now)}."
        )
    return lines


def write_trec(found: Standing, out: Path) -> list[Path]:
    """A TREC run per row and the qrels, with raw ids."""
    out.mkdir(parents=True, exist_ok=True)
    users, items = found.dataset.raw_users, found.dataset.catalogue.raw_ids
    lists, names = found.lists, found.root / "candidates" / "names_test.safetensors"
    if names.is_file():  # a user may have several lists: they go by their own names
        users = texts_of("name", load_arrays(names))
        lists = replace(lists, user_L=np.arange(len(lists), dtype=np.int32))
    paths = [out / "qrels.txt"]
    write_qrels(paths[0], lists, users, items)
    floor_LK = floor_order(len(lists), lists.k, lists.length_L)
    for outputs in (SystemOutputs("floor", floor_LK, len(lists)), *found.systems):
        paths.append(out / f"{outputs.name}.run")
        write_run(paths[-1], lists, outputs, users, items)
    return paths
