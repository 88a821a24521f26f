"""Tables of what things cost: a run's timings, peers, a server, larger lists, larger data.

Contract: each `…_table(report, made)` is what stands between the marks of its kind: `speed:NAME`,
`serving:NAME`, `growth:NAME`, `costs:NAME`, `queueing:NAME`, and of a contest `rows:NAME` and
`results:NAME` (`peers_table`, `short_peers_table`). Not here: other tables, and the marks
(`readme_table`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from diffgr2.evaluate.tables import at, interval_at, markdown_table, timings_table


def speed_table(report: dict[str, Any], made: str) -> str:
    """Every decoder and batch size of the timing run."""
    note = f"{report['data']}: tokens per second without the prompt's prefill, median over rounds."
    return f"{timings_table(report['speed'])}\n\n{note} {made}"


def serving_table(report: dict[str, Any], made: str) -> str:
    """Latency and throughput by decoder and number of clients."""
    columns: list[Any] = [("decoder", at("decoder")), ("clients", at("clients"))]
    for head, key in (("p50 ms", "p50_ms"), ("p99 ms", "p99_ms"), ("requests/s", "requests_per_s")):
        columns.append((head, lambda row, key=key: f"{row[key]:.1f}"))
    columns.append(("TPF", at("tokens_per_forward", 1)))
    late = report["overload"]
    note = (
        f"{report['cores']} cores. Overload: {late['sent']:,} sent = {late['answered']:,} answered "
        f"+ {late['rejected']:,} rejected, p99 of a rejection {late['rejection_p99_ms']} ms. "
        f"{made}"
    )
    return f"{markdown_table(report['rows'], columns)}\n\n{note}"


MAIN_PEERS = (
    *("ar", "block", "block (onnx-int8)", "block, 3 views", "verify"),
    *("transformers generate, static cache, compiled", "llama.cpp", "ONNX Runtime, plain loop"),
    *("MiniLM-L6 cross-encoder, ONNX Runtime", "LightGBM"),
)
MAIN_BATCHES = (1, 32)
"""What the short table of peers shows, on one thread; ours on their first engine."""


def spread(values: Sequence[float], digits: int, scale: float = 1.0) -> str:
    """One number where all agree on what is shown, else from the least to the most."""
    low, high = (f"{scale * one:.{digits}f}" for one in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def decimals(key: str, digits: int = 1) -> Callable[[dict[str, Any]], str]:
    """A number with all its digits, or a dash."""
    return lambda row: "–" if row.get(key) is None else f"{row[key]:,.{digits}f}"


def percent(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "–" if row.get(key) is None else f"{100 * row[key]:.0f} %"


def of_limit(key: str) -> Callable[[dict[str, Any]], str]:
    """Of the rate of fp32 products, which is no limit of products of eight bits."""
    share = percent(key)
    return lambda row: "–" if "int8" in row["name"] else share(row)


def peers_table(report: dict[str, Any], made: str) -> str:
    """Everybody timed beside each other, at every batch size and number of threads."""
    columns: list[Any] = [("way", at("name")), ("batch", at("batch")), ("threads", at("threads"))]
    columns += [("ms per list", decimals("ms_per_list", 2))]
    columns += [("tokens/s", decimals("tokens_per_s", 0)), ("forwards", decimals("forwards"))]
    columns += [("of the limit", of_limit("share_of_limit"))]
    columns += [("same tokens", percent("same_tokens"))]
    return f"{markdown_table(report['rows'], columns)}\n\n{peers_note(report, made)}"


def short_peers_table(report: dict[str, Any], made: str) -> str:
    """One line for each."""
    lines: dict[str, dict[str, Any]] = {}
    for row in report["rows"]:
        name, batch = re.sub(r" \((onnx|torch)\)$", "", row["name"]), row["batch"]
        line = lines.setdefault(name, {"name": name})
        if row["threads"] == 1 and batch in MAIN_BATCHES and f"ms_per_list@{batch}" not in line:
            line |= {f"{key}@{batch}": value for key, value in row.items()}
    columns: list[Any] = [("way", at("name"))]
    for batch in MAIN_BATCHES:
        columns += [
            (f"ms, batch {batch}", decimals(f"ms_per_list@{batch}", 2)),
            ("tokens/s", decimals(f"tokens_per_s@{batch}", 0)),
            ("of the limit", of_limit(f"share_of_limit@{batch}")),
        ]
    columns += [("same tokens", percent(f"same_tokens@{MAIN_BATCHES[-1]}"))]
    shown = [lines[name] for name in MAIN_PEERS if name in lines]
    return f"{markdown_table(shown, columns)}\n\n{peers_note(report, made)}"


def peers_note(report: dict[str, Any], made: str) -> str:
    """The machine, what it can do, and how the table was made."""
    about = report["machine"]
    limits = "; ".join(
        f"{one['threads']} thread{'s' * (one['threads'] > 1)}: "
        f"{one['flop'] / 1e9:,.0f} GFLOP/s, {one['bytes'] / 1e9:,.0f} GB/s"
        for one in report["limit"]
    )
    absent = f" Not installed: {', '.join(report['left_out'])}." if report["left_out"] else ""
    return (
        f"{about['processor']}, {about['cores']} cores, load {about['load']}; limit by {limits}."
        f"{absent} {made}"
    )


def growth_table(report: dict[str, Any], made: str) -> str:
    """What a list costs as one thing grows."""
    columns: list[Any] = [("grows", at("axis")), ("to", at("value"))]
    for way, ms in (("ar", "`ar` ms"), ("block", "`block` ms"), ("least", "at once ms")):
        columns += [(ms, decimals(f"{way}_ms")), ("forwards", decimals(f"{way}_forwards"))]
    columns += [("one more ms", decimals("further_forward_ms", 2))]
    columns += [("pays up to forwards", decimals("pays_up_to"))]
    about = report["machine"]
    note = f"{about['processor']}, one thread, load {about['load']}. {made}"
    return f"{markdown_table(report['rows'], columns)}\n\n{note}"


def costs_table(report: dict[str, Any], made: str) -> str:
    """What a table of costs said of a size beyond it, and what that size took."""
    lines: dict[str, dict[str, Any]] = {}
    for row in report["rows"]:
        line = lines.setdefault(row["part"], {"part": row["part"]})
        scale = 1.0 if row["what"] == "seconds" else 1e9
        line |= {f"{row['what']}_{key}": row[key] / scale for key in ("said", "measured")}
        line[f"{row['what']}_off"] = row["off"]
    columns: list[Any] = [("stage", lambda row: f"`{row['part']}`")]
    for what, head, digits in (("seconds", "CPU-s", 1), ("peak", "peak GB", 2)):
        columns += [(f"{head} said", decimals(f"{what}_said", digits))]
        columns += [("measured", decimals(f"{what}_measured", digits)), ("off", off(f"{what}_off"))]
    sizes = max((point["sizes"] for point in report["points"].values()), key=len)
    size = ", ".join(f"{value:,.0f} {name}" for name, value in sizes.items())
    table = report["table"].removeprefix("yours, ")
    far = max(row["beyond"] for row in report["rows"])
    note = f"{size}: up to {far:.1f} times what the table holds. Table: {table}. {made}"
    return f"{markdown_table([*lines.values()], columns)}\n\n{note}"


def off(key: str) -> Callable[[dict[str, Any]], str]:
    """A share with its sign."""
    return lambda row: f"{100 * row[key]:+.0f} %".replace("-", "−")


def queueing_table(report: dict[str, Any], made: str) -> str:
    """A real server under arrivals at three loads beside its simulation."""
    columns: list[Any] = [("decoder", lambda row: f"`{row['decoder']}`"), ("load", at("load", 1))]
    columns += [("lists/s", decimals("rate"))]
    for name in ("p50", "p99"):
        columns += [(f"{name} ms", decimals(f"{name}_ms")), ("95 %", interval_at(f"{name}_ci", 1))]
        columns += [("rounds", ends(f"{name}_rounds_ms"))]
        columns += [("simulated", decimals(f"{name}_simulated_ms")), ("off", off(f"{name}_off"))]
    columns += [("taken by the host", ends("stolen_rounds", 100, " %"))]
    stalls = "; ".join(f"`{one['decoder']}`: {one['stalls']}" for one in report["served"])
    about = report["machine"]
    note = (
        f"{about['processor']}, {about['cores']} cores, load before {about['load_before']}; "
        f"{stalls}. {made}"
    )
    return f"{markdown_table(report['rows'], columns)}\n\n{note}"


def ends(key: str, scale: float = 1.0, unit: str = "") -> Callable[[dict[str, Any]], str]:
    """From the least to the most of some rounds."""
    return lambda row: spread(row[key], 0, scale) + unit
