"""Tables of trials: a small language model, other IDs, tokens on a GPU, fields in the prompt.

Contract: `text_table(report, made)`, `ids_table`, `gpu_table` and `prompt_table` are what stands
between the marks of `text:NAME`, `ids:NAME`, `gpu:NAME` and `prompt:NAME`. Not here: other
tables, and the marks (`readme_table`).
"""

from __future__ import annotations

from typing import Any

from diffgr2.evaluate.tables import against, at, interval_at, markdown_table

WITHOUT_TEXT = ("oracle",)
"""Rows that say nothing beside a text model."""


def text_table(report: dict[str, Any], made: str) -> str:
    """Test lists that hold their target; then masked accuracy, then the losses."""
    rows = [row for row in report["rows"] if row["name"] not in WITHOUT_TEXT]
    columns: list[Any] = [("row", lambda row: f"`{row['name']}`")]
    for metric in ("r@1", "ndcg@3", "ndcg@10"):
        columns += [(metric.upper(), at(f"metrics.{metric}"))]
        columns += [("95 %", interval_at(f"ci.{metric}"))]
    columns.append(("R@1 over the floor, 95 %", against("floor")))
    columns += [("valid", at("raw_valid", 3)), ("coherent", at("coherent", 3))]
    columns += [("TPF", at("tpf", 1)), ("forwards", at("forwards", 1))]
    masked = [
        {"model": name, "masked": state, "part": part, **values}
        for name, found in report["masked"].items()
        for state, parts in found["states"].items()
        for part, values in parts.items()
    ]
    words = [(key, at(key)) for key in ("model", "masked", "part", "tokens")]
    words += [("right", at("right", 3)), ("by position", at("floor", 3))]
    words += [("difference", at("diff", 3)), ("95 %", interval_at("ci"))]
    losses = [(key, at(key)) for key in ("stage", "weights", "step")]
    losses += [(key, at(key, 3)) for key in ("loss", "reasoning/loss", "answer/loss")]
    where = f"{report['device']['name']}, torch {report['device']['torch']}"
    lists = f"{rows[0]['n']:,} test lists that hold their target"
    note = (
        f"{report['data']}, tie order {report['tie_order']}, seed {report['seed']}: {lists}. "
        f"Trained and decoded on one {where}, by `{report['run']}`. {made} Random weights: "
        f"{report['weights_of_random']}."
    )
    tables = (markdown_table(rows, columns), markdown_table(masked, words))
    return "\n\n".join((*tables, markdown_table(report["curves"], losses), note))


def ids_table(report: dict[str, Any], made: str) -> str:
    """The same re-ranker's SFT under other semantic IDs."""
    columns: list[Any] = [("IDs", lambda row: f"`{row['ids']}`"), ("natural", at("natural", 3))]
    for metric in ("r@1", "ndcg@3"):
        columns.append((metric.upper(), at(f"metrics.{metric}")))
        columns.append(("over rqvae, 95 %", interval_at(f"over_rqvae.{metric}.ci")))
    lists = f"{report['rows'][0]['n']:,} lists of selection users"
    return f"{markdown_table(report['rows'], columns)}\n\n{report['data']}: {lists}. {made}"


def gpu_table(report: dict[str, Any], made: str) -> str:
    """Milliseconds by shape, batch and decoder."""
    columns: list[Any] = [(key, at(key)) for key in ("shape", "batch", "decoder")]
    columns += [("tokens per forward", at("tokens_per_forward", 1))]
    columns += [(f"{key} ms", at(f"{key}_ms", 2)) for key in ("forward", "step")]
    columns += [("ms per token", at("ms_per_token", 2)), ("bandwidth alone, ms", at("floor_ms", 2))]
    columns += [("against AR", at("over_ar", 2))]
    note = (
        f"{report['device']}, torch {report['torch']}, random weights in bf16, {report['prompt']} "
        f"tokens of prompt, {report['written']} written. {made}"
    )
    return f"{markdown_table(report['rows'], columns)}\n\n{note}"


def prompt_table(report: dict[str, Any], made: str) -> str:
    """Tokens, time and quality by the number of fields that a prompt shows."""
    columns: list[Any] = [("fields", lambda row: str(len(row["fields"])))]
    columns += [("tokens", at("tokens", 0)), ("`sparse`", at("tokens_sparse", 0))]
    for way in report["rows"][0]["ms"]:
        columns += [
            (f"`{way}` ms", at(f"ms.{way}", 1)),
            ("rounds", interval_at(f"range_ms.{way}", 1)),
        ]
    for name in report["rows"][0]["quality"]:
        columns += [(f"`{name}` R@1", at(f"quality.{name}.metrics.r@1"))]
        columns += [("95 %", interval_at(f"quality.{name}.ci.r@1"))]
    lists = f"{report['rows'][0]['quality']['ar']['n']:,} test lists that hold their target"
    runs = "; ".join(f"`{command}`" for command in report["commands"])
    note = (
        f"Quality on {lists}; time of a list from the request on, median and range of "
        f"{report['rounds']} rounds, one thread, load {report['machine']['load']}. Runs: {runs}. "
        f"{made}"
    )
    return f"{markdown_table(report['rows'], columns)}\n\n{note}"
