"""The proof that the text path is real: what a run on a small language model has learned.

    python benchmarks/text_base.py RUN [--random RUN2] [--examples FILE] [--out FILE]

Contract: RUN stands up to `cft`; what stands of its rows is read through the functions of the
report, so nothing is counted twice. Written are: `masked`, the masked accuracy of `cft` and of the
unconverted `convert` against guessing by position (`text_masked`; the teacher's responses for
validation lists of selection users are kept in RUN/text_base and not decoded again as long as the
teacher is the same); `curves`, the loss of `sft` and `cft` at a few steps, each the mean over a
window, of RUN and of RUN2 (random weights of the same shape); `rows`, the test lists that hold
their target: R@1, NDCG@3 and NDCG@10 with 95 % intervals, validity, coherence, tokens per forward,
beside chance (`random`), the list's order (`floor`) and what taught it; `reached`, what the run
does not reach, in words. `--only masked,curves` leaves the rows out. Not here: training, and
milliseconds (`engines`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from text_masked import STATES, Cases, cases_of, masked_accuracy

from diffgr2.artifacts import read_manifest, write_json
from diffgr2.cli import runs
from diffgr2.errors import ArtifactError, ConfigError, Diffgr2Error
from diffgr2.pipeline import STANDS

PARTS = ("masked", "curves", "rows")
MODELS = ("convert", "cft")
CURVES = ("sft", "cft")
WORDS = ("floor", "random", "oracle", "evidence", "tutor", "lambdamart")
"""Rows without a language model that stand beside the decoded ones."""

METRICS = ("r@1", "ndcg@3", "ndcg@10")
KEPT = ("raw_valid", "coherent", "contradictions", "evidence_true", "tpf", "forwards", "n_decoded")
KEPT += ("failures", "same_as_ar", "vs_floor", "vs_ar", "meta")
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def curve_of(lines: Sequence[Mapping[str, Any]], window: int = 20) -> list[dict[str, Any]]:
    """The losses and accuracies at POINTS of the steps: means over the window of steps there.

    A window lies around its step and is cut where the training begins and ends; means of a part
    are over the steps that had it.
    """
    result, n = [], len(lines)
    names = sorted({k for line in lines for k in line if k.split("/")[-1] in ("loss", "accuracy")})
    wide = max(1, min(window, n // len(POINTS)))
    for point in POINTS if n else ():
        at = round(point * (n - 1))
        start = min(max(at - wide // 2, 0), n - wide)
        part = lines[start : start + wide]
        values = {name: [line[name] for line in part if name in line] for name in names}
        means = {name: round(sum(v) / len(v), 6) for name, v in values.items() if v}
        result.append({"step": int(lines[at]["step"]), "steps": len(part), **means})
    return result


def log_of(root: Path, stage: str) -> list[dict[str, Any]]:
    """A stage's metrics by step; [] where it did not train."""
    path = root / stage / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def curves(root: Path, random: Path | None) -> list[dict[str, Any]]:
    """Rows: stage, weights (`base` or `random`), step and what was measured there."""
    places = {"base": root} | ({"random": random} if random else {})
    return [
        {"stage": stage, "weights": weights, **point}
        for stage in CURVES
        for weights, place in places.items()
        for point in curve_of(log_of(place, stage))
    ]


def cases_at(run: runs.Run, corpus: Any, lists: int) -> Cases:
    """The teacher's responses, decoded once per teacher and number of lists."""
    made = read_manifest(run.root / "rl")["key"][:12]
    path = run.root / "text_base" / f"cases-{made}-{lists}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        places = (run.root / "rl", run.root / "distill")
        batch = run.recipe.evaluate.batch
        cases_of(corpus, *places, lists=lists, batch=batch).save(path)
    return Cases.load(path)


def masked(run: runs.Run, corpus: Any, lists: int, batch: int) -> dict[str, Any]:
    """Masked accuracy before and after conversion fine-tuning."""
    cases = cases_at(run, corpus, lists)
    given: Any = {"pad_id": corpus.vocab.pad_id, "batch": batch, "seed": run.recipe.seed}
    return {name: masked_accuracy(cases, run.root / name, **given) for name in MODELS}


def rows(found: Any) -> list[dict[str, Any]]:
    """What the report says of the test lists that hold their target, measured by its functions."""
    from diffgr2.evaluate.results import build_report
    from diffgr2.evaluate.tables import rows_of

    recipe = found.recipe
    report = build_report(
        {},
        found.lists,
        found.systems,
        resamples=recipe.evaluate.bootstrap,
        seed=recipe.seed,
        rival=found.rival.get("row"),
    )
    result = []
    for row in rows_of(report, "hit"):
        if row["name"] not in WORDS and "raw_valid" not in row:
            continue
        kept = {"name": row["name"], "n": row["n"]}
        kept |= {"metrics": {m: row["metrics"][m] for m in METRICS}}
        named = (*METRICS, "raw_valid", "coherent", "tpf")
        kept |= {"ci": {m: row["ci"][m] for m in named if m in row["ci"]}}
        result.append(kept | {key: row[key] for key in KEPT if key in row})
    return result


def reached(report: Mapping[str, Any], taught_by: str) -> list[str]:
    """What is not reached, a sentence each; only from figures of the report."""
    lines: list[str] = []
    for part, values in report.get("masked", {}).get("cft", {}).get("states", {}).items():
        for kind, one in values.items():
            if one["ci"][0] <= 0:
                lines.append(f"cft, {part}, {kind}: not above guessing by position.")
    by_name = {row["name"]: row for row in report.get("rows", ())}
    tutor = by_name.get(taught_by)
    for name, row in by_name.items():
        if name in WORDS:
            continue
        for metric in METRICS:
            value, low = row["metrics"][metric], row.get("vs_floor", {}).get(metric, [1.0])[0]
            if low <= 0:
                lines.append(f"{name}: {metric} not shown to be above the list's own order.")
            if tutor and value < tutor["metrics"][metric]:
                lines.append(
                    f"{name}: {metric} {value:.3f} below what taught it, "
                    f"{taught_by} {tutor['metrics'][metric]:.3f}."
                )
        for key in ("raw_valid", "coherent"):
            if row.get(key, 1.0) < 1.0:
                lines.append(f"{name}: {key} {row[key]:.3f}.")
    return lines


def tables(report: Mapping[str, Any]) -> str:
    """The report for the terminal."""
    from diffgr2.evaluate.tables import at, interval_at, markdown_table

    parts = []
    if "masked" in report:
        flat = [
            {"model": name, "state": state, "part": part, **one}
            for name, found in report["masked"].items()
            for state in STATES
            for part, one in found["states"][state].items()
        ]
        columns: Any = [(name, at(name)) for name in ("model", "state", "part", "tokens")]
        columns += [("right", at("right", 3)), ("by position", at("floor", 3))]
        columns += [("difference, 95 %", interval_at("ci"))]
        parts.append(markdown_table(flat, columns))
    if report.get("curves"):
        named = ("stage", "weights", "step", "loss", "reasoning/loss", "answer/loss")
        columns = [(name, at(name)) for name in named]
        columns += [(name, at(name)) for name in ("reasoning/accuracy", "answer/accuracy")]
        parts.append(markdown_table([dict(row) for row in report["curves"]], columns))
    if "rows" in report:
        columns = [("row", at("name")), ("n", at("n"))]
        for m in METRICS:
            columns += [(m.upper(), at(f"metrics.{m}")), ("95 %", interval_at(f"ci.{m}"))]
        columns += [("valid", at("raw_valid", 3)), ("coherent", at("coherent", 3))]
        columns += [("TPF", at("tpf", 2))]
        parts.append(markdown_table(report["rows"], columns))
    return "\n\n".join([*parts, *report.get("reached", ())])


def needed(parts: Sequence[str]) -> list[str]:
    """Stages that have to stand."""
    return ["distill", "cft"] if {"masked", "curves"} & {*parts} else ["evidence"]


def examples(found: Any, count: int) -> str:
    """Worked examples; before each what the model read and wrote, word for word."""
    from diffgr2.stages.examples import MODELS as WRITERS
    from diffgr2.stages.examples import worked_examples

    text = worked_examples(found, count)
    stage = found.last(tuple(WRITERS))
    return text + "\n" + verbatim(found, stage, WRITERS[stage], count)


def verbatim(found: Any, stage: str, how: str, count: int) -> str:
    """Prompt and response of the examples' lists as the tokenizer spells them."""
    import numpy as np

    from diffgr2.streams import generator

    hits = np.flatnonzero(found.corpus.judged("test").hit_L >= 0)
    rng = generator(found.recipe.seed, "examples")  # the lists of `worked_examples`
    chosen = np.sort(rng.choice(hits, min(count, len(hits)), replace=False))
    decoded = found.decoded(stage, chosen, how)
    lines = ["# Word for word", ""]
    for n, (asked, text) in enumerate(zip(decoded.prompts, decoded.trajectories, strict=True), 1):
        spelled = found.corpus.vocab.decode([*asked.prompt, *text.tokens_T.tolist()])
        lines += [f"## Example {n}", "", "```", spelled, "```", ""]
    return "\n".join(lines)


def parts_of(text: str) -> list[str]:
    wanted = text.split(",")
    if strange := [part for part in wanted if part not in PARTS]:
        raise ConfigError(f"--only {strange[0]}: expected {', '.join(PARTS)}")
    return wanted


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a run's directory")
    parser.add_argument("--random", type=Path, help="a run with random weights of the same shape")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--lists", type=int, default=1000, help="masked: at most; 0 = all")
    parser.add_argument("--batch", type=int, default=32, help="masked: rows of one forward")
    parser.add_argument("--examples", type=Path, help="file for worked examples")
    parser.add_argument("--count", type=int, default=3, help="how many of them")
    parser.add_argument("--out", type=Path, default=Path("results/text_smol.json"))
    given = parser.parse_args(arguments)
    wanted, run = parts_of(given.only), runs.open_report(given.run, None, None)
    runs.set_threads(run.recipe)
    states = run.runner().survey(needed(wanted))
    if missing := [name for name in needed(wanted) if states[name] != STANDS]:
        raise ArtifactError(
            f"{run.root}: {missing[0]} does not stand (run: diffgr2 run {run.named})"
        )
    report = made(run, given, wanted)
    print(tables(report), flush=True)
    write_json(given.out, report)
    return 0


def made(run: runs.Run, given: Any, wanted: Sequence[str]) -> dict[str, Any]:
    """The whole report; worked examples on the way, if asked for."""
    from diffgr2.evaluate.results import rounded
    from diffgr2.stages.judge import meta_of, row_of, teaches
    from diffgr2.stages.standing import Standing

    found = Standing.of(run.runner(), run.named)
    command = f"python benchmarks/text_base.py {given.run} --lists {given.lists}"
    command += f" --random {given.random}" if given.random else ""
    report: dict[str, Any] = meta_of(run.recipe, command) | {"seed": run.recipe.seed}
    if "masked" in wanted:
        report["masked"] = masked(run, found.corpus, given.lists, given.batch)
    if "curves" in wanted:
        report["curves"] = curves(run.root, given.random)
    if "rows" in wanted:
        report["rows"] = rows(found)
    taught_by = row_of(teaches(run.recipe), run.recipe.evidence.scorer)
    report["reached"] = reached(report, taught_by)
    if given.examples:
        given.examples.parent.mkdir(parents=True, exist_ok=True)
        given.examples.write_text(examples(found, given.count), encoding="utf-8")
    return rounded(report)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Diffgr2Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
