"""A bundle's README.md: the model card, with front matter as model hubs read it.

Contract: `card(…)` fills `model_card.md` in; the front matter is YAML whatever names hold, and its
`model-index` are rows of the report (`judge.rows_of_verdict`) with their n and intervals. A bundle
that nobody judged has a card without figures. Paths of this machine are left out. Not here: the
verdict (`judge`), writing (`pack`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from diffgr2.artifacts import read_json, read_manifest
from diffgr2.config import DECODERS, Recipe
from diffgr2.errors import ArtifactError
from diffgr2.evaluate.tables import NAMES, OWN_NAMES, at, markdown_table, number
from diffgr2.stages.judge import data_of

TEMPLATE = Path(__file__).with_name("model_card.md")
SHOWN = ("ndcg@10", "ndcg@3", "r@1")
RUN = "run.json"  # what the command line leaves beside the stages

Rows = Sequence[Mapping[str, Any]]


def card(
    recipe: Recipe,
    model: str,
    counts: Mapping[str, int],
    verdict: Mapping[str, Any] | None,
    rows: Rows,
    made: Mapping[str, str],
    *,
    diffusion: bool,
) -> str:
    """The model card; `counts` are items, users and interactions, `made` how it came to be."""
    decode = recipe.decode
    decoder = decode.decoder if diffusion else "ar"
    setting = ""
    if decoder == "block":
        setting = f" with accept rule `{decode.accept}`, τ = {decode.threshold:g}, `{decode.rule}`"
    setting += f"; read-out `{decode.answer}`, views: {decode.views}"
    decoders = ", ".join(f"`{name}`" for name in DECODERS if diffusion or name == "ar")
    facts = {"recipe": recipe, "model": model, "decoders": decoders, **counts, **made}
    facts |= {"decoder": decoder, "setting": setting, "data": told(recipe)}
    facts["ranker"] = "its own ranker" if recipe.lists.file else "this retriever"
    facts["verdict"] = "Not judged: no test list holds its target."
    if verdict:
        lines = [f"- {line}" for line in verdict["lines"]]
        if failing := verdict["worse_than"]:
            worse = f"**Worse than its {' and its '.join(failing)}**: the server wants `--force`."
            lines = [worse, "", *lines]
        facts["verdict"] = "\n".join([*lines, "", *tables(rows, own=verdict["own_lists"])])
    front = front_matter(recipe, verdict, rows, diffusion=diffusion)
    return f"---\n{front}---\n{TEMPLATE.read_text(encoding='utf-8').format(**facts)}"


def told(recipe: Recipe) -> str:
    """The data's name on one line."""
    return " ".join(data_of(recipe)[0].split())


def front_matter(
    recipe: Recipe, verdict: Mapping[str, Any] | None, rows: Rows, *, diffusion: bool
) -> str:
    """What hubs read, as YAML."""
    shop = recipe.data.source == "shop"
    name = "simulated-shop" if shop else Path(told(recipe).partition(": ")[2]).stem
    kind = "block-diffusion" if diffusion else "autoregressive"
    # Whoever trained on data of their own says what may be done with it.
    licence = (
        {"license": "apache-2.0"} if shop else {"license": "other", "license_name": "not-said"}
    )
    values = {
        **licence,
        "language": "en",
        "library_name": "diffgr2",
        "pipeline_tag": "text-ranking",
        "tags": ["re-ranking", "recommendation", "reasoning", kind, "diffgr2"],
        "datasets": [re.sub(r"[^\w.-]+", "-", name).strip("-") or "unnamed"],
    }
    if verdict:
        mine = [row for row in rows if row["name"] == verdict["row"]]
        results = [_result(row, told(recipe), verdict["split"]) for row in mine]
        index = {"name": recipe.name, "results": results}
        values |= {"metrics": [*SHOWN], "model-index": [index]}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def _result(row: Mapping[str, Any], data: str, split: str) -> dict[str, Any]:
    """A row of the report as hubs write it."""
    args = {"population": row["population"], "n": row["n"]}
    metrics = [
        {
            "type": metric,
            "name": metric.upper(),
            "value": row["metrics"][metric],
            "args": {"confidence_interval_95": [*row["ci"][metric]]},
        }
        for metric in SHOWN
    ]
    dataset = {"type": "lists", "name": data, "split": split, "args": args}
    return {
        "task": {"type": "text-ranking", "name": "re-ranking of candidate lists"},
        "dataset": dataset,
        "metrics": metrics,
    }


def tables(rows: Rows, *, own: bool) -> list[str]:
    """What the row and those it was held against are worth, a table for each population."""

    def value(metric: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: (
            f"{number(row['metrics'][metric])} "
            f"[{', '.join(number(end) for end in row['ci'][metric])}]"
        )

    heads = [("row", at("name")), *((f"{m.upper()}, 95 %", value(m)) for m in SHOWN)]
    lines = []
    for population, title in (OWN_NAMES if own else NAMES).items():
        kept = [dict(row) for row in rows if row["population"] == population]
        if kept:
            lines += [f"{title}, n = {kept[0]['n']:,}:", "", markdown_table(kept, heads), ""]
    return lines


def origin(inputs: Mapping[str, Path], recipe: Recipe) -> dict[str, str]:
    """The command that makes the run again and the commits that made it, as far as is known."""
    made = {read_manifest(place)["versions"].get("commit", "") for place in inputs.values()}
    commits = ", ".join(f"`{commit}`" for commit in sorted(made) if commit) or "not known"
    command = f"diffgr2 run {recipe.name}"
    with suppress(ArtifactError, KeyError, TypeError):  # made without the command line
        command = str(read_json(next(iter(inputs.values())).parent / RUN)["command"])
    return {"command": re.sub(r"=[^\s=]*/", "=…/", command), "commits": commits}
